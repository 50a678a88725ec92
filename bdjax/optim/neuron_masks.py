"""What keeps tuned neuron masks near one and in their box, as optax gradient transformations."""

from __future__ import annotations

import numbers

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array

from bdjax.checks import InputError, non_negative
from bdjax.optim._checks import check_each, not_nan
from bdjax.types import HParam, Tree


def l1_to_one(eta: HParam) -> optax.GradientTransformation:
    """Add the subgradient of η Σ_i |1 − m_i|, which is η sign(m − 1), and 0 at m = 1.

    Order: after `sam`; before momentum.

    Args:
      eta: weight η ≥ 0; may be traced.

    Raises:
      InputError: a weight below 0 or no number.

    Example:

      >>> import jax.numpy as jnp
      >>> from bdjax import optim
      >>> masks = jnp.array([1.0, 0.75])
      >>> tx = optim.l1_to_one(eta=0.5)
      >>> tx.update(jnp.zeros(2), tx.init(masks), masks)[0].tolist()
      [0.0, -0.5]

    References:
      NFT paper (Karim et al.), eq. 6. `jnp.abs` has the derivative 1 at 0, which would push a mask at 1.
    """

    check_each(non_negative, eta=eta)

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        if params is None:
            raise ValueError("optim.l1_to_one needs params: call update(grads, state, params).")
        return jax.tree.map(
            lambda u, m: u + (eta * jnp.sign(m - 1)).astype(u.dtype), updates, params
        )

    return optax.stateless(update)


def project(lower: Tree, upper: Tree) -> optax.GradientTransformation:
    """Change the updates so that params + updates lies in [lower, upper], to the bit.

    Put it last in a chain: it takes the updates as the step that they are. What comes before keeps its state, so
    momentum may hold a value at its bound for some steps.

    Args:
      lower, upper: bounds, trees like the parameters or prefixes of them; a single number bounds everything, and an
        infinite one nothing.

    Raises:
      InputError: a bound that is no number, or two numbers in the wrong order.

    Example:

      >>> import jax, jax.numpy as jnp, optax
      >>> from bdjax import optim
      >>> tx = optax.chain(optax.sgd(1.0), optim.project(0.0, 1.0))
      >>> masks = jnp.array([0.5, 0.75])
      >>> updates, _ = tx.update(jnp.array([2.0, -2.0]), tx.init(masks), masks)
      >>> optax.apply_updates(masks, updates).tolist()
      [0.0, 1.0]
    """
    for name, bound in (("lower", lower), ("upper", upper)):
        for leaf in jax.tree.leaves(bound, is_leaf=lambda x: x is None):
            check_each(not_nan, **{name: leaf})
    if isinstance(lower, numbers.Real) and isinstance(upper, numbers.Real) and lower > upper:
        raise InputError(f"lower must be at most upper, got {lower!r} and {upper!r}.")

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        if params is None:
            raise ValueError("optim.project needs params: call update(updates, state, params).")
        lows, highs = jax.tree.broadcast(lower, params), jax.tree.broadcast(upper, params)
        return jax.tree.map(_into_box, updates, params, lows, highs)

    return optax.stateless(update)


def _into_box(update: Array, value: Array, low: ArrayLike, high: ArrayLike) -> Array:
    low, high = jnp.asarray(low, value.dtype), jnp.asarray(high, value.dtype)
    step = jnp.clip(value + update, low, high) - value
    # The difference is rounded, so value + step can miss the box by the last bit; the next float cannot.
    step = jnp.where(value + step < low, jnp.nextafter(step, jnp.inf), step)
    step = jnp.where(value + step > high, jnp.nextafter(step, -jnp.inf), step)
    return step.astype(update.dtype)
