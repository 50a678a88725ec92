"""The validation part of a holdout, to stop or to choose by; on the device, as batches are."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
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


def grouped_rows(
    label: Int[np.ndarray, " n"], group: Int[np.ndarray, " n"], share: float, num_classes: int
) -> Int[np.ndarray, " k"]:
    """Return the rows for validation where no group may be on both sides: whole groups, the smallest of a class first.

    Of each class they have `validation_size`'s number of rows or more, as whole groups do; its last group is never
    taken, so that a class of one group is in the rest alone.

    Args:
      label: classes.
      group: of each row, within one class.
      share: of the examples, in [0, 1).
      num_classes: C.

    Raises:
      InputError: nothing would be left on one side.
    """
    each = validation_size(len(label), share, num_classes) // num_classes
    taken = [
        _smallest_groups(group, np.flatnonzero(label == name), each) for name in np.unique(label)
    ]
    rows = np.sort(np.concatenate([np.empty(0, np.int64), *taken]))
    if not len(rows):
        why = "no class has two groups of them, such as tracks of one sign"
        raise InputError(f"the holdout must have images for validation; {why}.")
    return rows


def _smallest_groups(group: np.ndarray, rows: np.ndarray, wanted: int) -> np.ndarray:
    names, counts = np.unique(group[rows], return_counts=True)
    order = np.argsort(counts, kind="stable")[:-1]
    enough = np.searchsorted(np.cumsum(counts[order]), wanted) + 1
    return rows[np.isin(group[rows], names[order[:enough]])]
