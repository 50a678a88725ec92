"""Curvature of a loss around given parameters: eigenvalues, trace and spectral density of the Hessian.

`largest_eigenvalue`, `trace` and `spectral_density` take any ``loss_fn(params) -> scalar``. They are pure functions of
a key, need only Hessian-vector products, and hold a few vectors as long as the parameters (`spectral_density` one a
step).

Matrix products run at precision "highest": the noise of TF32 is enough to keep an iteration from ever settling on a
flat loss. The tridiagonalization is written out here because that of matfree 0.6 goes on when the Krylov space is
exhausted, as that of a Hessian of low rank soon is: it then returns eigenvalues beyond the true ones, or NaN.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Key

from bdjax.checks import integer
from bdjax.types import HParam, Params

_ROUNDING = 16  # a Lanczos vector shorter than this many rounding errors of what it is left over from is no direction

Loss: TypeAlias = Callable[[Params], Float[Array, ""]]
P = ParamSpec("P")
R = TypeVar("R")


class Eigenvalue(NamedTuple):
    """An approximate eigenvalue: some eigenvalue lies within ``residual`` = ‖Hv − λv‖ of ``value`` = λ, ‖v‖ = 1."""

    value: Float[Array, ""]
    residual: Float[Array, ""]
    iterations: Int[Array, ""]
    converged: Bool[Array, ""]


class Trace(NamedTuple):
    """An estimated trace: the mean of the draws and its standard error, which a single draw does not have (NaN)."""

    mean: Float[Array, ""]
    error: Float[Array, ""]
    draws: Float[Array, " n"]


class Spectrum(NamedTuple):
    """A discrete approximation of a spectrum: nodes, and weights that sum to one over all starts."""

    nodes: Float[Array, "starts steps"]
    weights: Float[Array, "starts steps"]


def _precise(function: Callable[P, R]) -> Callable[P, R]:
    """Trace a function with matrix products and convolutions at full precision."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return call


@_precise
def hessian_vector_product(loss_fn: Loss, params: Params, vector: Params) -> Params:
    """Return H v, H = ∇² loss_fn(params): the directional derivative of the gradient (forward over reverse).

    It costs about two gradients. The reverse pass comes first, so a function with a rule for it alone
    (`jax.custom_vjp`) is no obstacle. ``vector`` has the structure of ``params``.

    >>> import jax.numpy as jnp
    >>> hessian_vector_product(lambda x: x[0] ** 2 * x[1], jnp.array([1.0, 3.0]), jnp.array([1.0, 0.0])).tolist()
    [6.0, 2.0]
    """
    return jax.jvp(jax.grad(loss_fn), (params,), (vector,))[1]


@_precise
def largest_eigenvalue(
    key: Key[Array, ""],
    loss_fn: Loss,
    params: Params,
    *,
    iterations: HParam = 100,
    tolerance: HParam = 1e-3,
) -> Eigenvalue:
    """Return the eigenvalue of largest magnitude of the Hessian, with its sign, by power iteration.

    From a normal vector, v ← Hv / ‖Hv‖ and λ = vᵀHv, until ‖Hv − λv‖² ≤ tolerance · λ² or for ``iterations`` products.
    With q = |λ₂ / λ₁| the relative error of λ is then about tolerance / (1 − q), near that of PyHessian's rule
    |Δλ| < tolerance · |λ| (Yao et al., 2020), which this replaces because that one also stops, at a meaningless number,
    where two eigenvalues differ only in their sign. Such a pair never converges here. A Hessian of zeros has λ = 0.

    Both keywords may be traced. A loss that is not finite gives NaN, not converged.
    """
    multiply, start = _operator(loss_fn, params)

    def unsettled(state: tuple[Array, Eigenvalue]) -> Array:
        _, found = state
        # False for NaN
        return (found.iterations < iterations) & (found.residual > limit(found.value))

    def limit(value: Array) -> Array:
        return jnp.sqrt(tolerance) * jnp.abs(value)

    def step(state: tuple[Array, Eigenvalue]) -> tuple[Array, Eigenvalue]:
        vector, found = state
        image = multiply(vector)
        value = vector @ image
        residual = jnp.linalg.norm(image - value * vector)
        settled = residual <= limit(value)
        return _unit(image), Eigenvalue(value, residual, found.iterations + 1, settled)

    vector = _unit(jax.random.normal(key, start.shape, start.dtype))
    zero = jnp.zeros((), start.dtype)
    nothing = Eigenvalue(zero, zero + jnp.inf, jnp.int32(0), jnp.bool_(False))
    return jax.lax.while_loop(unsettled, step, (vector, nothing))[1]


@_precise
def trace(key: Key[Array, ""], loss_fn: Loss, params: Params, *, draws: int = 100) -> Trace:
    """Estimate Tr(H) by the mean of vᵀHv over Rademacher vectors v (Hutchinson, 1990).

    Unbiased; exact with one draw where H is diagonal. The number of draws is fixed, where PyHessian stops once the
    running mean moves little, which biases it.

    Raises:
      InputError: ``draws`` below 1.
    """
    integer(1, draws=draws)
    multiply, start = _operator(loss_fn, params)

    def draw(key: Key[Array, ""]) -> Array:
        vector = jax.random.rademacher(key, start.shape, start.dtype)
        return vector @ multiply(vector)

    values = jax.lax.map(draw, jax.random.split(key, draws))
    error = jnp.full_like(values[0], jnp.nan)
    if draws > 1:
        error = values.std(ddof=1) / math.sqrt(draws)
    return Trace(values.mean(), error, values)


@_precise
def spectral_density(
    key: Key[Array, ""], loss_fn: Loss, params: Params, *, steps: int = 100, starts: int = 1
) -> Spectrum:
    """Approximate the density of H's eigenvalues by stochastic Lanczos quadrature (Golub and Meurant, 2010).

    For each of ``starts`` Rademacher vectors, ``steps`` Lanczos steps with full reorthogonalization (at most as many as
    there are parameters) give the Ritz values as nodes and the squared first components of their eigenvectors as
    weights. With as many steps as parameters the nodes are the eigenvalues. Once the Krylov space is exhausted what is
    left are nodes at 0 that weigh nothing. Holds ``steps`` vectors as long as the parameters: 100 steps on 11 million
    parameters take 4.5 GB.

    Raises:
      InputError: ``steps`` or ``starts`` below 1.
    """
    integer(1, steps=steps, starts=starts)
    multiply, like = _operator(loss_fn, params)

    def quadrature(key: Key[Array, ""]) -> tuple[Array, Array]:
        start = jax.random.rademacher(key, like.shape, like.dtype)
        diagonal, beside = _tridiagonal(multiply, start, min(steps, like.size))
        matrix = jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
        nodes, vectors = jnp.linalg.eigh(matrix)
        return nodes, vectors[0] ** 2

    nodes, weights = jax.lax.map(quadrature, jax.random.split(key, starts))
    return Spectrum(nodes, weights / weights.sum())


def smoothed(
    spectrum: Spectrum, *, points: int = 10_000, variance: HParam = 1e-5, padding: HParam = 0.01
) -> tuple[Float[Array, " points"], Float[Array, " points"]]:
    """Return a grid and the spectrum's density on it, each node a Gaussian, normalized to unit mass on the grid.

    As PyHessian draws it: the Gaussians' variance is ``variance`` · max(1, range of the nodes), and the grid reaches
    ``padding`` beyond the nodes.

    Raises:
      InputError: fewer than two points.
    """
    integer(2, points=points)
    nodes, weights = spectrum.nodes.ravel(), spectrum.weights.ravel()
    weighty = jnp.where(weights > 0, nodes, nodes[weights.argmax()])
    low, high = weighty.min(), weighty.max()
    grid = jnp.linspace(low - padding, high + padding, points)
    deviation = jnp.sqrt(variance * jnp.maximum(1, high - low))
    height = weights @ jax.scipy.stats.norm.pdf(grid, nodes[:, None], deviation)
    return grid, height / (height.sum() * (grid[1] - grid[0]))


def _operator(loss_fn: Loss, params: Params) -> tuple[Callable[[Array], Array], Array]:
    """Return v ↦ Hv on flat vectors, and the flat parameters."""
    flat, unravel = ravel_pytree(params)
    return functools.partial(hessian_vector_product, lambda at: loss_fn(unravel(at)), flat), flat


def _unit(vector: Array) -> Array:
    """Scale to unit length; zeros stay."""
    length = jnp.linalg.norm(vector)
    return vector / jnp.where(length > 0, length, 1)


def _tridiagonal(
    multiply: Callable[[Array], Array], start: Array, steps: int
) -> tuple[Array, Array]:
    """Take Lanczos steps from a vector; return the diagonal and, shifted by one, what stands beside it.

    Each new vector is made orthogonal to all earlier ones, twice. One that is rounding error and nothing else becomes
    zero, and all that follow with it.
    """

    def step(
        state: tuple[Array, Array, Array], number: Array
    ) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        basis, vector, scale = state
        basis = basis.at[number].set(vector)
        image = multiply(vector)
        along = vector @ image
        scale = jnp.maximum(scale, jnp.linalg.norm(image))
        for _ in range(2):
            image = image - (basis @ image) @ basis
        length = jnp.linalg.norm(image)
        length = jnp.where(length > _ROUNDING * jnp.finfo(image.dtype).eps * scale, length, 0)
        vector = jnp.where(length > 0, image / jnp.where(length > 0, length, 1), 0)
        return (basis, vector, scale), (along, length)

    basis = jnp.zeros((steps, start.size), start.dtype)
    init = (basis, _unit(start), jnp.zeros((), start.dtype))
    return jax.lax.scan(step, init, jnp.arange(steps))[1]
