"""The Fisher trace and its diagonal against closed forms, enumeration, loops and finite differences."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import quick_jit

from bdjax.curvature import fisher
from bdjax.curvature.chunks import accumulate

KEY = jax.random.key(0)
X = jnp.array([1.0, 2.0])
ROWS = jnp.array([[1.0, 2.0], [3.0, -1.0], [0.0, 4.0]])


def softmax_loss(weight, example):
    """−log p(y|x) of the linear softmax with logits Wx; its gradient is (p − e_y) xᵀ."""
    x, label = example
    return -jax.nn.log_softmax(weight @ x)[label]


def linear_loss(weight, x):
    """A loss whose gradient is the example itself."""
    return weight @ x


def weight_for(logits):
    """W with WX = logits."""
    return jnp.outer(jnp.array(logits), X) / (X @ X)


@functools.partial(quick_jit, static_argnames="estimator")
def softmax_trace(weight, examples, estimator):
    return fisher.trace(softmax_loss, weight, examples, estimator=estimator)


def trace_at(logits, labels, estimator="per_sample"):
    labels = jnp.array(labels)
    return softmax_trace(weight_for(logits), (jnp.tile(X, (labels.size, 1)), labels), estimator)


# --- closed forms (O8) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [0, 1])
def test_uniform_over_two_classes(label):
    assert float(trace_at([0.0, 0.0], [label])) == pytest.approx(2.5)


@pytest.mark.parametrize(("label", "expected"), [(0, 0.9003057), (1, 5.1054306), (2, 6.6524096)])
def test_linear_softmax(label, expected):
    """‖e_y − p‖² ‖x‖²."""
    assert float(trace_at([1.0, 0.0, -1.0], [label])) == pytest.approx(expected, rel=1e-6)


TRUE = 2.4472847  # (1 − Σ p²) ‖x‖²


def test_true_fisher_is_the_mean_over_the_models_own_labels():
    p = jax.nn.softmax(jnp.array([1.0, 0.0, -1.0]))
    enumerated = sum(p[label] * trace_at([1.0, 0.0, -1.0], [label]) for label in range(3))
    assert float(enumerated) == pytest.approx(TRUE, rel=1e-6)


def test_sampled_labels_are_the_models_own():
    """Each label as often as it is likely, so that the trace is that of the true Fisher up to sampling error."""
    logits = jnp.array([1.0, 0.0, -1.0])
    labels = fisher.sampled_labels(KEY, jnp.tile(logits, (20_000, 1)))
    frequency = np.bincount(labels, minlength=3) / labels.size
    # Three standard deviations
    np.testing.assert_allclose(frequency, jax.nn.softmax(logits), atol=0.012)
    per_label = [float(trace_at([1.0, 0.0, -1.0], [label])) for label in range(3)]
    assert frequency @ per_label == pytest.approx(TRUE, abs=0.05)
    np.testing.assert_array_equal(labels, fisher.sampled_labels(KEY, jnp.tile(logits, (20_000, 1))))


def test_opposite_labels_of_one_image_cancel_in_the_batch_gradient_only():
    """At p = ½ the mean gradient vanishes, and so does what squares it; no example's does."""
    assert float(trace_at([0.0, 0.0], [0, 1])) == pytest.approx(2.5)
    assert float(trace_at([0.0, 0.0], [0, 1], estimator="batch_sq")) == 0
    diagonal = fisher.diagonal(
        softmax_loss, weight_for([0.0, 0.0]), (jnp.tile(X, (2, 1)), jnp.array([0, 1]))
    )
    np.testing.assert_allclose(diagonal, [[0.25, 1.0], [0.25, 1.0]])


def test_estimators_of_known_gradients():
    """The mean of ‖g‖² is 31/3, and ‖mean g‖² is 41/9."""
    weight = jnp.zeros(2)
    assert float(fisher.trace(linear_loss, weight, ROWS)) == pytest.approx(31 / 3)
    assert float(fisher.trace(linear_loss, weight, ROWS, estimator="batch_sq")) == pytest.approx(
        41 / 9
    )
    np.testing.assert_allclose(fisher.diagonal(linear_loss, weight, ROWS), [10 / 3, 7])


# --- random signs ----------------------------------------------------------------------------------------------------


def over_all_signs(monkeypatch, rows: int, function):
    """Return the function's results under each of the 2ⁿ sign vectors, stacked."""

    def one(signs):
        monkeypatch.setattr(
            jax.random, "rademacher", lambda key, shape, dtype: signs.astype(dtype).reshape(shape)
        )
        return function()

    return quick_jit(jax.vmap(one))(jnp.array(list(itertools.product([-1.0, 1.0], repeat=rows))))


def test_signs_average_out_exactly(monkeypatch):
    """E r_i r_j = [i = j]."""
    sketches = over_all_signs(
        monkeypatch,
        3,
        lambda: fisher.trace(linear_loss, jnp.zeros(2), ROWS, estimator="sign_sketch", key=KEY),
    )
    assert len(sketches) == 8
    assert len(np.unique(sketches)) == 4  # a sign in common changes nothing
    assert float(sketches.mean()) == pytest.approx(31 / 3, rel=1e-6)


def test_one_draw_of_signs(monkeypatch):
    draws = [
        float(
            fisher.trace(
                linear_loss, jnp.zeros(2), ROWS, estimator="sign_sketch", key=jax.random.key(seed)
            )
        )
        for seed in range(8)
    ]
    signs = np.array(list(itertools.product([-1, 1], repeat=3)))
    possible = np.square(signs @ np.asarray(ROWS)).sum(1) / 3
    assert all(np.isclose(draw, possible).any() for draw in draws)
    assert len(set(draws)) > 1


# --- a network with a hidden layer -----------------------------------------------------------------------------------


def tanh_loss(params, example):
    x, label = example
    return -jax.nn.log_softmax(jnp.tanh(x @ params["w"] + params["b"]) @ params["v"])[label]


def network(rows: int):
    """Parameters and as many examples, in the default precision."""
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.normal(size=shape))
        for name, shape in {"w": (2, 3), "b": 3, "v": (3, 3)}.items()
    }
    return params, (jnp.asarray(rng.normal(size=(rows, 2))), jnp.asarray(rng.integers(0, 3, rows)))


VALID = jnp.array([True, True, False, True, True, False, True])


def gradients(params, examples):
    """The gradient of each example, one after another."""
    x, label = examples
    return [jax.grad(tanh_loss)(params, (x[i], label[i])) for i in np.flatnonzero(VALID)]


def squared(tree) -> float:
    return float(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(tree)))


@pytest.fixture(scope="module")
def looped():
    params, examples = network(7)
    return gradients(params, examples)


CHUNKS = (3, 100)  # 3 does not divide 7


@pytest.fixture(scope="module")
def chunked():
    """Trace, its gradient and the diagonal, of the valid rows, for every size of a chunk."""
    params, examples = network(7)

    def all_of(params, examples):
        def one(chunk):
            options = {"valid": VALID, "chunk": chunk}
            trace = jax.value_and_grad(lambda p: fisher.trace(tanh_loss, p, examples, **options))(
                params
            )
            return trace, fisher.diagonal(tanh_loss, params, examples, **options)

        return {chunk: one(chunk) for chunk in CHUNKS}

    return quick_jit(all_of)(params, examples)


def assert_close(got, expected, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), got, expected)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_trace_and_diagonal_are_a_loop_over_the_valid_rows_for_any_chunk(chunk, chunked, looped):
    (trace, grads), diagonal = chunked[chunk]
    assert float(trace) == pytest.approx(np.mean([squared(grad) for grad in looped]), rel=1e-5)
    assert_close(diagonal, jax.tree.map(lambda *g: np.square(g).mean(0), *looped))
    assert sum(leaf.sum() for leaf in jax.tree.leaves(diagonal)) == pytest.approx(
        float(trace), rel=1e-5
    )
    assert_close(grads, chunked[100][0][1])


def test_batch_sq_is_the_square_of_the_mean_over_the_valid_rows(looped):
    params, examples = network(7)
    got = fisher.trace(tanh_loss, params, examples, estimator="batch_sq", valid=VALID)
    mean = jax.tree.map(lambda *g: np.mean(g, 0), *looped)
    assert float(got) == pytest.approx(squared(mean), rel=1e-5)


def test_signs_average_to_the_exact_trace_and_its_gradient(monkeypatch, chunked):
    """Over all 2ᴮ signs; those of rows that do not count are multiplied by zero."""
    params, examples = network(7)
    (exact, exact_grad), _ = chunked[100]

    def sketch():
        options = {"estimator": "sign_sketch", "key": KEY, "valid": VALID}
        return jax.value_and_grad(lambda p: fisher.trace(tanh_loss, p, examples, **options))(params)

    values, grads = over_all_signs(monkeypatch, 7, sketch)
    assert float(values.mean()) == pytest.approx(float(exact), rel=1e-5)
    assert_close(jax.tree.map(lambda g: g.mean(0), grads), exact_grad, rtol=1e-4)


@pytest.mark.parametrize("estimator", fisher.ESTIMATORS)
def test_gradient_of_an_estimate_by_finite_differences(estimator):
    """In double precision, along two directions."""
    with jax.enable_x64(True):
        params, examples = network(5)
        valid = jnp.array([True, True, False, True, True])

        @quick_jit
        @jax.value_and_grad
        def estimate(params):
            return fisher.trace(
                tanh_loss, params, examples, estimator=estimator, key=KEY, valid=valid, chunk=2
            )

        grads = estimate(params)[1]
        for seed in (1, 2):
            rng = np.random.default_rng(seed)
            direction = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape), params)
            up, down = (
                jax.tree.map(lambda x, d, h=h: x + h * d, params, direction) for h in (1e-5, -1e-5)
            )
            slope = sum(
                jnp.vdot(g, d)
                for g, d in zip(*map(jax.tree.leaves, (grads, direction)), strict=True)
            )
            assert float((estimate(up)[0] - estimate(down)[0]) / 2e-5) == pytest.approx(
                float(slope), rel=1e-6
            )


@pytest.mark.parametrize("estimator", fisher.ESTIMATORS)
def test_the_gradient_of_the_trace_is_its_derivative(estimator):
    """The Hessian-vector product against reverse over reverse, with rows that do not count and a ragged chunk."""
    params, examples = network(7)
    options = {"estimator": estimator, "key": jax.random.key(0), "valid": VALID, "chunk": 3}
    expected = jax.jit(jax.grad(lambda at: fisher.trace(tanh_loss, at, examples, **options)))(
        params
    )
    got = jax.jit(lambda at: fisher.trace_gradient(tanh_loss, at, examples, **options))(params)
    assert_close(got, expected)
    assert squared(got) > 1e-6


def shapes(jaxpr) -> set[tuple[int, ...]]:
    """The shapes of all arrays in a traced program and in the programs inside it."""
    found = {var.aval.shape for eqn in jaxpr.eqns for var in eqn.outvars}
    for eqn in jaxpr.eqns:
        for value in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(value, "jaxpr", value)
            found |= shapes(inner) if hasattr(inner, "eqns") else set()
    return found


@pytest.mark.parametrize("what", ["trace", "its gradient", "diagonal"])
def test_the_gradients_of_one_chunk_at_most_are_in_memory(what):
    """Of 12 examples in chunks of 3, no array holds twelve times a weight."""
    params, examples = network(12)

    def trace(params):
        return fisher.trace(tanh_loss, params, examples, chunk=3)

    def diagonal(params):
        return fisher.diagonal(tanh_loss, params, examples, chunk=3)

    function = {"trace": trace, "its gradient": jax.grad(trace), "diagonal": diagonal}[what]
    held = shapes(jax.make_jaxpr(function)(params).jaxpr)
    assert (3, 2, 3) in held  # the gradients of w of a chunk
    assert not {(12, 2, 3), (4, 3, 2, 3), (12, 3, 3), (4, 3, 3, 3)} & held


def test_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="'sign_sketch' needs a key"):
        fisher.trace(linear_loss, jnp.zeros(2), ROWS, estimator="sign_sketch")
    with pytest.raises(ValueError, match="one of per_sample, sign_sketch, batch_sq; got 'exact'"):
        fisher.trace(linear_loss, jnp.zeros(2), ROWS, estimator="exact")


def test_no_valid_row_gives_zero():
    for estimator in fisher.ESTIMATORS:
        none = jnp.zeros(3, bool)
        assert (
            fisher.trace(linear_loss, jnp.ones(2), ROWS, estimator=estimator, key=KEY, valid=none)
            == 0
        )
    np.testing.assert_array_equal(
        fisher.diagonal(linear_loss, jnp.ones(2), ROWS, valid=none), [0, 0]
    )


# --- sums over chunks ------------------------------------------------------------------------------------------------


@functools.partial(quick_jit, static_argnames="chunk")
def sums(examples, valid, chunk):
    def function(some, weight):
        assert weight.shape == some["x"].shape == some["y"].shape[:1]
        rows = (weight.sum(), jnp.sum(weight * some["x"]), jnp.einsum("n,ni->i", weight, some["y"]))
        return {"rows": rows, "count": jnp.sum(weight > 0), "largest": jnp.int32(weight.shape[0])}

    return accumulate(function, examples, chunk=chunk, valid=valid)


@given(st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_accumulated_chunks_are_the_sum_over_the_valid_rows(data):
    rows, chunk = data.draw(st.sampled_from([1, 4, 7])), data.draw(st.sampled_from([1, 3, 4, 9]))
    numbers = st.lists(st.integers(-1000, 1000), min_size=rows, max_size=rows)
    valid = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    x, y = np.array(data.draw(numbers), np.float32), np.array(data.draw(numbers), np.int32)
    got = sums({"x": x, "y": np.stack([y, 2 * y], 1)}, jnp.asarray(valid), chunk)
    total = y[valid].sum()
    assert (got["rows"][0], got["rows"][1], *got["rows"][2]) == (
        valid.sum(),
        x[valid].sum(),
        total,
        2 * total,
    )
    assert got["count"].dtype == jnp.int32
    assert got["count"] == valid.sum()
    assert got["largest"] == -(-rows // min(chunk, rows)) * min(chunk, rows)


def test_all_rows_count_unless_told_otherwise():
    x = jnp.arange(5.0)
    assert accumulate(lambda x, weight: weight @ x, x, chunk=2) == 10
