"""How the steps of an epoch lie in its program: when their batches are made, and how many steps are written out.

It changes the speed. Batches change no bit; steps that are written out let the compiler fuse one with the next, which
rounds otherwise in the last place.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from bdjax.checks import InputError, integer, one_of
from bdjax.devices import placement
from bdjax.types import Learner, PreparedLearner, Split

AUTO, STEP, EPOCH = "auto", "step", "epoch"
PREPARE = (AUTO, STEP, EPOCH)
MOST_STEPS = 64  # that are written out; each is compiled


class Feeding(NamedTuple):
    """What a compiled epoch is told of it; static."""

    prepared: bool = False  # the batches of the whole epoch at once, before its first step
    unroll: int = 1  # steps that are written out one after another in the loop's body


STEPWISE = Feeding()  # everything a step at a time


def check(prepare: str, unroll: int | str) -> None:
    """Refuse words and numbers that say nothing.

    Raises:
      InputError: which one.
    """
    one_of(PREPARE, prepare=prepare)
    if isinstance(unroll, str) and unroll != AUTO:
        raise InputError(f"unroll must be {AUTO} or a whole number; got {unroll!r}.")
    if unroll != AUTO:
        integer(1, MOST_STEPS, unroll=unroll)


def choose(
    prepare: str,
    unroll: int,
    learner: Learner,
    split: Split,
    *,
    points: int = 1,
) -> Feeding:
    """Return how a learner's epochs over a split are fed.

    ``auto`` prepares a whole epoch on an accelerator, where each of the small operations of a batch is a launch that
    the step waits for, if the learner's batches can be and there is room. On a CPU the two took the same time.

    Args:
      prepare: one of `PREPARE`: of a ``step`` or of an ``epoch`` are prepared at once. What a learner does not let
        be prepared (`bdjax.types.PreparedLearner`) is left to the step.
      unroll: steps that are written out.
      learner, split: who is fed, and with what.
      points: how many such runs the device has to hold at once.

    Raises:
      InputError: an unknown word, or no such number.
    """
    check(prepare, unroll)
    if not (isinstance(learner, PreparedLearner) and learner.prepares):
        return Feeding(False, unroll)
    if prepare == AUTO:
        asked = jax.default_backend() != "cpu" and placement.holds_an_epoch(split, points)
    else:
        asked = prepare == EPOCH
    return Feeding(asked, unroll)
