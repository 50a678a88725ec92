"""The penalties of SFT and NFT as gradient transformations, the projection, and in which order they belong."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from quick import quick_jit

from bdjax import optim

W = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}
few = settings(max_examples=60, deadline=None, derandomize=True)


def bowl(w):
    return sum(jnp.sum((x - 1) ** 2) for x in jax.tree.leaves(w))


def quartic(w):
    return sum(jnp.sum(x**4) for x in jax.tree.leaves(w))


def assert_close(got, expected):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), got, expected)


def assert_same(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


# --- Fisher trace ----------------------------------------------------------------------------------------------------


def test_every_third_step_is_penalized_and_the_others_run_nothing():
    """The first penalty falls on step ``every``; it is not scaled up for the steps without."""
    calls = []

    def trace_grad_fn(w):
        jax.debug.callback(lambda x: calls.append(x), w["b"][0])
        return jax.grad(quartic)(w)

    tx = optim.fisher_trace(eta=0.25, every=3)
    grads = jax.grad(bowl)(W)

    @quick_jit
    def steps():
        def step(state, number):
            at = jax.tree.map(lambda x: x + number, W)
            updates, state = tx.update(grads, state, at, trace_grad_fn=trace_grad_fn)
            return state, updates

        return jax.lax.scan(step, tx.init(W), jnp.arange(1.0, 8.0))

    state, updates = steps()
    jax.effects_barrier()
    assert state.step == 7
    assert sorted(float(x) for x in calls) == [3.5, 6.5]
    for number in range(1, 8):
        got = jax.tree.map(lambda u, number=number: u[number - 1], updates)
        if number % 3:
            assert_same(got, grads)
        else:
            at = jax.tree.map(lambda x, number=number: x + number, W)
            assert_close(got, jax.tree.map(lambda g, w: g + 0.25 * 4 * w**3, grads, at))


def test_on_every_step():
    tx = optim.fisher_trace(eta=1.0, every=1)
    updates, state = tx.update(W, tx.init(W), W, trace_grad_fn=lambda w: w)
    assert_same(updates, jax.tree.map(lambda x: 2 * x, W))
    assert state.step == 1


# --- anchor ----------------------------------------------------------------------------------------------------------

IMPORTANCE = {"a": jnp.array([0.0, 2.0]), "b": jnp.array([3.0])}


def test_the_anchor_does_not_pull_where_it_is():
    """L_r and its gradient are zero at the start."""
    zeros = jax.tree.map(jnp.zeros_like, W)
    tx = optim.anchor(IMPORTANCE, eta=5.0)
    assert_same(tx.update(zeros, tx.init(W), W)[0], zeros)


def test_the_anchor_pulls_with_the_gradient_of_its_energy():
    """Of (η/2) Σ F̄ (θ − θ̄)², by autodiff; added to what comes in."""

    def energy(w):
        parts = jax.tree.map(
            lambda x, start, weight: jnp.sum(weight * (x - start) ** 2), w, W, IMPORTANCE
        )
        return 2.5 * sum(jax.tree.leaves(parts))

    at = {"a": jnp.array([3.0, -1.0]), "b": jnp.array([-0.5])}
    tx = optim.anchor(IMPORTANCE, eta=5.0)
    got, _ = tx.update(jax.grad(bowl)(at), tx.init(W), at)
    assert_close(got, jax.grad(lambda w: bowl(w) + energy(w))(at))
    assert got["a"][0] == jax.grad(bowl)(at)["a"][0]  # of no importance


def test_an_importance_may_be_found_by_init_once_and_says_what_that_took():
    asked = []

    def importance(params):
        asked.append(params)
        return jax.tree.map(jnp.square, params)

    tx = optim.anchor(importance, eta=1.0, evaluations=7)
    state = tx.init(W)
    assert_same(state.importance, jax.tree.map(jnp.square, W))
    assert optim.gradient_evaluations(state) == 7
    _, after = tx.update(W, state, W)
    assert_same(after, state)
    assert len(asked) == 1


# --- cost ------------------------------------------------------------------------------------------------------------


def test_the_cost_of_a_chain_is_the_sum_of_its_parts_however_nested():
    inner = optax.chain(
        optim.fisher_trace(0.25, every=2), optim.anchor(IMPORTANCE, 2.0, evaluations=5)
    )
    tx = optax.chain(optim.sam(0.5), inner, optax.sgd(0.1, momentum=0.5))
    state, seen = tx.init(W), []
    for _ in range(3):
        _, state = tx.update(jax.grad(bowl)(W), state, W, **EXTRA)
        seen.append(int(optim.gradient_evaluations(state)))
    assert seen == [5 + 1, 5 + 2 + 3, 5 + 3 + 3]
    assert optim.gradient_evaluations(optax.sgd(0.1).init(W)) == 0


# --- masks -----------------------------------------------------------------------------------------------------------

MASKS = jnp.array([1.0, 0.6, 0.5])
LOWER = 0.8 * np.exp(-0.5)  # μ(1)


def test_projected_step_of_masks_by_hand():
    """O24: the subgradient at m = 1 is 0, where that of `jnp.abs` would give 0.905."""
    tx = optax.chain(optim.l1_to_one(0.1), optax.sgd(0.05), optim.project(LOWER, 1.0))
    updates, _ = tx.update(jnp.array([2.0, -4.0, 10.0]), tx.init(MASKS), MASKS)
    np.testing.assert_allclose(
        optax.apply_updates(MASKS, updates), [0.9, 0.805, 0.485225], rtol=1e-6
    )


def test_subgradient_of_the_distance_to_one():
    masks = jnp.array([1.0, 1.0 - 1e-7, 0.0, 1.5])
    tx = optim.l1_to_one(0.1)
    grads = jnp.array([-0.0, 1.0, 1.0, 1.0])
    got, _ = tx.update(grads, tx.init(masks), masks)
    np.testing.assert_array_equal(got, np.float32([0, 0.9, 0.9, 1.1]))


def test_momentum_is_not_reset_at_a_bound():
    """What comes before the projection keeps its state, so a mask leaves its bound late."""
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), optim.project(0.0, 1.0))
    mask = jnp.array(1.0)
    state, seen = tx.init(mask), []
    for grad in (-2.0, 1.0, 1.0):  # b = −2, −0.8, 0.28
        updates, state = tx.update(jnp.array(grad), state, mask)
        mask = optax.apply_updates(mask, updates)
        seen.append(float(mask))
    assert seen == pytest.approx([1.0, 1.0, 0.972])


NAMES = (
    "sgd", "adam", "adamw", "amsgrad", "adamax", "adamaxw", "adan", "nadam", "nadamw", "adabelief", "adadelta",
    "adagrad", "adafactor", "fromage", "lamb", "lars", "lion", "novograd", "optimistic_gradient_descent",
    "radam", "rmsprop", "rprop", "sign_sgd", "sm3", "yogi",
)  # fmt: skip
OPTIMIZERS = {
    **{name: getattr(optax, name)(0.5) for name in NAMES if hasattr(optax, name)},
    "momentum": optax.sgd(0.5, momentum=0.9),
    "nesterov": optax.sgd(0.5, momentum=0.9, nesterov=True),
}


@quick_jit
def after_two_steps(value, grads, low, high):
    """The value under every optimizer after each of two steps, applied where it was computed and elsewhere."""
    results = {}
    for name, optimizer in OPTIMIZERS.items():
        tx = optax.chain(optimizer, optim.project(low, high))
        at, state = value, tx.init(value)
        for number, grad in enumerate(grads):
            updates, state = tx.update(grad, state, at)
            results[name, str(number)] = (at, updates, optax.apply_updates(at, updates))
            at = results[name, str(number)][2]
    return results


def boxes(dtype):
    """A box that may be as small as one number, and a value in it."""
    size = 4
    numbers = st.floats(-4, 4, width=32).map(lambda x: 0.0 if abs(x) < 1e-6 else x)
    spread = st.sampled_from([0.0, 1e-7, 1e-6, 1e-3, 0.3, 3.0])
    places = hnp.arrays(np.float32, size, elements=st.floats(0, 1, width=32))

    def box(parts):
        low, width, place = (part.astype(dtype) for part in parts)
        high = (low + width).astype(dtype)
        return low, high, np.clip(low + place * width, low, high).astype(dtype)

    arrays = (hnp.arrays(np.float32, size, elements=elements) for elements in (numbers, spread))
    return st.tuples(*arrays, places).map(box)


GRADIENTS = hnp.arrays(np.float32, (2, 4), elements=st.floats(-100, 100, width=32))


def assert_inside(result, low, high):
    for name, (at, updates, after) in result.items():
        assert updates.dtype == at.dtype
        for reached in (np.asarray(after), np.asarray(at) + np.asarray(updates)):
            assert ((reached >= low) & (reached <= high)).all(), (name, at, updates, reached)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@given(data=st.data(), grads=GRADIENTS)
@few
def test_every_optimizer_of_optax_stays_in_the_box_to_the_bit(dtype, data, grads):
    low, high, value = data.draw(boxes(dtype))
    assert_inside(after_two_steps(value, grads.astype(dtype), low, high), low, high)


@quick_jit
def one_projection(value, update, low, high):
    updates, _ = optim.project(low, high).update(update, optax.EmptyState(), value)
    return {"": (value, updates, optax.apply_updates(value, updates))}


@given(
    box=boxes(np.float32),
    update=hnp.arrays(np.float32, 4, elements=st.floats(width=32, allow_nan=False)),
)
@few
def test_any_update_is_put_into_the_box(box, update):
    """Infinite ones too."""
    low, high, value = box
    assert_inside(one_projection(value, update, low, high), low, high)


@given(value=hnp.arrays(np.float32, 4, elements=st.floats(-3, 3, width=32)), update=GRADIENTS)
@few
def test_a_value_outside_comes_in_with_the_first_step(value, update):
    low, high = np.full(4, 0.3, np.float32), np.full(4, 0.9, np.float32)
    assert_inside(one_projection(value, update[0], low, high), low, high)


def test_steps_inside_the_box_are_left_as_they_are():
    masks, update = jnp.array([0.5, 0.75]), jnp.array([0.25, -0.125])
    assert_same(optim.project(0.0, 1.0).update(update, optax.EmptyState(), masks)[0], update)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (0.0, {"x": {"a": 1.0, "b": 2.0}, "y": 3.0}),  # a number and a tree
        (
            {"x": 0.0, "y": np.zeros(2, np.float32)},
            {"x": {"a": np.float32([1, 1]), "b": 2.0}, "y": 3.0},
        ),  # a prefix
    ],
)
def test_bounds_are_numbers_trees_or_prefixes_of_trees(lower, upper):
    params = {"x": {"a": jnp.zeros(2), "b": jnp.ones(())}, "y": jnp.ones(2)}
    for sign, expected in ((1, (1.0, 2.0, 3.0)), (-1, (0.0, 0.0, 0.0))):
        far = jax.tree.map(lambda x, sign=sign: jnp.full_like(x, sign * 10), params)
        updates, _ = optim.project(lower, upper).update(far, optax.EmptyState(), params)
        after = optax.apply_updates(params, updates)
        np.testing.assert_array_equal(after["x"]["a"], [expected[0]] * 2)
        assert after["x"]["b"] == expected[1]
        np.testing.assert_array_equal(after["y"], [expected[2]] * 2)


# --- together --------------------------------------------------------------------------------------------------------

EXTRA = {"grad_fn": jax.grad(bowl), "trace_grad_fn": jax.grad(quartic)}


def step(tx, start=None):
    updates, _ = tx.update(jax.grad(bowl)(W), tx.init(W if start is None else start), W, **EXTRA)
    return optax.apply_updates(W, updates)


START = jax.tree.map(lambda x: x + 0.5, W)


def test_sam_first_then_the_penalties_is_the_step_by_hand():
    tx = optax.chain(
        optim.sam(0.5),
        optim.fisher_trace(0.25, every=1),
        optim.anchor(IMPORTANCE, 2.0),
        optax.sgd(0.1),
    )
    grads = jax.grad(bowl)(W)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    worst = jax.grad(bowl)(jax.tree.map(lambda w, g: w + 0.5 * g / norm, W, grads))

    def by_hand(w, g, start, weight):
        return w - 0.1 * (g + 0.25 * 4 * w**3 + 2 * weight * (w - start))

    assert_close(step(tx, START), jax.tree.map(by_hand, W, worst, START, IMPORTANCE))


def test_sam_discards_the_penalties_before_it_but_not_their_effect_on_its_perturbation():
    """Before SAM a penalty is not added to the gradient; it only turns the direction of the perturbation."""
    before = step(optax.chain(optim.fisher_trace(0.25, every=1), optim.sam(0.5), optax.sgd(0.1)))
    turned = jax.tree.map(lambda w, g: g + w**3, W, jax.grad(bowl)(W))
    epsilon = optim.perturbation(turned, W, 0.5)
    worst = jax.grad(bowl)(optax.apply_updates(W, epsilon))
    assert_close(before, jax.tree.map(lambda w, g: w - 0.1 * g, W, worst))
    without = step(optax.chain(optim.fisher_trace(0.25, every=1), optim.sam(0.0), optax.sgd(0.1)))
    assert_same(without, step(optax.chain(optim.sam(0.0), optax.sgd(0.1))))


def test_penalties_go_into_momentum():
    tx = optax.chain(optim.fisher_trace(1.0, every=2), optax.sgd(1.0, momentum=0.5))
    state, seen = tx.init(jnp.array(0.0)), []
    for _ in range(4):
        updates, state = tx.update(
            jnp.array(1.0), state, jnp.array(0.0), trace_grad_fn=jnp.ones_like
        )
        seen.append(float(updates))
    assert seen == [-1.0, -2.5, -2.25, -3.125]
