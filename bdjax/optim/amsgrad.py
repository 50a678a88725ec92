"""Adam with AMSGrad exactly as PyTorch's."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bdjax.checks import below_one
from bdjax.optim._checks import check_each
from bdjax.types import HParam

_EPS = 1e-8


def scale_by_amsgrad(b1: HParam = 0.9, b2: HParam = 0.999) -> optax.GradientTransformation:
    """Divide the mean gradient by the root of the largest mean square so far.

    The largest is taken before the correction for the start, as PyTorch does. `optax.scale_by_amsgrad` takes it after
    that, and its steps are smaller from the second on.

    Args:
      b1: decay of the mean of the gradients, in [0, 1).
      b2: of the mean of their squares, in [0, 1).

    Raises:
      InputError: a value out of range.

    Example:

      >>> import jax.numpy as jnp
      >>> tx = scale_by_amsgrad()
      >>> state = tx.init(jnp.zeros(()))
      >>> _, state = tx.update(jnp.array(1.0), state)
      >>> print(f"{tx.update(jnp.array(0.1), state)[0]:.4f}")
      0.7408
    """

    check_each(below_one, b1=b1, b2=b2)

    def init(params: optax.Params) -> optax.ScaleByAmsgradState:
        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(3)]
        return optax.ScaleByAmsgradState(jnp.int32(0), *zeros)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAmsgradState]:
        del params
        count = state.count + 1
        mu = jax.tree.map(functools.partial(_moved, b1), state.mu, updates)
        squares = jax.tree.map(jnp.square, updates)
        nu = jax.tree.map(functools.partial(_moved, b2), state.nu, squares)
        largest = jax.tree.map(jnp.maximum, state.nu_max, nu)

        def scaled(mean: Any, square: Any) -> Any:
            step = mean / (1 - b1**count) / (jnp.sqrt(square / (1 - b2**count)) + _EPS)
            return step.astype(mean.dtype)

        scaled_updates = jax.tree.map(scaled, mu, largest)
        return scaled_updates, optax.ScaleByAmsgradState(count, mu, nu, largest)

    return optax.GradientTransformation(init, update)


def _moved(decay: HParam, mean: Any, value: Any) -> Any:
    return (decay * mean + (1 - decay) * value).astype(mean.dtype)
