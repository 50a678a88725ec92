"""SAM and ASAM: the oracles O1 to O3, and what a transformation owes to optax and to a training loop of one's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bdjax import optim

RHO = 0.5
STEEP = jnp.array([1.0, 3.0])


def bowl(w):
    """O2's loss ½(w₁² + 3w₂²); its gradient is (w₁, 3w₂)."""
    return 0.5 * jnp.sum(STEEP.astype(w.dtype) * w * w)


def one_step(tx, w, grad_fn=None):
    grad_fn = grad_fn or jax.grad(bowl)
    updates, _ = tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)
    return optax.apply_updates(w, updates)


# --- oracles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adaptive", "expected"),
    [(False, (1.2, 1.6)), (True, (0.70224688, 3.74531671))],
    ids=["sam", "asam"],
)
def test_perturbation_by_hand(adaptive, expected):
    """O1."""
    w, g = jnp.array([1.0, -2.0]), jnp.array([3.0, 4.0])
    np.testing.assert_allclose(
        optim.perturbation(g, w, 2.0, adaptive=adaptive), expected, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("adaptive", "weight_decay", "expected"),
    [
        (False, 0.0, (0.89178005, 1.25204091)),
        (True, 0.0, (0.89584773, 1.10103627)),
        (False, 5e-4, (0.89173005, 1.25194091)),  # decay at the unperturbed point
        (True, 5e-4, (0.89579773, 1.10093627)),
    ],
)
def test_one_step_on_a_quadratic(adaptive, weight_decay, expected):
    """O2."""
    with jax.enable_x64(True):
        decay = optax.add_decayed_weights(weight_decay)
        tx = optax.chain(optim.sam(RHO, adaptive=adaptive), decay, optax.sgd(0.1))
        np.testing.assert_allclose(one_step(tx, jnp.array([1.0, 2.0])), expected, atol=1e-8)


O2B = {
    True: {
        "rho": 2.0,
        "loss": 0.89410785,
        "epsilon": {
            "w1": [[-0.07467107, 0.03733195], [0.51156362, 1.02311473]],
            "scale": [-0.50159461, -0.93889163],
            "bias": [0, 0.00452080],
            "w2": [[-1.00318923, 0.33939026], [0.25079731, -0.02121189]],
            "b2": [0, 0.04045021],
        },
        "after": {
            "w1": [[0.99880612, 0.50194449], [-0.52031020, 1.00006614]],
            "scale": [0.97662417, 1.98757267],
            "bias": [-0.02710491, 0.08661218],
            "w2": [[1.01536900, -0.98366998], [0.48455600, 0.23370748]],
            "b2": [0.01908890, 0.18090110],
        },
    },
    False: {
        "rho": 0.5,
        "loss": 0.81536715,
        "epsilon": {
            "w1": [[-0.01155149, 0.02310075], [0.31655207, 0.15827410]],
            "scale": [-0.07759583, -0.03631123],
            "bias": [-0.09600877, 0.06993599],
            "w2": [[-0.15519166, 0.05250309], [0.15519166, -0.05250309]],
            "b2": [-0.15643947, 0.15643947],
        },
        "after": {
            "w1": [[1.00036649, 0.49918817], [-0.61996941, 0.98094451]],
            "scale": [1.00600968, 1.98847505],
            "bias": [0.00696636, 0.08429270],
            "w2": [[1.02590048, -0.97802549], [0.47402452, 0.22806299]],
            "b2": [0.02894180, 0.17104820],
        },
    },
}


def batch_norm_network(params, running):
    """O2b's network on its batch: loss and running statistics, with the rows of a weight as its outputs."""
    x = jnp.array([[1, 0], [0, 1], [1, 1], [-1, 0.5]])
    y = jnp.array([0, 1, 0, 1])
    hidden = x @ params["w1"].T
    mean, var = hidden.mean(0), hidden.var(0)
    running = {
        "mean": 0.9 * running["mean"] + 0.1 * mean,
        "var": 0.9 * running["var"] + 0.1 * var * 4 / 3,
    }
    hidden = params["scale"] * (hidden - mean) / jnp.sqrt(var + 1e-5) + params["bias"]
    logits = jax.nn.relu(hidden) @ params["w2"].T + params["b2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), running


@pytest.mark.parametrize("adaptive", [True, False], ids=["asam", "sam"])
def test_one_step_of_a_network_with_batch_norm(adaptive):
    """O2b: a loop of plain JAX functions; running statistics come from θ, not from θ + ε."""
    oracle = O2B[adaptive]
    with jax.enable_x64(True):
        params = {
            "w1": jnp.array([[1, 0.5], [-0.5, 1]]),
            "scale": jnp.array([1.0, 2]),
            "bias": jnp.array([0, 0.1]),
            "w2": jnp.array([[1, -1], [0.5, 0.25]]),
            "b2": jnp.array([0, 0.2]),
        }
        fresh = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
        tx = optax.chain(
            optim.sam(oracle["rho"], adaptive=adaptive),
            optax.add_decayed_weights(5e-4),
            optax.sgd(0.1, momentum=0.9),
        )

        @jax.jit
        def step(params):
            (loss, running), grads = jax.value_and_grad(batch_norm_network, has_aux=True)(
                params, fresh
            )
            epsilon = optim.perturbation(grads, params, oracle["rho"], adaptive=adaptive)
            perturbed_loss, _ = batch_norm_network(optax.apply_updates(params, epsilon), fresh)
            updates, _ = tx.update(
                grads,
                tx.init(params),
                params,
                grad_fn=lambda at: jax.grad(batch_norm_network, has_aux=True)(at, fresh)[0],
            )
            return loss, running, epsilon, perturbed_loss, optax.apply_updates(params, updates)

        loss, running, epsilon, perturbed_loss, after = step(params)
        np.testing.assert_allclose(loss, 0.35612083, atol=1e-8)
        np.testing.assert_allclose(perturbed_loss, oracle["loss"], atol=1e-8)
        np.testing.assert_allclose(running["mean"], (0.05625, 0.05), atol=1e-8)
        np.testing.assert_allclose(running["var"], (0.99322917, 0.95), atol=1e-8)
        for name in params:
            np.testing.assert_allclose(
                epsilon[name], oracle["epsilon"][name], atol=1e-8, err_msg=name
            )
            np.testing.assert_allclose(after[name], oracle["after"][name], atol=1e-8, err_msg=name)


# --- identities (O3) -------------------------------------------------------------------------------------------------

MODES = pytest.mark.parametrize("adaptive", [False, True], ids=["sam", "asam"])
few = settings(max_examples=25, deadline=None, derandomize=True)


def vectors(low: float, high: float):
    """Four numbers of either sign, none of them near 0."""
    sign = hnp.arrays(np.float32, 4, elements=st.sampled_from([-1.0, 1.0]))
    size = hnp.arrays(np.float32, 4, elements=st.floats(low, high, width=32))
    return st.tuples(sign, size).map(lambda pair: pair[0] * pair[1])


weights, gradients, radii = vectors(0.125, 4), vectors(0.125, 4), st.floats(0.0, 8.0)


@given(grad=gradients, weight=weights, rho=radii)
@few
def test_adaptive_and_plain_agree_where_all_weights_are_equally_large(grad, weight, rho):
    size = 1.5
    weight = np.copysign(np.float32(size), weight)
    adaptive = optim.perturbation(grad, weight, rho, adaptive=True)
    np.testing.assert_allclose(
        adaptive, optim.perturbation(grad, weight, rho * size), rtol=1e-5, atol=1e-35
    )


@given(grad=gradients, weight=weights, scale=weights, rho=radii)
@few
def test_adaptive_perturbation_moves_with_a_rescaling_of_the_weights(grad, weight, scale, rho):
    """w → Aw with L'(Aw) = L(w) gives ε' = Aε."""
    epsilon = optim.perturbation(grad, weight, rho, adaptive=True)
    rescaled = optim.perturbation(grad / scale, scale * weight, rho, adaptive=True)
    # Not of numbers too small to hold
    np.testing.assert_allclose(rescaled, scale * epsilon, rtol=1e-5, atol=1e-35)


@MODES
@given(grad=gradients, weight=weights, rho=radii, factor=st.floats(1e-3, 1e3))
@few
def test_scaling_the_loss_changes_nothing(adaptive, grad, weight, rho, factor):
    epsilon = optim.perturbation(grad, weight, rho, adaptive=adaptive)
    np.testing.assert_allclose(
        optim.perturbation(factor * grad, weight, rho, adaptive=adaptive),
        epsilon,
        rtol=1e-5,
        atol=1e-35,
    )


@MODES
@given(grad=gradients, weight=weights, rho=radii)
@few
def test_the_radius_is_rho(adaptive, grad, weight, rho):
    epsilon = optim.perturbation(grad, weight, rho, adaptive=adaptive)
    inside = epsilon / np.abs(weight) if adaptive else epsilon
    assert np.linalg.norm(inside) == pytest.approx(rho, rel=1e-5)


@MODES
def test_one_norm_over_all_tensors(adaptive):
    grad, weight = jnp.array([3.0, 1.0, 4.0]), jnp.array([1.0, 5.0, 9.0])
    whole = optim.perturbation(grad, weight, RHO, adaptive=adaptive)
    parts = optim.perturbation(
        {"a": grad[:1], "b": grad[1:]}, {"a": weight[:1], "b": weight[1:]}, RHO, adaptive=adaptive
    )
    np.testing.assert_allclose(jnp.concatenate([parts["a"], parts["b"]]), whole, rtol=1e-6)


def test_adaptive_leaves_a_zero_weight_where_it_is():
    epsilon = optim.perturbation(jnp.array([1.0, 1.0]), jnp.array([0.0, 2.0]), RHO, adaptive=True)
    assert epsilon.tolist() == [0.0, 1.0]


@MODES
def test_zero_gradient_gives_zero_perturbation(adaptive):
    w = jnp.array([1.0, -2.0])
    assert optim.perturbation(jnp.zeros(2), w, RHO, adaptive=adaptive).tolist() == [0.0, 0.0]
    tx = optax.chain(optim.sam(RHO, adaptive=adaptive), optax.sgd(0.1))
    assert one_step(tx, jnp.zeros(2)).tolist() == [0.0, 0.0]


@MODES
def test_radius_zero_gives_the_plain_gradient_bit_for_bit(adaptive):
    w = jnp.array([0.1, -0.7])
    updates, _ = optim.sam(0.0, adaptive=adaptive).update(
        jax.grad(bowl)(w), optim.sam(0.0).init(w), w, grad_fn=jax.grad(bowl)
    )
    np.testing.assert_array_equal(updates, jax.grad(bowl)(w))


# --- radius as a traced number ---------------------------------------------------------------------------------------


@MODES
def test_a_map_over_rho_is_a_loop(adaptive):
    w, rhos = jnp.array([1.0, 2.0]), jnp.array([0.0, 0.5, 2.0])

    def step(rho):
        return one_step(optax.chain(optim.sam(rho, adaptive=adaptive), optax.sgd(0.1)), w)

    np.testing.assert_allclose(jax.vmap(step)(rhos), [step(float(rho)) for rho in rhos], rtol=1e-6)


def test_another_rho_traces_nothing():
    traces = []

    @jax.jit
    def step(w, rho):
        traces.append(rho)
        return one_step(optim.sam(rho, adaptive=True), w)

    results = [step(jnp.array([1.0, 2.0]), rho).tolist() for rho in (0.5, 2.0)]
    assert len(traces) == 1
    assert results[0] != results[1]


# --- in a loop of one's own, with optax's wrappers -------------------------------------------------------------------


def test_a_bare_loop_descends():
    tx = optax.chain(optim.sam(0.05, adaptive=True), optax.sgd(0.1))
    w = jnp.array([1.0, 2.0])
    state = tx.init(w)
    for _ in range(40):
        updates, state = tx.update(jax.grad(bowl)(w), state, w, grad_fn=jax.grad(bowl))
        w = optax.apply_updates(w, updates)
    assert bowl(w) < 1e-2


PARAMS = {"w": jnp.array([1.0, 2.0]), "frozen": jnp.array([3.0, 4.0])}
DESCENT = optax.chain(optim.sam(RHO), optax.sgd(0.1))


def tree_bowl(params):
    return bowl(params["w"]) + bowl(params["frozen"])


LABELS = {"w": "train", "frozen": "freeze"}


@pytest.mark.parametrize(
    "rest",
    [
        optax.chain(
            optax.sgd(0.1), optax.masked(optax.set_to_zero(), {"w": False, "frozen": True})
        ),
        optax.multi_transform({"train": optax.sgd(0.1), "freeze": optax.set_to_zero()}, LABELS),
    ],
    ids=["masked", "multi_transform"],
)
def test_after_sam_some_parameters_can_be_frozen(rest):
    """Frozen parameters still take part in the perturbation, as their gradient is there."""
    after = one_step(optax.chain(optim.sam(RHO), rest), PARAMS, jax.grad(tree_bowl))
    free = one_step(DESCENT, PARAMS, jax.grad(tree_bowl))
    assert after["frozen"].tolist() == [3.0, 4.0]
    np.testing.assert_array_equal(after["w"], free["w"])


def test_inject_hyperparams_moves_rho_into_the_state():
    w = jnp.array([1.0, 2.0])
    injected = optax.inject_hyperparams(optim.sam, static_args="adaptive")(rho=RHO, adaptive=True)
    state = injected.init(w)
    assert state.hyperparams["rho"] == RHO
    state.hyperparams["rho"] = jnp.asarray(2.0)
    updates, _ = injected.update(jax.grad(bowl)(w), state, w, grad_fn=jax.grad(bowl))
    np.testing.assert_allclose(
        optax.apply_updates(w, updates), one_step(optim.sam(2.0, adaptive=True), w), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("tx", "first", "second"),
    [
        (optax.apply_if_finite(DESCENT, 3), jnp.nan, 1.0),  # the wrapper looks at what comes in
        (optax.chain(optim.sam(RHO), optax.apply_if_finite(optax.sgd(0.1), 3)), 1.0, jnp.nan),
    ],
    ids=["around", "after"],
)
def test_apply_if_finite_skips_a_bad_gradient(tx, first, second):
    w = jnp.array([1.0, 2.0])
    np.testing.assert_array_equal(one_step(tx, w), one_step(DESCENT, w))
    updates, _ = tx.update(
        first * jax.grad(bowl)(w), tx.init(w), w, grad_fn=lambda at: second * jax.grad(bowl)(at)
    )
    assert updates.tolist() == [0.0, 0.0]


def test_accumulated_halves_of_a_batch_are_the_whole():
    """With MultiSteps, ``grad_fn`` is the whole batch's gradient."""
    x = jnp.array([[1.0, 2.0], [0.5, -1.0], [2.0, 0.0], [1.0, 1.0]])

    def loss(w, rows):
        return jnp.mean((x[rows] @ w - 1) ** 2)

    w, whole = jnp.array([1.0, 2.0]), jnp.arange(4)
    tx = optax.MultiSteps(DESCENT, every_k_schedule=2).gradient_transformation()
    after, state = w, tx.init(w)
    for half in (whole[:2], whole[2:]):
        updates, state = tx.update(
            jax.grad(loss)(w, half), state, w, grad_fn=lambda at: jax.grad(loss)(at, whole)
        )
        after = optax.apply_updates(after, updates)
    np.testing.assert_allclose(
        after, one_step(DESCENT, w, lambda at: jax.grad(loss)(at, whole)), rtol=1e-6
    )
