"""Which rows: the defender's holdout, what is left without it, smaller and balanced sets, padding.

Rows decide shapes, so all of this happens on the host, before anything is compiled. The draws come from ``jax.random``
and depend on the key and the labels only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from bdjax import checks
from bdjax.checks import InputError
from bdjax.data.streams import Selection
from bdjax.types import Split, Task

Rows = Int[np.ndarray, " k"]
_OF_ANY_CLASS = "balanced=False (--holdout.balanced false)"


def holdout(
    key: Key[Array, ""],
    split: Split,
    *,
    share: float | None = None,
    per_class: int | None = None,
    balanced: bool = True,
    num_classes: int,
    class_names: Sequence[str] = (),
    group: Int[np.ndarray, " n"] | None = None,
) -> Rows:
    """Draw the defender's clean rows from a clean training split, without replacement; return them in rising order.

    Exactly one of ``share`` and ``per_class`` is given. With n valid rows and c classes:

    * ``share``, balanced: ⌊share·n/c⌋ rows of each class (5 % of CIFAR-10: 250 each; 5 % of GTSRB: 45 each, 1,935 in
      all);
    * ``share``, not balanced: ⌊share·n⌋ rows, whatever their class (5 % of GTSRB: 1,960);
    * ``per_class``: that many of each class.

    A product that is whole but for rounding (0.29·100) counts as whole.

    Args:
      key: decides which rows; the same key and labels give the same rows.
      split: only its ``valid`` rows are drawn.
      share: a number in [0, 1].
      per_class: a whole number of at least 1; it implies ``balanced``.
      balanced: draw the same number of each class.
      num_classes: labels are 0 … num_classes − 1.
      class_names: what a message calls them.
      group: of each row, where rows of one group are near duplicates: groups are then drawn instead of rows, until
        there are enough, and the last of each class in part; what is left of it is in no other place (`whole_groups`).

    Raises:
      InputError: nothing would be drawn, or a class has too few rows: it is named, with what would do.
    """
    label, rows = _shuffled(key, split)
    if group is not None:
        together = _by_first(group[rows])
        label, rows = label[together], rows[together]
    counts = np.bincount(label, minlength=num_classes)
    if share is not None and per_class is None:
        checks.unit_interval(share=share)
        _check_not_empty(share, num_classes if balanced else 1, len(rows))
        if not balanced:
            return np.sort(rows[: _whole(share * len(rows))])
        each = _whole(share * len(rows) / num_classes)
        most = _share(counts.min() * num_classes / len(rows))
        _check_smallest(each, counts, class_names, f"share must be at most {most}", share)
    elif per_class is not None and share is None:
        if not balanced:
            raise InputError("balanced=False has no meaning with per_class; give share instead.")
        checks.integer(1, per_class=per_class)
        each = per_class
        _check_smallest(
            each, counts, class_names, f"per_class must be at most {counts.min()}", per_class
        )
    else:
        given = f"share={share!r} and per_class={per_class!r}"
        raise InputError(f"give exactly one of share and per_class, got {given}.")
    return _first_of_each_class(rows, label, np.full(num_classes, each))


def whole_groups(rows: Rows, group: Int[np.ndarray, " n"]) -> Rows:
    """Return all rows of the groups of which some rows are given, in rising order."""
    return np.flatnonzero(np.isin(group, group[rows]))


def subset(key: Key[Array, ""], split: Split, size: int, *, num_classes: int) -> Rows:
    """Draw ``size`` valid rows, each class in its proportion; return them in rising order.

    Class i gets ⌊size·nᵢ/n⌋ rows, and what is missing to ``size`` goes to the largest remainders, so no class is off
    its proportion by a whole row.

    Raises:
      InputError: ``size`` is not between 1 and the number of valid rows.
    """
    checks.integer(1, size=size)
    label, rows = _shuffled(key, split)
    if size > len(rows):
        raise InputError(f"size must be at most the {len(rows)} images there are, got {size!r}.")
    counts = np.bincount(label, minlength=num_classes)
    quota, remainder = np.divmod(size * counts, len(rows))
    largest = np.argsort(-remainder, kind="stable")[: size - quota.sum()]
    quota[largest] += 1
    return _first_of_each_class(rows, label, quota)


def balanced(key: Key[Array, ""], split: Split, most: int) -> Rows:
    """Draw at most so many valid rows, equally many of each class that has any; return them in rising order.

    With c such classes that is the smaller of ⌊most/c⌋ and the size of the smallest of each; it may be none.

    Raises:
      InputError: ``most`` below 1.
    """
    checks.integer(1, most=most)
    label, rows = _shuffled(key, split)
    counts = np.bincount(label)
    there = counts[counts > 0]
    per_class = min(most // len(there), there.min()) if len(there) else 0
    return _first_of_each_class(rows, label, np.full(len(counts), per_class))


def by_stratum(split: Split, task: Task) -> Split:
    """Return the split with the group of each row, of which a balanced set has equally many, in place of its label."""
    return split._replace(label=np.asarray(task.stratum(split.label)))


def take(split: Split, index: Int[np.ndarray | Array, " k"]) -> Split:
    """Return the rows ``index`` of a split, in that order, as host arrays.

    Raises:
      InputError: a row that is not there.
    """
    index = _checked(split, index)
    return _map(lambda array: array[index], split)


def exclude(split: Split, index: Int[np.ndarray | Array, " k"]) -> Split:
    """Return the rows of a split that are not in ``index``, in their order: what an attacker has without the holdout.

    Images that are read by row stay where they are (`bdjax.data.streams.Selection`).

    Raises:
      InputError: a row that is not there.
    """
    keep = np.ones(len(split.valid), bool)
    keep[_checked(split, index)] = False
    rows = np.flatnonzero(keep)
    return _map(
        lambda array: array[rows] if isinstance(array, np.ndarray) else Selection(array, rows),
        split,
    )


def pad(split: Split, multiple: int) -> Split:
    """Append rows of zeros that are not ``valid`` until the number of rows is a multiple; never more than needed."""
    checks.integer(1, multiple=multiple)
    missing = -len(split.label) % multiple
    if not missing:
        return split

    def padded(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])

    return _map(padded, split)


def _shuffled(key: Key[Array, ""], split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of the valid rows and their row numbers, both in one random order."""
    order = np.asarray(jax.random.permutation(key, len(split.label)))
    rows = order[np.asarray(split.valid)[order]]
    return np.asarray(split.label)[rows], rows


def _by_first(group: np.ndarray) -> np.ndarray:
    """Return the order in which rows of one group stand together, the groups in that of their first rows."""
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    return np.argsort(first[inverse.reshape(-1)], kind="stable")


def _first_of_each_class(rows: np.ndarray, label: np.ndarray, quota: np.ndarray) -> Rows:
    chosen = [rows[label == name][:number] for name, number in enumerate(quota)]
    return np.sort(np.concatenate([rows[:0], *chosen]))


def _whole(number: float) -> int:
    return math.floor(number + 1e-9)


def _check_not_empty(share: float, classes: int, rows: int) -> None:
    """Refuse a share of so many rows that is less than an image of each of so many classes."""
    if not rows:
        raise InputError("share cannot draw from a split without images.")
    if rows < classes:
        remedy = f"with {_OF_ANY_CLASS} it draws images whatever their class"
        raise InputError(
            f"share cannot draw an image of each of {classes} classes from {rows}; {remedy}."
        )
    if _whole(share * rows / classes) < 1:
        each = "" if classes == 1 else f" of each of {classes} classes"
        least = _share(classes / rows)
        one = f"one image{each} from {rows}"
        raise InputError(f"share must be at least {least}, which is {one}; got {share!r}.")


def _check_smallest(
    each: int, counts: np.ndarray, class_names: Sequence[str], bound: str, got: float
) -> None:
    """Refuse to draw more of each class than the smallest has."""
    number, least = int(counts.argmin()), int(counts.min())
    if each <= least:
        return
    name = f"class {class_names[number]!r}" if class_names else f"class {number}"
    remedy = f"a share with {_OF_ANY_CLASS} draws images whatever their class"
    if not least:
        why = f"as {name} has none"
        raise InputError(f"{bound.split()[0]} cannot draw images of each class, {why}; {remedy}.")
    short = f"{name} has only {least} of the {each} images that are wanted of each class"
    raise InputError(f"{bound}: {short}; got {got!r}; {remedy}.")


def _share(number: float) -> float:
    """Return a share with few digits that draws as much as this one; above, as `_whole` rounds down."""
    return math.ceil(number * 1e6 - 1e-6) / 1e6


def _checked(split: Split, index: Any) -> np.ndarray:
    index = np.asarray(index)
    outside = index[(index < 0) | (index >= len(split.valid))]
    if outside.size:
        last = len(split.valid) - 1
        raise InputError(f"row {outside[0]} is not there: the split has rows 0 to {last}.")
    return index


def _map(function: Any, split: Split) -> Split:
    """Apply a function to every array, on the host; an input or a label may be a tree of them."""

    def mapped(array: Any) -> Any:
        return function(np.asarray(array) if isinstance(array, jax.Array) else array)

    return jax.tree.map(mapped, split)
