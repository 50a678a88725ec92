"""How one stage of a run is trained, of the attacker or of the defense: by itself here, with others in a sweep."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Key

from bdjax.data.streams import Stream
from bdjax.devices import hosts, sharding
from bdjax.runs.execution import Execution
from bdjax.runs.folder import LoopFolder
from bdjax.runs.plans import Plan
from bdjax.train import loop, unrolling
from bdjax.train.checkpoints import Checkpoints, Owner
from bdjax.train.feeder import Feeder
from bdjax.train.resident import Resident
from bdjax.train.streamed import Streamed
from bdjax.types import Learner, Model, Split, Variables


class Work(NamedTuple):
    """One stage to be trained: what `bdjax.train.loop.run` is given, and where it is saved as whose."""

    key: Key[Array, ""]
    learner: Learner
    model: Model
    variables: Variables
    split: Split  # on the device, on the host, or a stream
    label: str
    folder: LoopFolder
    owner: Owner
    on_variables: Callable[[int, Callable[[], Variables]], None] | None = None


class Outcome(NamedTuple):
    """What became of a stage, and how it was computed if that was with others."""

    result: loop.Result | loop.Diverged
    how: dict[str, Any] | None = None


class Trainer(Protocol):
    """Trains the same stage of one run, or of several, and is told which have no result."""

    def train(self, works: Iterable[Work], stage: int) -> list[Outcome]:
        """Train a stage of each."""
        ...

    def give_up(self, plan: Plan, reason: loop.Diverged, *, victim: bool) -> None:
        """Take note that a run, or all runs of its victim, have no result: what was trained has diverged."""
        ...


class Alone:
    """Trains a run by itself, with `bdjax.train.loop.of_one`, from a device or from a stream."""

    def __init__(self, execution: Execution):
        self._execution = execution

    def train(self, works: Iterable[Work], stage: int) -> list[Outcome]:
        """Train a stage of one run after another.

        Raises:
          bdjax.train.loop.Stopped: `Execution.should_stop` said so; a later call continues.
          bdjax.train.loop.Diverged: a loss was not finite; the last good checkpoint is kept.
        """
        return [Outcome(self._train(work)) for work in works]

    def give_up(self, plan: Plan, reason: loop.Diverged, *, victim: bool) -> None:
        """Raise the reason: a run by itself ends there."""
        raise reason

    def _train(self, work: Work) -> loop.Result:
        execution, epochs = self._execution, work.learner.epochs
        on_epoch = None
        if execution.on_epoch is not None:
            on_epoch = functools.partial(execution.on_epoch, work.label, epochs)
        with contextlib.ExitStack() as stack:
            checkpoints = None
            if epochs:
                own = Checkpoints(work.folder.path, execution.checkpoint_seconds, work.owner)
                checkpoints = stack.enter_context(own)
            return loop.of_one(
                self._feeder(work),
                work.model,
                checkpoints=checkpoints,
                on_epoch=on_epoch,
                on_variables=work.on_variables,
                should_stop=execution.should_stop,
            )

    def _feeder(self, work: Work) -> Feeder[loop.Epoch]:
        """Return what feeds the learner, from wherever the data are."""
        execution, learner = self._execution, work.learner
        given = (work.key, learner, work.model, work.variables, work.split)
        mesh = None
        if learner.epochs:
            mesh = sharding.batch_mesh(execution.devices, learner.batch_size)
        if isinstance(work.split.input, Stream):
            return Streamed(*given, mesh=mesh)
        unroll = self._unroll(work) if learner.epochs else 1
        return Resident(*given, mesh=mesh, prepare=execution.prepare, unroll=unroll)

    def _unroll(self, work: Work) -> int:
        """Return how many steps are written out: as asked, as timed when this was begun, or as timed now."""
        execution = self._execution
        if isinstance(execution.unroll, int):
            return execution.unroll

        def choice() -> dict[str, Any]:
            if (earlier := work.folder.unroll()) is not None:
                return earlier
            steps = (work.learner, work.model, work.variables, work.split)
            chosen = unrolling.choose(*steps, execution.prepare)._asdict()
            work.folder.write_unroll(chosen)
            return chosen

        return hosts.from_first(choice)["unroll"]
