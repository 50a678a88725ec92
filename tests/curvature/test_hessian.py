"""Curvature of losses whose Hessian is a known matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.checks import InputError
from bdjax.curvature import hessian

KEY = jax.random.key(0)
MATRIX = jnp.array([[2.0, 1.0], [1.0, 3.0]])
EIGENVALUES = [1.381966, 3.618034]


def quadratic(matrix):
    """Return a loss whose Hessian is the matrix, or has the vector as its diagonal."""
    matrix = jnp.asarray(matrix, jnp.float32)
    return lambda x: 0.5 * x @ (matrix @ x if matrix.ndim == 2 else matrix * x)


def test_power_iteration_finds_the_largest_eigenvalue():
    found = hessian.largest_eigenvalue(KEY, quadratic(MATRIX), jnp.ones(2), tolerance=1e-8)
    assert found.converged
    assert found.value == pytest.approx(EIGENVALUES[1], rel=1e-6)
    assert found.residual <= 1e-4 * found.value


def test_a_negative_eigenvalue_keeps_its_sign():
    found = hessian.largest_eigenvalue(KEY, quadratic([1.0, -4.0, 2.0]), jnp.ones(3))
    assert found.converged
    assert found.value == pytest.approx(-4, rel=2e-3)


def test_eigenvalues_that_differ_only_in_sign_do_not_converge():
    found = hessian.largest_eigenvalue(KEY, quadratic([1.0, -1.0]), jnp.ones(2))
    assert (int(found.iterations), bool(found.converged)) == (100, False)


def test_no_curvature_and_no_number():
    flat = hessian.largest_eigenvalue(KEY, quadratic(jnp.zeros(3)), jnp.ones(3))
    assert (float(flat.value), bool(flat.converged)) == (0.0, True)
    broken = hessian.largest_eigenvalue(KEY, quadratic([jnp.nan, 1.0]), jnp.ones(2))
    assert np.isnan(broken.value)
    assert not broken.converged


def test_hutchinson_draws_seven_and_three():
    found = hessian.trace(KEY, quadratic(MATRIX), jnp.ones(2), draws=400)
    np.testing.assert_allclose(np.unique(np.round(found.draws, 4)), [3, 7])
    assert found.mean == pytest.approx(5, abs=4 * 0.1)
    assert found.error == pytest.approx(np.std(np.asarray(found.draws), ddof=1) / 20, rel=1e-5)


def test_hutchinson_is_exact_on_a_diagonal():
    found = hessian.trace(KEY, quadratic([1.0, -4.0, 2.5]), jnp.ones(3), draws=1)
    assert found.mean == pytest.approx(-0.5)
    assert np.isnan(found.error)


def test_lanczos_from_ones():
    diagonal, beside = hessian._tridiagonal(lambda v: MATRIX @ v, jnp.ones(2), 2)
    np.testing.assert_allclose(diagonal, [3.5, 1.5], rtol=1e-6)
    np.testing.assert_allclose(beside, [0.5, 0], atol=1e-6)
    nodes, weights = hessian.spectral_density(KEY, quadratic(MATRIX), jnp.ones(2), steps=9)
    np.testing.assert_allclose(nodes[0], EIGENVALUES, rtol=1e-6)
    np.testing.assert_allclose(np.sort(weights[0]), [0.0527864, 0.9472136], rtol=1e-5)


def test_quadrature_on_a_diagonal_gives_each_eigenvalue_its_share():
    spectrum = hessian.spectral_density(
        KEY, quadratic([5.0, -3.0, 1.0, 0.5]), jnp.ones(4), steps=4, starts=2
    )
    np.testing.assert_allclose(spectrum.nodes, [[-3, 0.5, 1, 5]] * 2, rtol=1e-5)
    np.testing.assert_allclose(spectrum.weights, np.full((2, 4), 1 / 8), rtol=1e-4)


@pytest.mark.parametrize(
    ("diagonal", "shares"),
    [([1.0, 1, 5, -3, 0, 0, 0, 0], {-3: 1, 0: 4, 1: 2, 5: 1}), ([0.0] * 8, {0: 8})],
)
def test_an_exhausted_space_adds_no_eigenvalue(diagonal, shares):
    nodes, weights = hessian.spectral_density(KEY, quadratic(diagonal), jnp.ones(8), steps=8)
    found = {value: float(weights[jnp.abs(nodes - value) < 1e-4].sum()) for value in shares}
    assert found == pytest.approx({value: count / 8 for value, count in shares.items()}, abs=1e-5)


def test_smoothing_puts_a_bump_at_each_node():
    spectrum = hessian.Spectrum(jnp.array([[-1.0, 3.0]]), jnp.array([[0.25, 0.75]]))
    grid, density = hessian.smoothed(spectrum, points=2001, padding=0.2, variance=1e-4)
    width = grid[1] - grid[0]
    assert (float(grid[0]), float(grid[-1])) == pytest.approx((-1.2, 3.2))
    assert density.sum() * width == pytest.approx(1, rel=1e-5)
    assert density[grid < 1].sum() * width == pytest.approx(0.25, rel=1e-4)
    assert np.sqrt((density * width) @ (grid - 2) ** 2) == pytest.approx(np.sqrt(3), rel=1e-3)


@pytest.mark.parametrize("call", [hessian.trace, hessian.spectral_density])
def test_counts_below_one_are_refused(call):
    name = {"trace": "draws", "spectral_density": "steps"}[call.__name__]
    with pytest.raises(InputError, match=f"{name} must be 1 or more, got 0"):
        call(KEY, quadratic(MATRIX), jnp.ones(2), **{name: 0})
