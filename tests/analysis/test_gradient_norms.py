"""Gradients and perturbations of single neurons, against loops and formulas in plain JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import networks
import numpy as np
import planted
import pytest
import subjects
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure
from quick import quick_jit

from bdjax import registry, structure
from bdjax.analysis import _neurons, gradient_norms, perturbations, rho_gradients
from bdjax.checks import InputError
from bdjax.types import Split

LAYER = ("conv1", "kernel")
RHO = 0.7


@pytest.fixture(scope="module")
def subject():
    return subjects.backdoored()


@pytest.fixture(scope="module")
def loss(subject):
    return _neurons.training_loss(subject.model, subject.victim, subject.holdout)


@pytest.fixture(scope="module")
def params(subject):
    return subject.victim["params"]


@pytest.fixture(scope="module")
def found(subject):
    return gradient_norms.gradient_norms(rho=RHO, sam_rho=0.1, epochs=2).measure(subject)


@pytest.fixture(scope="module")
def one_by_one(loss):
    """Differentiate with respect to one filter at a time."""

    def with_filter(filter, params, k):
        flat = structure.flat(params)
        return loss(structure.nested({**flat, LAYER: flat[LAYER].at[..., k].set(filter)}))

    gradient = quick_jit(
        lambda params, k: jax.grad(with_filter)(params["conv1"]["kernel"][..., k], params, k)
    )
    return lambda params: np.asarray([np.linalg.norm(gradient(params, k)) for k in range(4)])


def perturbed(loss, params, rho, adaptive):
    """Return θ + ρ T² g / ‖T g‖₂, on one long vector."""
    theta, unravel = ravel_pytree(params)
    g = ravel_pytree(quick_jit(jax.grad(loss))(params))[0]
    t = jnp.abs(theta) if adaptive else jnp.ones_like(theta)
    return unravel(theta + rho * t**2 * g / jnp.linalg.norm(t * g))


def test_norms_equal_a_loop_over_the_neurons(found, one_by_one, loss, params):
    np.testing.assert_allclose(found["ft"][0], one_by_one(params), rtol=1e-4)
    for rule, rho in (("sam", 0.1), ("asam", RHO)):
        expected = one_by_one(perturbed(loss, params, rho, rule == "asam"))
        np.testing.assert_allclose(found[rule][0], expected, rtol=1e-3, atol=1e-6)


def test_the_loss_is_that_of_a_training_step():
    model = networks.backwards()
    variables = networks.random_variables(model)
    rng = np.random.default_rng(0)
    batch = Split(rng.integers(0, 256, (6, 6, 6, 2), np.uint8), np.arange(6) % 3, np.arange(6) < 5)
    image = jnp.asarray(batch.input[:5] / 255.0, jnp.float32)
    logits = np.asarray(
        quick_jit(lambda image: model.apply(variables, image, train=True)[0])(image)
    )
    of_label = np.exp(logits[np.arange(5), batch.label[:5]])
    expected = -np.log(of_label / np.exp(logits).sum(-1)).mean()
    loss = quick_jit(_neurons.training_loss(model, variables, batch))(variables["params"])
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_only_the_epochs_that_are_wanted_are_carried_out():
    seen = []
    subject = subjects.backdoored(seen)
    found = gradient_norms.gradient_norms(epochs=2).measure(subject)
    assert seen == [0, 1]
    assert found["attack_success_rate"].tolist() == [1, 0]
    assert found["asam"].shape == (2, 4)
    assert found["tac"].argmax() == 0


def test_a_defense_with_fewer_epochs_gives_as_many_as_it_has(subject):
    short = subject._replace(
        epochs=0, replay=lambda on_variables: on_variables(0, lambda: subject.victim)
    )
    assert len(gradient_norms.gradient_norms(epochs=3).measure(short)["rank"]) == 1


def test_mean_gradients_over_rho(subject, one_by_one, loss, params):
    found = rho_gradients.rho_gradients("0.7, 0,0.7").measure(subject)
    assert found["rho"].tolist() == pytest.approx([0, RHO])
    expected = [one_by_one(at).mean() for at in (params, perturbed(loss, params, RHO, True))]
    np.testing.assert_allclose(found["victim"], expected, rtol=1e-3)


@pytest.mark.parametrize("adaptive", [False, True])
def test_perturbations_are_those_of_the_filters(loss, params, adaptive):
    moved = (
        structure.flat(perturbed(loss, params, RHO, adaptive))[LAYER] - params["conv1"]["kernel"]
    )
    norms = quick_jit(
        lambda: perturbations.perturbation_norms(loss, params, LAYER, RHO, adaptive=adaptive)
    )()
    np.testing.assert_allclose(
        norms, np.sqrt(np.square(moved).sum((0, 1, 2))), rtol=1e-3, atol=1e-6
    )


def test_squared_perturbations_of_all_parameters_sum_to_that_of_the_radius(loss, params):
    paths = list(structure.flat(params))
    norms = quick_jit(
        lambda: [perturbations.perturbation_norms(loss, params, path, RHO) for path in paths]
    )()
    assert sum(float(jnp.square(of).sum()) for of in norms) == pytest.approx(RHO**2, rel=1e-5)


def test_a_batch_has_valid_rows_and_no_more_than_there_are():
    split = planted.holdout(9)._replace(valid=np.arange(9) < 7)
    batch = _neurons.first_batch(jax.random.key(0), split, 5)
    assert (len(batch.label), bool(batch.valid.all())) == (5, True)
    assert len(_neurons.first_batch(jax.random.key(0), split, 256).label) == 7


@pytest.mark.parametrize(
    ("name", "options"),
    [("gradient_norms", {"epochs": 3}), ("rho_gradients", {}), ("perturbations", {})],
)
def test_figures_have_a_panel_for_each_run(subject, name, options):
    analysis = registry.create("bdjax.analysis", name, **options)
    figure = analysis.draw(dict.fromkeys("abc", analysis.measure(subject)))
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gradient_norms", {"rho": -1.0}, "rho must be 0 or more"),
        ("gradient_norms", {"epochs": 0}, "epochs must be 1 or more"),
        ("rho_gradients", {"rho": "1;2"}, "rho must be numbers with commas between them"),
        ("rho_gradients", {"rho": "1,nan"}, "rho must be finite"),
        ("rho_gradients", {"rho": "2"}, "rho must be two numbers at least"),
        ("perturbations", {"rho": 0.0}, "rho must be above 0"),
        ("perturbations", {"batch_size": 0}, "batch_size must be 1 or more"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(InputError, match=message):
        registry.create("bdjax.analysis", name, **options)
