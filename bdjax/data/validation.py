"""The validation part of a holdout, to stop or to choose by; on the device, as batches are."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bdjax.checks import InputError

# Of a few images, a bound such as a tenth of the accuracy is often met exactly, which float32 must not undo.
ROUNDING = 1e-6
T = TypeVar("T")  # a tree of arrays with a leading axis n


def validation_size(rows: int, share: float, num_classes: int) -> int:
    """Return how many of n examples are for validation: max(1, ⌊share · n / C⌋) of each of C classes.

    Raises:
      InputError: nothing would be left.
    """
    size = num_classes * max(1, int(share * rows / num_classes + 1e-9))
    if size >= rows:
        part = f"{size} images, the part that is kept aside for validation"
        raise InputError(f"the holdout must have more than {part}; got {rows}.")
    return size


def validation_split(
    examples: T, label: Int[Array, " n"], share: float, num_classes: int
) -> tuple[T, T]:
    """Divide examples into the rest and `validation_size` for validation, as many of each of C classes.

    Which of a class is decided by the order. Where a class has too few, others give more, so that both sizes depend on
    n alone: those for validation are the first rows in the order of their number within their class.

    Args:
      examples: a tree with a leading axis n.
      label: their classes.
      share: of the examples, in [0, 1).
      num_classes: C.

    Raises:
      InputError: nothing would be left.
    """
    size = validation_size(label.shape[0], share, num_classes)
    of_class = label[:, None] == jnp.arange(num_classes)
    number = jnp.take_along_axis(jnp.cumsum(of_class, axis=0), label[:, None], axis=1)[:, 0]
    order = jnp.argsort(number, stable=True)
    rest = jax.tree.map(lambda x: x[order[size:]], examples)
    return rest, jax.tree.map(lambda x: x[order[:size]], examples)
