"""What a loop tells and returns: the report of each epoch, the result, and the two ways to end before the last."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

from bdjax.train import blame
from bdjax.types import Learner, Variables


class Diverged(RuntimeError):
    """The loss or a parameter is no longer finite; the last good checkpoint is kept."""


class Stopped(RuntimeError):
    """The run was asked to stop; what it had done is saved."""


class Epoch(NamedTuple):
    """One epoch's report, as Python numbers."""

    epoch: int
    loss: float
    accuracy: float
    gradient_evaluations: int
    seconds: float  # without compiling
    compile_seconds: float


class GroupEpoch(NamedTuple):
    """One epoch's report of several points at once: their numbers in order, and the seconds of all together."""

    epoch: int
    loss: list[float]
    accuracy: list[float]
    gradient_evaluations: list[int]
    seconds: float
    compile_seconds: float

    def of(self, index: int) -> Epoch:
        """Return the report of one point; its seconds are its share."""
        points = len(self.loss)
        return Epoch(
            self.epoch,
            self.loss[index],
            self.accuracy[index],
            self.gradient_evaluations[index],
            self.seconds / points,
            self.compile_seconds / points,
        )

    def mean(self) -> Epoch:
        """Return the means over the points that are finite, and the gradient evaluations and seconds of all."""
        alive = [index for index, loss in enumerate(self.loss) if math.isfinite(loss)]
        loss = statistics.fmean(self.loss[index] for index in alive)
        accuracy = statistics.fmean(self.accuracy[index] for index in alive)
        evaluations = sum(self.gradient_evaluations)
        return Epoch(self.epoch, loss, accuracy, evaluations, self.seconds, self.compile_seconds)


Row = TypeVar("Row", Epoch, GroupEpoch)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a learner made; the figures count the epochs before an interruption too."""

    variables: Variables
    history: list[Epoch]

    @property
    def compile_seconds(self) -> float:
        """Seconds of tracing and compiling, in no other figure."""
        return sum((row.compile_seconds for row in self.history), 0.0)

    @property
    def run_seconds(self) -> float:
        """Wall seconds of all epochs without compiling."""
        return sum((row.seconds for row in self.history), 0.0)

    @property
    def gradient_evaluations(self) -> int:
        """Forward and backward passes over a batch, in all."""
        return sum(row.gradient_evaluations for row in self.history)


def diverged(epoch: int, epochs: int, learner: Learner, kept: str = "") -> Diverged:
    """Return the exception of a state that is not finite after an epoch, with what may be to blame.

    Args:
      epoch, epochs: which one, and how many there were to be.
      learner: whose hyper-parameters are named; of several points, stacked.
      kept: what is said of the last good checkpoint.
    """
    reason = f"the loss is not finite after epoch {epoch} of {epochs}"
    return Diverged(f"{reason}: lower {blame.to_lower(learner)}{kept}")


def plain(history: Iterable[Epoch | GroupEpoch]) -> list[dict[str, Any]]:
    """Return a history as JSON takes it."""
    return [row._asdict() for row in history]
