"""How the rows of an epoch become batches: evenly, in one shape."""

from __future__ import annotations

import functools
import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from bdjax.checks import InputError
from bdjax.data import splits
from bdjax.devices import hosts
from bdjax.types import Learner, Split

_log = logging.getLogger(__name__)


class Batches(NamedTuple):
    """What an epoch's key decides before an image is seen."""

    step_key: Key[Array, ""]
    index: Int[Array, "steps size"]  # the rows of each batch
    # False on the row that fills up a smaller batch; None if all are whole
    filled: Bool[Array, "steps size"] | None


class Shape(NamedTuple):
    """The steps of an epoch, and the rows of its largest batch."""

    steps: int
    size: int


def shape(batch_size: int | None, rows: int, *, drop_last: bool = False) -> Shape:
    """Divide rows into ⌈rows / batch_size⌉ batches as even as can be, so that no batch has two rows less than another.

    A last batch of what is left over would take as large a step as the others and move the running statistics as far,
    however few its rows: 98 and 2 images end elsewhere than 50 and 50.

    Args:
      batch_size: most rows of a batch; None, or more than there are, is all of them.
      rows: how many there are.
      drop_last: leave out what is left over instead: ⌊rows / batch_size⌋ batches of exactly that size. Where not one
        can be filled, nothing is left out.
    """
    most = batch_size or rows
    if drop_last and most <= rows:
        return Shape(rows // most, most)
    steps = max(1, -(-rows // most))
    return Shape(steps, -(-rows // steps))


def of_learner(learner: Learner, rows: int) -> Shape:
    """Return the shape of a learner's epoch over so many rows."""
    return shape(learner.batch_size, rows, drop_last=learner.drop_last)


def draw(key: Key[Array, ""], learner: Learner, rows: int) -> Batches:
    """Return the batches of an epoch over so many rows, in a fresh random order. A pure function.

    They follow one another in that order. The last ones may have a row less than the others; what fills them up is a
    row of another batch, which does not count.
    """
    order_key, step_key = jax.random.split(key)
    steps, size = of_learner(learner, rows)
    order = jax.random.permutation(order_key, rows)
    short = steps * size - rows
    if short <= 0:  # without padding the network needs no mask
        return Batches(step_key, order[: steps * size].reshape(steps, size), None)
    number, place = jnp.arange(steps)[:, None], jnp.arange(size)
    whole = steps - short
    index = order[(number * size - jnp.maximum(number - whole, 0) + place) % rows]
    return Batches(step_key, index, (place < size - 1) | (number < whole))


def rows_of(split: Split) -> int:
    """Return how many rows a split has, whatever a row's input and label are; outside a step."""
    return split.valid.shape[0]


def valid_rows(split: Split) -> Split:
    """Return the rows that count."""
    valid = np.asarray(split.valid)
    return split if valid.all() else splits.take(split, np.flatnonzero(valid))


def check(learner: Learner, split: Split, name: str = "split") -> None:
    """Refuse to feed nothing.

    Raises:
      InputError: there are epochs to run, and no row is valid.
    """
    if learner.epochs and not count(split):
        raise InputError(f"{name} must have at least 1 image to train on, got 0.")


def tell(learner: Learner, split: Split, name: str = "batch_size") -> None:
    """Warn, once in a process, of a batch size that there are too few images for, under the option's name."""
    fed, size = count(split), learner.batch_size
    if learner.epochs and size is not None and size > fed > 0 and hosts.is_first():
        _tell(name, size, fed)


@functools.cache
def _tell(name: str, size: int, rows: int) -> None:
    words = "%s = %d is more than the %d images there are: each step takes all of them."
    _log.warning(words, name, size, rows)


def fed(learner: Learner, split: Split) -> int | None:
    """Return the rows of the largest batch that a learner is fed; None if it has no epochs."""
    return of_learner(learner, count(split)).size if learner.epochs else None


def count(split: Split) -> int:
    """Return how many rows are fed."""
    return int(np.asarray(split.valid).sum())
