"""What transformations cost in gradients, summed over a chain."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int


def gradient_evaluations(state: optax.OptState) -> Int[Array, ""]:
    """Return the gradient evaluations that a chain has taken, beside the gradients that it was given.

    A state whose transformation takes gradients of its own says how many in its attribute
    ``gradient_evaluations``, as those of `sam`, `fisher_trace` and `anchor` do; other states cost
    nothing.

    Args:
      state: of a transformation, or of a chain of them, however nested.

    Example:

      >>> import jax.numpy as jnp, optax
      >>> from bdjax import optim
      >>> tx = optax.chain(optim.sam(rho=0.5), optax.sgd(0.1))
      >>> state = tx.init(jnp.ones(2))
      >>> _, state = tx.update(jnp.ones(2), state, jnp.ones(2), grad_fn=lambda w: w)
      >>> int(optim.gradient_evaluations(state))
      1
    """
    total = jnp.int32(0)
    for node in jax.tree.leaves(state, is_leaf=_costs):
        if _costs(node):
            total += node.gradient_evaluations
    return total


def _costs(node: Any) -> bool:
    return hasattr(node, "gradient_evaluations")
