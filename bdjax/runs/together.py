"""How one stage of many runs, or of many victims, is trained together: one program for a group of points."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from bdjax.checks import InputError, integer
from bdjax.files.atomic import Plain
from bdjax.runs.config import Config
from bdjax.runs.execution import Execution
from bdjax.runs.folder import GroupFolder, GroupStage
from bdjax.runs.inputs import Fingerprint
from bdjax.runs.plans import Plan
from bdjax.runs.run import mark_diverged
from bdjax.runs.trainer import Outcome, Work
from bdjax.train import checkpoints, group, loop
from bdjax.train.checkpoints import Checkpoints, Owner
from bdjax.train.group import Point
from bdjax.types import Model


@dataclasses.dataclass(frozen=True)
class Sharing:
    """How points share programs and devices: what may change a sweep's speed and memory, but results only in rounding.

    Attributes:
      form: of `bdjax.train.group.run`, or ``auto``: what is fastest in a few steps.
      devices: how many devices there are for points, and for their batches.
      batch_devices: how many of them share the batches of each point.
      at_once: most points in one program.
    """

    form: str = group.AUTO
    devices: int = 1
    batch_devices: int = 1
    at_once: int = 32

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        if self.form != group.AUTO:
            group.check_form(self.form)
        integer(1, at_once=self.at_once, devices=self.devices, batch_devices=self.batch_devices)
        if self.devices % self.batch_devices:
            raise InputError(
                f"batch_devices must divide devices = {self.devices}; got {self.batch_devices}."
            )


class Together:
    """Trains the members of a group together, with `bdjax.train.group.run`.

    A point that diverges leaves the others as they are.

    Args:
      execution: how, and where to.
      sharing: how the points share programs and devices.
      folder: of the group.
      members: the names of all members, runs or victims, and the fingerprints of their data.
      of_victims: whether the members are victims.
    """

    def __init__(
        self,
        execution: Execution,
        sharing: Sharing,
        folder: GroupFolder,
        members: Mapping[str, Fingerprint],
        of_victims: bool = False,
    ):
        self._execution = execution
        self._sharing = sharing
        self._folder = folder
        self._members = dict[str, Fingerprint | None](members)
        self._of_victims = of_victims
        self._is_begun = False

    def train(self, works: Iterable[Work], stage: int) -> list[Outcome]:
        """Train a stage of all; save each where a run of its own would.

        Raises:
          bdjax.train.loop.Stopped: `Execution.should_stop` said so; a later call continues.
        """
        each, points = [], []
        for work in works:
            points.append(_point(work))
            # The one on the device may be given up
            each.append(work._replace(split=points[-1].split))
        if not self._is_begun:
            self._folder.begin(self._members)
            self._is_begun = True
        what = "victims" if self._of_victims else f"× {each[0].label}"
        place = self._folder.stage(None if self._of_victims else stage)
        owner = {"group": place.path.relative_to(self._execution.out).as_posix()}
        owner["members"] = checkpoints.digest((), json.dumps([work.owner for work in each]))[:16]
        label = f"{len(points)} {what}"
        outcomes, how = self._train(points, each[0].model, label, place, owner)
        found = []
        for work, point, outcome in zip(each, points, outcomes, strict=True):
            if isinstance(outcome, group.Trained):
                _save(work, outcome)
                outcome = outcome.result(point, work.model)
            found.append(Outcome(outcome, how))
        return found

    def give_up(self, plan: Plan, reason: loop.Diverged, *, victim: bool) -> None:
        """Write down that a run has no result, or that its victim has none, so that nobody tries again."""
        config = plan.config
        own = self._execution.runs.victim(config.victim_id)
        if victim and own.diverged() is None and not own.is_trained(config.victim_epochs):
            own.write_diverged(str(reason))
        if self._of_victims:
            return
        self._members[config.run_id] = None  # the group is of the others
        mark(config, self._execution, f"of the victim, {reason}" if victim else str(reason))

    def _train(
        self,
        points: Sequence[Point],
        model: Model,
        label: str,
        place: GroupStage,
        owner: Owner,
    ) -> tuple[list[group.Trained | loop.Diverged], Plain]:
        """Train points and tell how it was done."""
        execution, sharing, epochs = self._execution, self._sharing, points[0].learner.epochs
        devices = min(sharing.devices, len(points) * sharing.batch_devices)
        mesh = group.point_mesh(devices, sharing.batch_devices)
        choice = self._choice(place, points, model, mesh)
        options: dict[str, Any] = {}
        if execution.on_epoch is not None:
            options["on_epoch"] = functools.partial(execution.on_epoch, label, epochs)
        with contextlib.ExitStack() as stack:
            if epochs:
                kept = Checkpoints(place.checkpoints, execution.checkpoint_seconds, owner)
                options["checkpoints"] = stack.enter_context(kept)
            outcomes = group.run(
                points,
                model,
                form=choice.form,
                mesh=mesh,
                should_stop=execution.should_stop,
                prepare=execution.prepare,
                unroll=1 if isinstance(execution.unroll, str) else execution.unroll,
                **options,
            )
        return outcomes, {**choice._asdict(), "points": len(points), "devices": devices}

    def _choice(
        self, place: GroupStage, points: Sequence[Point], model: Model, mesh: Mesh | None
    ) -> group.Choice:
        """Return the form: as asked, as chosen when the group was begun, or as chosen now."""
        if self._sharing.form != group.AUTO:
            return group.Choice(self._sharing.form, {})
        if (earlier := place.form()) is not None:
            return group.Choice(group.check_form(earlier["form"]), earlier["seconds"])
        choice = group.choose(points, model, mesh)
        place.write_form(choice._asdict())
        return choice


def mark(config: Config, execution: Execution, reason: str) -> None:
    """Write the record of a run that has no result, unless it has ended."""
    if not execution.runs.run(config.run_id).has_ended():
        mark_diverged(config, execution.out, reason)


def _point(work: Work) -> Point:
    split = loop.valid_rows(jax.device_get(work.split))
    return Point(work.key, work.learner, work.variables, split)


def _save(work: Work, trained: group.Trained) -> None:
    """Save a point's last state where a run of its own would, unless that was done before a kill."""
    if not work.learner.epochs:
        return
    with Checkpoints(work.folder.path, owner=work.owner, every=0.0) as its_own:
        epoch = len(trained.history)
        if its_own.epoch == epoch:
            its_own.restore(trained.kept)  # refuses one that belongs to another
        else:
            history = [row._asdict() for row in trained.history]
            its_own.save(epoch, trained.kept, history, force=True)
