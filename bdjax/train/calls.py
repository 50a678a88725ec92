"""The calls of a feeder, one after another: where they go on from, how long they are, and what each reports."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple

import jax
import numpy as np

from bdjax.checks import InputError
from bdjax.devices import compilation
from bdjax.train import pace
from bdjax.train.checkpoints import Checkpoints
from bdjax.train.feeder import Feeder
from bdjax.train.programs import Summary
from bdjax.train.results import Row
from bdjax.types import LearnerState


class Seconds(NamedTuple):
    """What something took: without compiling, and compiling."""

    running: float = 0.0
    compiling: float = 0.0


@dataclasses.dataclass(frozen=True)
class Start(Generic[Row]):
    """Where a loop goes on from."""

    state: LearnerState
    history: list[Row]  # of the epochs that are done
    seconds: Seconds  # that it took to get there, which the next epoch counts as its own


@dataclasses.dataclass(frozen=True)
class Call(Generic[Row]):
    """What one call did."""

    state: LearnerState  # after it; the next call consumes it
    rows: list[Row]  # of its epochs, up to the first after which nothing is finite
    finite: bool  # whether those are all


def begin(feeder: Feeder[Row], checkpoints: Checkpoints | None) -> Start[Row]:
    """Return where to go on from: the newest checkpoint, or the state before the first epoch.

    Raises:
      InputError: the checkpoint is not of this run, or has seen more epochs.
    """
    saved = checkpoints.restore(feeder.like()) if checkpoints is not None else None
    if checkpoints is None or saved is None:
        with _stopwatch() as took:
            state = jax.block_until_ready(feeder.init())
        return Start(state, [], took[0])
    history = [feeder.row(**row) for row in saved.history]
    if len(history) > feeder.learner.epochs:
        seen = f"{len(history)}, which the checkpoint in {checkpoints.folder} has seen"
        raise InputError(f"epochs must be at least {seen}; got {feeder.learner.epochs}.")
    return Start(feeder.restore(saved.state), history, Seconds())


def calls(
    feeder: Feeder[Row],
    start: Start[Row],
    *,
    most: int,
    due_in: Callable[[], float] = lambda: math.inf,
) -> Iterator[Call[Row]]:
    """Advance a state through the epochs that are left, and yield after each call.

    Args:
      feeder: which advances it.
      start: of `begin`; its state is consumed.
      most: epochs that a call takes at most.
      due_in: tells in how many seconds a call should end.
    """
    state, done, before = start.state, len(start.history), start.seconds
    paced = pace.Pace(most)
    while done < feeder.learner.epochs:
        count = paced.next(feeder.learner.epochs - done, due_in())
        with _stopwatch() as took:
            state, summary = feeder.advance(range(done, done + count), state)
            summary = jax.device_get(summary)
        running, compiling = took[0]
        paced.took(count, running)
        seconds = Seconds(running + before.running, compiling + before.compiling)
        rows = _reports(feeder.row, done, count, summary, seconds)
        yield Call(state, rows, finite=len(rows) == count)
        done, before = done + count, Seconds()


def _reports(
    row: type[Row],
    done: int,
    count: int,
    summary: Summary,
    seconds: Seconds,
) -> list[Row]:
    """Return the reports of the epochs of a call, up to the first after which nothing is finite.

    They share its seconds; what it compiled is its first epoch's. The loss of a point that is not finite is not either.
    """
    losses = np.where(summary.finite, summary.loss, np.nan)
    reports = []
    for place in range(count):
        if not np.isfinite(losses[place]).any():
            break
        loss = losses[place].tolist()
        accuracy = np.asarray(summary.accuracy[place]).tolist()
        spent = np.asarray(summary.gradient_evaluations[place]).tolist()
        compiling = 0.0 if place else seconds.compiling
        report = row(done + place + 1, loss, accuracy, spent, seconds.running / count, compiling)
        reports.append(report)
    return reports


@contextlib.contextmanager
def _stopwatch() -> Iterator[list[Seconds]]:
    """Give a list that holds, after the block, what it took."""
    took: list[Seconds] = []
    started = time.perf_counter()
    with compilation.count_seconds() as compiling:
        yield took
    total, compiled = time.perf_counter() - started, sum(compiling, 0.0)
    took.append(Seconds(max(total - compiled, 0.0), min(compiled, total)))
