"""The part of a holdout that is kept aside, to stop or to choose by; on the device, as batches are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bdjax.checks import InputError

# Of a few images, a bound such as a tenth of the accuracy is often met exactly, which float32 must not undo.
ROUNDING = 1e-6


def count(rows: int, share: float, num_classes: int) -> int:
    """Return how many of so many examples are kept aside: max(1, ⌊share · n / C⌋) of each of C classes.

    Raises:
      InputError: nothing would be left.
    """
    size = num_classes * max(1, int(share * rows / num_classes + 1e-9))
    if size >= rows:
        raise InputError(f"the holdout must have more than {size} images, the part that is kept aside; got {rows}.")
    return size


def keep_aside(examples: Any, label: Int[Array, " n"], share: float, num_classes: int) -> tuple[Any, Any]:
    """Divide examples into the rest and the `count` that are kept aside, as many of each of the C classes.

    Which of a class is decided by the order. Where a class has too few, others give more, so that both sizes depend on
    n alone: what is aside are the first rows in the order of their number within their class.

    Args:
      examples: a tree with a leading axis n.
      label: their classes.
      share: of the examples, in [0, 1).
      num_classes: C.

    Raises:
      InputError: nothing would be left.
    """
    size = count(label.shape[0], share, num_classes)
    of_class = label[:, None] == jnp.arange(num_classes)
    number = jnp.take_along_axis(jnp.cumsum(of_class, axis=0), label[:, None], axis=1)[:, 0]
    order = jnp.argsort(number, stable=True)
    return jax.tree.map(lambda x: x[order[size:]], examples), jax.tree.map(lambda x: x[order[:size]], examples)
