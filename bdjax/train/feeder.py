"""A feeder: what of a run depends on where its data are. `bdjax.train.loop` drives each in the same way."""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

from bdjax.train.programs import Summary
from bdjax.train.results import Epoch, GroupEpoch
from bdjax.types import Learner, LearnerState

Row_co = TypeVar("Row_co", Epoch, GroupEpoch, covariant=True)


@runtime_checkable
class Feeder(Protocol[Row_co]):
    """Takes the state of a learner, or of several at once, through the epochs of its data.

    There is `bdjax.train.resident.Resident` for data that live on the device, `bdjax.train.streamed.Streamed` for
    inputs that are read as they are needed, and `bdjax.train.grouped.Grouped` for several points in one program.
    """

    @property
    def learner(self) -> Learner:
        """Who is fed; of several points, stacked."""
        ...

    @property
    def most(self) -> int:
        """How many epochs a call takes at most."""
        ...

    @property
    def row(self) -> type[Row_co]:
        """What an epoch's report is."""
        ...

    def init(self) -> LearnerState:
        """Return the state before the first epoch, where `advance` expects it."""
        ...

    def advance(self, numbers: range, state: LearnerState) -> tuple[LearnerState, Summary]:
        """Take epochs in a row, and return the next state and a summary of each.

        Args:
          numbers: of the epochs, from 0.
          state: which is consumed.

        Returns:
          The state, and summaries in the first rows of arrays that may be longer.
        """
        ...

    def keep(self, state: LearnerState) -> LearnerState:
        """Return the part of a state that is saved."""
        ...

    def like(self) -> LearnerState:
        """Return the shapes and types of that part, computing nothing."""
        ...

    def restore(self, kept: LearnerState) -> LearnerState:
        """Return the state of which that was kept, where `advance` expects it."""
        ...

    def close(self) -> None:
        """Let go of what was begun."""
        ...
