"""A spring to where one started, stiffer where it matters, as an optax gradient transformation."""

from __future__ import annotations

from typing import Any

import jax
import jax.core
import numpy as np
import optax

from bdjax.checks import InputError, non_negative
from bdjax.optim._checks import each, trees_alike
from bdjax.optim._masks import is_masked
from bdjax.types import HParam


def anchor(reference: Any, importance: Any, eta: HParam) -> optax.GradientTransformation:
    """Add the gradient of (η/2) Σ_i F̄_i (θ_i − θ̄_i)², which is η F̄ ⊙ (θ − θ̄).

    Order: after `sam`; before weight decay and momentum.

    Args:
      reference: θ̄, a tree like the parameters.
      importance: F̄ ≥ 0, a tree like the parameters: `bdjax.curvature.fisher.diagonal` at θ̄, say.
      eta: weight η ≥ 0; may be traced.

    Inside `optax.masked` and `optax.partition` the other parameters are left alone.

    Raises:
      InputError: a weight below 0 or no number, or trees of different shapes.

    Example:

      >>> import jax.numpy as jnp
      >>> from bdjax import optim
      >>> tx = optim.anchor(jnp.array([1.0, 1.0]), jnp.array([0.0, 2.0]), eta=3.0)
      >>> params, grads = jnp.array([1.5, 1.5]), jnp.zeros(2)
      >>> tx.update(grads, tx.init(params), params)[0].tolist()
      [0.0, 3.0]

    References:
      SFT paper (Karim et al.), the clean-accuracy retainer L_r, eq. 6, η_r = 5.
    """

    each(non_negative, eta=eta)
    trees_alike(reference=reference, importance=importance)
    for leaf in jax.tree.leaves(importance):
        if not isinstance(leaf, jax.core.Tracer) and not np.all(np.isfinite(leaf) & (np.asarray(leaf) >= 0)):
            raise InputError("importance must be finite and 0 or more everywhere.")

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        if params is None:
            raise ValueError("optim.anchor needs params: call update(grads, state, params).")

        def pulled(u: Any, w: Any, start: Any, weight: Any) -> Any:
            return u if is_masked(u) else (u + eta * weight * (w - start)).astype(u.dtype)

        return jax.tree.map(pulled, updates, params, reference, importance, is_leaf=is_masked)

    return optax.stateless(update)
