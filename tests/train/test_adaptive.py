"""The attacker who adapts: a clean start, frozen convolutions, and training where the loss is flat."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from bdjax import attacks, models, structure
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.parametrizations import FrozenConvolutions, Identity
from bdjax.train import attacker, loop
from bdjax.train.adaptive import FisherTrace, SharpnessAware, training
from bdjax.train.supervised import supervised
from bdjax.train.transformations import PlainSgd
from bdjax.types import Split

KEY = jax.random.key(0)


@pytest.fixture
def images(split) -> Split:
    return jax.tree.map(jnp.asarray, split)


def options(**given):
    return {"epochs": 1, "batch_size": 16, "augment": "none", **given}


def test_the_last_kernels_stay_and_all_else_moves(model, variables, images):
    learner, _ = training(**options(frozen_convolutions=2, learning_rate=0.1))
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
    last = {
        path for path, leaf in whole.items() if len(leaf.shape) == 4 and leaf.shape[-1] == widest
    }
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
    with pytest.raises(
        InputError, match="frozen_convolutions must be at most 3, the number of convolutions; got 4"
    ):
        FrozenConvolutions(4).init(model, variables)


def test_kernels_that_the_network_does_not_compute_with_do_not_count():
    spec = image_spec("tiny", (15, 15, 3), 4, (0.5,) * 3, (0.25,) * 3)
    network = models.create("googlenet", spec, width=4, aux=True)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    used = 57  # of the two auxiliary heads each has one more
    assert len(structure.convolutions(shapes["params"])) == used + 2
    assert len(jax.tree.leaves(FrozenConvolutions(used).init(network, shapes)[1])) == used
    with pytest.raises(InputError, match=f"must be at most {used}, the number of convolutions"):
        FrozenConvolutions(used + 1).init(network, shapes)


def test_a_victim_that_starts_clean_has_a_plain_surrogate_and_goes_on_from_it():
    learner, start = training(start="clean", frozen_convolutions=2, rho=2.0, epochs=7)
    surrogate, victim = attacker.stages(attacks.create("badnets"), learner, start)
    assert (surrogate.name, victim.name) == ("surrogate", "victim")
    assert surrogate.learner == supervised(epochs=7)
    assert victim.learner == learner
    assert attacker.start(victim, {"params": 1}, {"params": 2}, None) == {"params": 2}
    assert attacker.start(surrogate, {"params": 1}, {"params": 1}, None) == {"params": 1}


@pytest.mark.parametrize("start", ["scratch", "clean"])
def test_a_victim_whose_batches_are_poisoned_starts_likewise(start):
    *_, victim = attacker.stages(attacks.create("fba"), supervised(), start)
    begin = attacker.start(victim, {"params": 1}, {"params": 2}, "state")
    assert begin == {"params": 1 if start == "scratch" else 2, attacker.TRIGGER: "state"}


def test_a_victim_from_scratch_is_all_there_is():
    (victim,) = attacker.stages(attacks.create("badnets"), supervised())
    assert attacker.start(victim, {"params": 1}, {"params": 2}, None) == {"params": 1}


@pytest.mark.parametrize(
    ("given", "transformation"),
    [({}, PlainSgd()), ({"rho": 2.0}, SharpnessAware(2.0)), ({"eta_f": 0.01}, FisherTrace(0.01))],
)
def test_an_option_chooses_the_transformation(given, transformation):
    learner, start = training(**given)
    assert learner == supervised(transformation=transformation)
    assert (learner.parametrization, start) == (Identity(), "scratch")


def test_without_strength_smooth_training_is_plain_training(model, variables, images):
    train = quick_jit(loop.trained, static_argnums=2)
    plain, spent = train(KEY, supervised(**options()), model, variables, images)
    assert spent == 3
    for given, evaluations in (({"rho": 0.0}, 6), ({"eta_f": 0.0}, 3)):
        smooth, spent = train(KEY, training(**options(**given)).learner, model, variables, images)
        assert spent == evaluations
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), smooth, plain)
    strong, _ = train(KEY, training(**options(rho=2.0)).learner, model, variables, images)
    assert (
        max(jax.tree.leaves(jax.tree.map(lambda x, y: float(abs(x - y).max()), strong, plain)))
        > 1e-3
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"start": "clena"}, "start must be one of scratch, clean; got 'clena'"),
        ({"frozen_convolutions": -1}, "frozen_convolutions must be 0 or more"),
        ({"rho": -1.0}, "rho must be 0 or more"),
        ({"eta_f": -1.0}, "eta_f must be 0 or more"),
        ({"rho": 1.0, "eta_f": 2.0}, r"eta_f must be left out where rho = 1\.0 is given; got 2\.0"),
    ],
)
def test_refuses(given, words):
    with pytest.raises(InputError, match=words):
        training(**given)


def test_a_robust_surrogate_and_a_clean_start_exclude_each_other():
    attack = attacks.create("badnets")
    robust = type(attack)(attack.trigger, attack.label_map, surrogate="robust")
    with pytest.raises(InputError, match=r"training\.start must be 'scratch'"):
        attacker.stages(robust, supervised(), "clean")
    surrogate, _ = attacker.stages(robust, supervised())
    assert surrogate.learner.augment == "adversarial"
