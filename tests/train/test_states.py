"""What a checkpoint leaves out of a state is made again to the bit, and a state of the old layout is refused."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from planted import Net
from quick import quick_jit

from bdjax import pytree
from bdjax.attacks import AllToOne
from bdjax.checks import InputError
from bdjax.models._layers import LinenModel
from bdjax.parametrizations import FrozenConvolutions, KeptZeros, NeuronMasks, SingularValues
from bdjax.train import attacker, group, loop, states
from bdjax.train.checkpoints import Checkpoints
from bdjax.train.supervised import supervised
from bdjax.types import Attack, Info, PartlySavedLearner, Trigger

KEY = jax.random.key(0)
PARAMETRIZATIONS = [SingularValues(), NeuronMasks(), KeptZeros(), FrozenConvolutions(1)]


@pytest.fixture(scope="module")
def model(spec):
    """A network that compiles in half the time of a real one."""
    return LinenModel(Net(widths=(4, 6), norm=True, classes=spec.num_classes), spec)


@pytest.fixture(scope="module")
def variables(model):
    return model.init(KEY)


@pytest.fixture(scope="module")
def learner():
    """Its kernels are frozen, and so are their factors; no augmentation, to compile less."""
    options = {"augment": "none", "learning_rate": 0.1, "drop_last": False}
    return supervised(epochs=3, batch_size=32, parametrization=SingularValues(), **options)


@pytest.fixture(scope="module")
def whole(learner, model, variables, split):
    return loop.run(KEY, learner, model, variables, split)


@pytree.dataclass
class Fit(Trigger):
    """A trigger whose state is a number, fitted beside a network that stays as it is."""

    hooks = ("fit",)
    epochs = 2
    batch_size = None

    def init(self, key, spec):
        return np.float32(0)

    def apply(self, key, state, input):
        return input

    def fit(self, key, model, variables, state, batch):
        return state + 1, Info(state, state, np.int32(1))


def same(first, second) -> bool:
    leaves = (jax.tree.leaves(tree) for tree in (first, second))
    alike = all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(*leaves, strict=True))
    return alike and jax.tree.structure(first) == jax.tree.structure(second)


def held(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def begun(learner, model, variables, split):
    make = quick_jit(lambda learner, variables: learner.init(KEY, model, variables, split))
    return jax.device_get(make(learner, variables))


# --- what is left out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS, ids=lambda one: type(one).__name__)
def test_what_is_frozen_is_made_again_to_the_bit(model, variables, split, parametrization):
    learner = supervised(epochs=1, batch_size=32, parametrization=parametrization)
    state = begun(learner, model, variables, split)
    kept = states.kept(learner, state)
    assert held(state) - held(kept) == held(state.frozen) > 0
    assert same(states.on_host(learner, kept, model, variables), state)


def test_a_trigger_is_saved_without_the_network_that_it_is_fitted_to(model, variables, split):
    learner = attacker.Fitting(Fit())
    start = {**variables, attacker.TRIGGER: np.float32(7)}
    state = jax.device_get(learner.init(KEY, model, start, split))
    kept = states.kept(learner, state)
    assert jax.tree.leaves(kept) == [7]
    assert same(states.on_host(learner, kept, model, start), state)


def test_a_victim_whose_attacker_poisons_each_batch_is_saved_as_its_training_says(
    model, variables, split
):
    training = supervised(epochs=1, batch_size=32, parametrization=FrozenConvolutions(1))
    attack = Attack(Fit(), AllToOne(0), controls_training=True)
    learner = attacker.Controlled(attack, training)
    start = {**variables, attacker.TRIGGER: np.float32(7)}
    state = jax.device_get(learner.init(KEY, model, start, split))
    kept = states.kept(learner, state)
    assert held(kept) == held(state) - held(state.network.frozen)
    assert same(states.on_host(learner, kept, model, start), state)


def test_of_a_learner_that_says_nothing_all_is_saved(model, variables):
    class Silent:
        epochs, batch_size, drop_last = 1, 1, False
        init = update = finalize = print

    state, silent = {"a": np.arange(3)}, Silent()
    assert not isinstance(silent, PartlySavedLearner)
    assert states.kept(silent, state) is state
    assert same(states.on_host(silent, state, model, variables), state)


# --- a run -----------------------------------------------------------------------------------------------------------


def cut(folder, feed):
    """Return what becomes of a run that is stopped after its first epoch and continued."""
    with Checkpoints(folder, every=0.0) as checkpoints:
        with pytest.raises(loop.Stopped):
            feed(checkpoints=checkpoints, should_stop=lambda: True)
        assert checkpoints.epoch is not None
        return feed(checkpoints=checkpoints)


def test_a_run_that_is_continued_without_its_factors_ends_bit_identical(
    learner, model, variables, split, whole, tmp_path
):
    got = cut(
        tmp_path, lambda **options: loop.run(KEY, learner, model, variables, split, **options)
    )
    assert same(jax.device_get(got.variables), jax.device_get(whole.variables))
    assert not same(jax.device_get(got.variables["params"]), jax.device_get(variables["params"]))


def test_so_do_the_points_of_a_group_and_each_may_be_saved_as_a_run_alone(
    learner, model, variables, split, whole, tmp_path
):
    """Three points on two devices: one is computed twice."""
    points = [group.Point(key, learner, variables, split) for key in (KEY, *jax.random.split(KEY))]
    feed = functools.partial(group.run, points, model, mesh=group.point_mesh(2))
    outcomes = cut(tmp_path / "all", feed)
    for got, expected in zip(outcomes, feed(), strict=True):
        assert same(got.state, expected.state)
    first = outcomes[0]
    with Checkpoints(tmp_path / "own") as checkpoints:
        checkpoints.save(3, first.kept, [row._asdict() for row in first.history], force=True)
        own = loop.run(KEY, learner, model, variables, split, checkpoints=checkpoints)
    for got, expected in zip(*map(jax.tree.leaves, (own.variables, whole.variables)), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_checkpoint_that_holds_the_factors_is_refused(learner, model, variables, split, tmp_path):
    state = begun(learner, model, variables, split)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, [], force=True)
        with pytest.raises(
            InputError, match=r"/1 cannot be read; .* another network, optimizer or version"
        ):
            loop.run(KEY, learner, model, variables, split, checkpoints=checkpoints)
