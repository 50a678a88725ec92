"""The attacker who adapts: a clean start, frozen convolutions, and training where the loss is flat."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from bdjax import attacks, models, structure
from bdjax.checks import InputError
from bdjax.parametrizations import FrozenConvolutions, Identity
from bdjax.train import attacker, loop
from bdjax.train.gradients import FisherTrace, Perturbed, PlainGradient
from bdjax.train.supervised import supervised
from bdjax.types import Split

KEY = jax.random.key(0)


@pytest.fixture
def images(split) -> Split:
    return jax.tree.map(jnp.asarray, split)


def options(**given):
    return {"epochs": 1, "batch_size": 16, "augment": "none", **given}


def test_the_last_kernels_stay_and_all_else_moves(model, variables, images):
    learner = supervised(**options(frozen_convolutions=2, learning_rate=0.1))
    trained, _ = quick_jit(loop.trained, static_argnums=2)(KEY, learner, model, variables, images)
    before, after = structure.flat(variables["params"]), structure.flat(trained["params"])
    assert list(after) == list(before)
    kept = {path for path in before if bool((before[path] == after[path]).all())}
    assert kept == {("conv2", "kernel"), ("conv3", "kernel")}


def test_in_preact_resnet_the_last_five_are_those_of_the_last_stage(spec):
    model = models.create("preact_resnet18", spec, width=2)
    variables = jax.eval_shape(model.init, KEY)
    whole = structure.flat(variables["params"])
    tuned, frozen = FrozenConvolutions(5).init(model, variables)
    kernels = structure.flat(frozen)
    widest = max(leaf.shape[-1] for leaf in whole.values() if len(leaf.shape) == 4)
    last = {path for path, leaf in whole.items() if len(leaf.shape) == 4 and leaf.shape[-1] == widest}
    assert set(kernels) == last
    assert len(last) == 5
    assert sorted(leaf.shape[0] for leaf in kernels.values()) == [1, 3, 3, 3, 3]
    assert set(structure.flat(tuned)) == set(whole) - last


def test_together_they_are_the_parameters(model, variables):
    parametrization = FrozenConvolutions(3)
    tuned, frozen = parametrization.init(model, variables)
    for made in (parametrization.apply(tuned, frozen), parametrization.factored(tuned, frozen)):
        jax.tree.map(np.testing.assert_array_equal, made, variables["params"])


def test_more_kernels_than_there_are(model, variables):
    with pytest.raises(InputError, match="frozen_convolutions must be at most 3, the number of convolutions; got 4"):
        FrozenConvolutions(4).init(model, variables)


def test_a_victim_that_starts_clean_has_a_plain_surrogate_and_goes_on_from_it():
    training = supervised(start="clean", frozen_convolutions=2, rho=2.0, epochs=7)
    surrogate, victim = attacker.stages(attacks.create("badnets"), training)
    assert (surrogate.name, victim.name) == ("surrogate", "victim")
    assert surrogate.learner == supervised(epochs=7)
    assert victim.learner == training
    assert attacker.start(victim, {"params": 1}, {"params": 2}, None) == {"params": 2}
    assert attacker.start(surrogate, {"params": 1}, {"params": 1}, None) == {"params": 1}


@pytest.mark.parametrize("start", ["scratch", "clean"])
def test_a_victim_whose_batches_are_poisoned_starts_likewise(start):
    *_, victim = attacker.stages(attacks.create("fba"), supervised(start=start))
    begin = attacker.start(victim, {"params": 1}, {"params": 2}, "state")
    assert begin == {"params": 1 if start == "scratch" else 2, attacker.TRIGGER: "state"}


def test_a_victim_from_scratch_is_all_there_is():
    (victim,) = attacker.stages(attacks.create("badnets"), supervised())
    assert attacker.start(victim, {"params": 1}, {"params": 2}, None) == {"params": 1}


@pytest.mark.parametrize(
    ("given", "rule"),
    [({}, PlainGradient()), ({"rho": 2.0}, Perturbed(2.0)), ({"eta_f": 0.01}, FisherTrace(0.01))],
)
def test_an_option_chooses_the_gradient_rule(given, rule):
    assert supervised(**given).gradient == rule
    assert supervised(**given).parametrization == Identity()


def test_without_strength_smooth_training_is_plain_training(model, variables, images):
    train = quick_jit(loop.trained, static_argnums=2)
    plain, spent = train(KEY, supervised(**options()), model, variables, images)
    assert spent == 3
    for given, evaluations in (({"rho": 0.0}, 6), ({"eta_f": 0.0}, 3)):
        smooth, spent = train(KEY, supervised(**options(**given)), model, variables, images)
        assert spent == evaluations
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), smooth, plain)
    strong, _ = train(KEY, supervised(**options(rho=2.0)), model, variables, images)
    assert max(jax.tree.leaves(jax.tree.map(lambda x, y: float(abs(x - y).max()), strong, plain))) > 1e-3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"start": "clena"}, "start must be one of scratch, clean; got 'clena'"),
        ({"frozen_convolutions": -1}, "frozen_convolutions must be 0 or more"),
        ({"rho": -1.0}, "rho must be 0 or more"),
        ({"eta_f": -1.0}, "eta_f must be 0 or more"),
        ({"rho": 1.0, "eta_f": 1.0}, "eta_f must be left out beside what else is done: Perturbed"),
        ({"rho": 1.0, "gradient": PlainGradient()}, "rho must be left out beside"),
    ],
)
def test_refuses(given, words):
    with pytest.raises(InputError, match=words):
        supervised(**given)


def test_a_robust_surrogate_and_a_clean_start_exclude_each_other():
    attack = attacks.create("badnets")
    robust = type(attack)(attack.trigger, attack.label_map, surrogate="robust")
    with pytest.raises(InputError, match=r"training\.start must be 'scratch'"):
        attacker.stages(robust, supervised(start="clean"))
    surrogate, _ = attacker.stages(robust, supervised())
    assert surrogate.learner.augment == "adversarial"
