"""i-BAU: the hypergradient against a dense inverse, its passes by hand, and what it does to a planted backdoor."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted
import pytest
from quick import quick_jit

from bdjax import defenses
from bdjax.checks import InputError
from bdjax.defenses.i_bau import chosen, divided, hypergradient, i_bau
from bdjax.optim.amsgrad import scale_by_amsgrad
from bdjax.train import loop
from bdjax.types import Split

KEY = jax.random.key(0)


def of_scalars(terms: int, a: float = 1.0, b: float = 3.0):
    """The gradient for L_in = ½aδ² + bδθ and L_out = 2δ + 5θ."""
    return hypergradient(
        lambda delta, theta: a * delta**2 / 2 + b * delta * theta,
        lambda delta, theta: (2 * delta + 5 * theta, "seen"),
        jnp.float32(0.7),
        jnp.float32(-0.2),
        rate=0.1,
        terms=terms,
    )


@pytest.mark.parametrize(("terms", "implicit"), [(5, -0.40951 * 3 * 2), (400, -3 * 2)])
def test_the_hypergradient_of_scalars(terms, implicit):
    """O11: (1 − 0.9⁵) of the whole for five terms."""
    (value, seen), gradient = of_scalars(terms)
    assert seen == "seen"
    np.testing.assert_allclose(value, 2 * 0.7 - 5 * 0.2, rtol=1e-6)
    np.testing.assert_allclose(gradient, 5 + implicit, rtol=1e-5)


def test_the_hypergradient_is_that_of_a_dense_inverse():
    """Of an inner loss that is no quadratic: in its minimum δ(θ), dL/dθ = ∂L/∂θ − ∂²_θδ L_in (∂²_δδ L_in)⁻¹ ∂L/∂δ."""
    rng = np.random.default_rng(0)
    mix, aim = jnp.asarray(rng.normal(size=(4, 3))), jnp.asarray(rng.normal(size=4))
    theta, delta = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=4))

    def inner(delta, theta):
        return jnp.sum(delta**2) + jnp.sum(jnp.cosh(0.3 * delta)) + delta @ jnp.tanh(mix @ theta)

    def outer(delta, theta):
        return jnp.sum((delta - aim) ** 2) + jnp.sum(theta**3), None

    @quick_jit
    def parts(delta, theta):
        _, got = hypergradient(inner, outer, delta, theta, rate=0.2, terms=100)
        mixed = jax.jacobian(jax.grad(inner), argnums=1)(delta, theta)  # [δ, θ]
        slopes = jax.grad(lambda *at: outer(*at)[0], argnums=(0, 1))(delta, theta)
        return got, jax.hessian(inner)(delta, theta), mixed, *slopes

    got, curved, mixed, towards, direct = parts(delta, theta)
    expected = direct - mixed.T @ np.linalg.solve(curved, towards)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert np.abs(got - direct).max() > 0.1


def test_amsgrad_is_pytorchs():
    """O28."""
    tx, weight = optax.chain(scale_by_amsgrad(), optax.scale(-0.1)), jnp.float32(0)
    state, path = tx.init(weight), []
    for gradient in (1.0, 0.1, 0.1, 0.1, 2.0):
        update, state = tx.update(jnp.float32(gradient), state)
        weight = jnp.asarray(optax.apply_updates(weight, update))
        path.append(float(weight))
    expected = [-0.1, -0.17408106, -0.23739542, -0.29474002, -0.36530273]
    np.testing.assert_allclose(path, expected, rtol=1e-5)


def test_batches_are_even_and_every_row_counts_once():
    rows = np.arange(10, dtype=np.int32)
    some = divided(Split(rows[:, None], rows, None), 4)  # pyright: ignore[reportArgumentType]
    assert some.valid.sum(1).tolist() == [4, 3, 3]
    np.testing.assert_array_equal(np.sort(some.label[some.valid]), rows)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.01, 1), (0.29, 2), (1.0, 7)])
def test_a_share_of_the_valid_rows_carries_it(share, count):
    valid = jnp.arange(9) < 7
    got = chosen(KEY, valid, share)
    assert got.sum() == count
    assert not (got & ~valid).any()


# --- on the planted network: one round, one batch --------------------------------------------------------------------


def weak():
    """The planted network with logits that leave gradients."""
    variables = planted.variables()
    kernel = variables["params"]["linear"]["kernel"]
    variables["params"]["linear"]["kernel"] = (kernel / 40).at[0].set(kernel[0] / 100)
    return variables


def output(variables, image):
    return planted.MODEL.apply(variables, image)[0]


def holdout() -> Split:
    return jax.tree.map(jnp.asarray, planted.holdout(12))


def test_the_perturbation_is_a_step_away_from_the_networks_own_answers_and_in_the_ball():
    variables = weak()
    split = jax.tree.map(lambda x: x[1::3], holdout())  # one class: others would pull the other way
    image = split.input / 255.0
    wrong = divided(split._replace(label=(split.label + 1) % 3), 12)  # which must not matter

    def loss(delta):
        answer, logits = output(variables, image).argmax(-1), output(variables, image + delta)
        return -optax.softmax_cross_entropy_with_integer_labels(logits, answer).mean()

    expected = -10 * quick_jit(jax.grad(loss))(jnp.zeros((8, 8, 3)))
    norm = float(jnp.linalg.norm(expected))
    worst = quick_jit(lambda learner: learner.worst(planted.MODEL, variables, wrong))
    for radius in (2 * norm, norm / 3):
        got = worst(i_bau(radius=radius))
        np.testing.assert_allclose(got, expected * min(1, radius / norm), rtol=1e-4, atol=1e-6)
    assert norm > 0.01  # and so both radii


def test_after_the_normalization_it_is_worth_the_spread_of_the_channel(model, variables, split):
    """x + σδ, before it."""
    batch = jax.tree.map(jnp.asarray, split)
    delta = jnp.full((8, 8, 3), 0.4)

    @quick_jit
    def both(variables):
        got = i_bau(normalized=True)._output(delta, model, variables, batch)
        std = jnp.asarray(model.spec.modality.std)
        return got, i_bau()._output(std * delta, model, variables, batch)

    np.testing.assert_allclose(*both(variables), rtol=1e-5, atol=1e-6)


def run(**options):
    learner = i_bau(batch_size=12, rounds=3, **options)
    return loop.run(KEY, learner, planted.MODEL, weak(), holdout())


def test_a_share_of_nothing_is_fine_tuning_with_adam():
    """And the order of the images in the only batch does not matter."""
    result = run(share=0.0, outer_rate=0.01)
    split, params = holdout(), weak()["params"]
    stats, tx = weak()["batch_stats"], optax.adam(0.01)

    def loss(params):
        logits = output({"params": params, "batch_stats": stats}, split.input / 255.0)
        return optax.softmax_cross_entropy_with_integer_labels(logits, split.label).mean()

    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(quick_jit(jax.grad(loss))(params), state)
        params = optax.apply_updates(params, updates)
    for got, expected in zip(
        *map(jax.tree.leaves, (result.variables["params"], params)), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    assert result.gradient_evaluations == 3 * (1 + 4 + 5)


def test_running_statistics_stay():
    """Behavioral test 9: the planted network counts its training passes there."""
    assert run().variables["batch_stats"] == weak()["batch_stats"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("augment", "mixup"), ("terms", 0), ("radius", 0.0), ("share", 1.1), ("rounds", -1)],
)
def test_what_means_nothing_is_refused(option, value):
    with pytest.raises(InputError, match=f"^{option} must"):
        i_bau(**{option: value})


def test_the_benchmarks_setting():
    made = defenses.create("i_bau", preset="reference_code").learner
    assert (made.outer_rate, made.rows, made.epochs, made.terms) == (1e-4, 256, 5, 5)
    assert made.normalized
    assert made.amsgrad
