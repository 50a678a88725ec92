"""A search for the least loss that ends by patience, inside compiled code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Search(NamedTuple):
    """Where a search stands, the best so far, and for how many steps that has been the best."""

    state: Any
    best: Any
    least: Float[Array, ""]
    waited: Int[Array, ""]
    number: Int[Array, ""]
    ended: Bool[Array, ""]


class Step(NamedTuple):
    """What a step of a search returns: the state after it, a candidate with its loss, and whether to end there."""

    state: Any
    candidate: Any
    loss: Float[Array, ""]
    ended: Bool[Array, ""]


def least_loss(
    step: Callable[[Int[Array, ""], Any], Step],
    state: Any,
    best: Any,
    least: Float[Array, ""],
    *,
    most: int,
    patience: int,
) -> Search:
    """Take steps until so many in a row have not lowered the loss, or one says that this is all.

    Args:
      step: takes its number, from 0, and the state.
      state: before the first step.
      best: the candidate before it.
      least: the loss of that.
      most: steps at most.
      patience: steps in a row without a lower loss.
    """

    def unfinished(search: Search) -> Bool[Array, ""]:
        return (search.number < most) & (search.waited < patience) & ~search.ended

    def one(search: Search) -> Search:
        state, candidate, loss, ended = step(search.number, search.state)
        better = loss < search.least
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), candidate, search.best)
        waited = jnp.where(better, 0, search.waited + 1)
        return Search(
            state, best, jnp.where(better, loss, search.least), waited, search.number + 1, ended
        )

    start = Search(state, best, least, jnp.int32(0), jnp.int32(0), jnp.bool_(False))
    return jax.lax.while_loop(unfinished, one, start)
