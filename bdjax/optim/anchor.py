"""A spring to where one started, stiffer where it matters, as an optax gradient transformation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from bdjax.checks import InputError, integer, non_negative
from bdjax.optim._checks import check_each, trees_alike
from bdjax.optim._masks import is_masked
from bdjax.types import HParam


class AnchorState(NamedTuple):
    """Where the parameters started, how much each matters there, and what it cost to find out."""

    reference: optax.Params
    importance: optax.Params
    gradient_evaluations: Int[Array, ""]


def anchor(
    importance: optax.Params | Callable[[optax.Params], optax.Params],
    eta: HParam,
    *,
    evaluations: int | Int[Array, ""] = 0,
) -> optax.GradientTransformation:
    """Add the gradient of (η/2) Σ_i F̄_i (θ_i − θ̄_i)², which is η F̄ ⊙ (θ − θ̄).

    The reference θ̄ is the parameters that ``init`` is given; the state holds a copy of it, and of F̄.

    Order: after `sam`; before weight decay and momentum. Inside `optax.masked` and `optax.partition`
    the other parameters are left alone.

    Args:
      importance: F̄ ≥ 0, a tree like the parameters; or a function from the parameters to one, called
        once, by ``init``: `bdjax.curvature.fisher.diagonal` on some examples, say.
      eta: weight η ≥ 0; may be traced.
      evaluations: the gradient evaluations that such a function takes, for
        `bdjax.optim.gradient_evaluations`.

    Raises:
      InputError: a number out of range, or an importance that is negative or not finite; from
        ``init``, one of other shapes than the parameters.

    Example:

      >>> import jax.numpy as jnp
      >>> from bdjax import optim
      >>> tx = optim.anchor(jnp.array([0.0, 2.0]), eta=3.0)
      >>> state = tx.init(jnp.array([1.0, 1.0]))
      >>> tx.update(jnp.zeros(2), state, jnp.array([1.5, 1.5]))[0].tolist()
      [0.0, 3.0]

    References:
      SFT paper (Karim et al.), the clean-accuracy retainer L_r, eq. 6, η_r = 5.
    """

    check_each(non_negative, eta=eta)
    check_each(functools.partial(integer, 0), evaluations=evaluations)
    if not callable(importance):
        _refuse_negative(importance)

    def init(params: optax.Params) -> AnchorState:
        found = importance(params) if callable(importance) else importance
        reference = jax.tree.map(jnp.array, params)  # a copy, as the parameters may be given away
        return AnchorState(reference, _of_visible(found, params), jnp.int32(evaluations))

    def update(
        updates: optax.Updates, state: AnchorState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AnchorState]:
        if params is None:
            raise ValueError("optim.anchor needs params: call update(grads, state, params).")

        def pulled(u: Any, w: Any, start: Any, weight: Any) -> Any:
            return u if is_masked(u) else (u + eta * weight * (w - start)).astype(u.dtype)

        reference, weights = state.reference, state.importance
        return jax.tree.map(pulled, updates, params, reference, weights, is_leaf=is_masked), state

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _refuse_negative(importance: Any) -> None:
    for leaf in jax.tree.leaves(importance):
        if isinstance(leaf, jax.core.Tracer):
            continue
        if not np.all(np.isfinite(leaf) & (np.asarray(leaf) >= 0)):
            raise InputError("importance must be finite and 0 or more everywhere.")


def _of_visible(importance: Any, params: Any) -> Any:
    """Return the importance without that of the parameters that `optax.masked` hides.

    Raises:
      InputError: it is no tree like the parameters.
    """

    def visible(param: Any, weight: Any) -> Any:
        return param if is_masked(param) else weight

    try:
        found = jax.tree.map(visible, params, importance, is_leaf=is_masked)
    except ValueError:  # the trees differ, as is said here
        found = importance
    trees_alike(params=params, importance=found)
    return found
