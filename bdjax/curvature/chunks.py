"""Sums over many examples with few of them in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from bdjax.types import Examples

T = TypeVar("T")  # a tree of arrays


def weighted_sum(
    weight: Float[Array, " n"], values: Num[Array, "n *rest"]
) -> Float[Array, "*rest"]:
    """Return Σ_i weight_i values_i, not as a matrix product, which accelerators round to a few digits."""
    return (weight.reshape(-1, *(1,) * (values.ndim - 1)) * values).sum(0)


def accumulate(
    function: Callable[[Examples, Float[Array, " chunk"]], T],
    examples: Examples,
    *,
    chunk: int,
    valid: Bool[Array, " n"] | None = None,
) -> T:
    """Return Σ function(some examples, their weights) over chunks of the examples, a tree summed leaf by leaf.

    Weights are 1, and 0 for examples that are not ``valid`` and for those that fill up the last chunk, which the
    function must leave out of its sums. Its result for one chunk and the total are all that is kept.

    Args:
      function: of a tree with a leading axis ``chunk`` and of as many weights.
      examples: a tree with a leading axis n.
      chunk: examples at once, at least 1.
      valid: which examples count; None is all of them.
    """
    rows = jax.tree.leaves(examples)[0].shape[0]
    chunk = min(chunk, rows)
    steps = -(-rows // chunk)

    def chunked(x: Array) -> Array:
        padded = jnp.pad(x, ((0, steps * chunk - rows), *((0, 0),) * (x.ndim - 1)))
        return padded.reshape(steps, chunk, *x.shape[1:])

    def add(total: T, inputs: tuple[Examples, Array]) -> tuple[T, None]:
        return jax.tree.map(jnp.add, total, function(*inputs)), None

    weight = jnp.ones(rows) if valid is None else valid.astype(jnp.float32)
    inputs = jax.tree.map(chunked, (examples, weight))
    one = jax.eval_shape(function, *jax.tree.map(lambda x: x[0], inputs))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one)
    return jax.lax.scan(add, zeros, inputs)[0]
