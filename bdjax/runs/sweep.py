"""A sweep, told in order: axes → points → groups of victims → groups of runs → records. Many runs, few programs.

Each point is a run of its own, with the name, folder, checkpoints and record that `bdjax.runs.run` would have given it,
within rounding. What is done is not done again, whoever did it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from bdjax.checks import InputError
from bdjax.files import locks
from bdjax.runs import config as configs
from bdjax.runs import inputs, plans, provenance, schema, victim
from bdjax.runs import run as story
from bdjax.runs.at_hand import AtHand
from bdjax.runs.config import Config, DataConfig
from bdjax.runs.execution import Execution
from bdjax.runs.folder import Folder, GroupFolder
from bdjax.runs.plans import Plan
from bdjax.runs.together import Sharing as Sharing
from bdjax.runs.together import Together
from bdjax.sweeps import check_axes
from bdjax.train import group, loop
from bdjax.train.group import Point


def points(values: Mapping[str, Any], axes: Mapping[str, Sequence[str]]) -> list[Config]:
    """Return a config for each combination of the axes, the last one fastest, laid over nested plain values.

    Args:
      values: as for `bdjax.runs.config.resolve`.
      axes: dotted key to words, as on the command line: ``{"defense.rho": ["0.5", "1"], "seed": ["0", "1", "2"]}``.

    Raises:
      InputError: an axis without values or with a repeated one, or a point that is no config.
    """
    check_axes(axes)
    found: dict[str, tuple[str, ...]] = {}
    configured = []
    for words in itertools.product(*axes.values()):
        above = []
        for path, word in zip(axes, words, strict=True):
            above.append(f"--{path}={word}")
        config = configs.resolve(schema.merge(values, schema.overrides(above)))
        if (other := found.setdefault(config.run_id, words)) is not words:
            same = _first_differing(axes, other, words)
            raise InputError(f"the sweep has the same point twice: {same} are one value.")
        configured.append(config)
    return configured


def _first_differing(axes: Iterable[str], one: Sequence[str], other: Sequence[str]) -> str:
    """Write the first axis on which two points have different words, with both."""
    for path, mine, theirs in zip(axes, one, other, strict=True):
        if mine != theirs:
            return f"{path} {mine} and {theirs}"
    raise AssertionError("they are the same words")


def run(wanted: Sequence[Config], execution: Execution, sharing: Sharing) -> list[Config]:
    """Carry out runs and their control rows, and return them all; what is finished is left as it is.

    Runs that differ in numbers alone are one program, victims and each stage of a defense alike. Processes that are
    given the same folder divide the groups among them. A run that diverges gets a record that says so.

    Raises:
      InputError: something asked for cannot be; nothing was compiled.
      bdjax.train.loop.Stopped: as `Execution.should_stop` said, between two groups too; a later call continues.
    """
    group.point_mesh(sharing.devices, sharing.batch_devices)  # are there so many?
    rows = {row.run_id: row for config in wanted for row in story.with_controls(config)}
    sweep = _Sweep(execution, sharing, rows)
    sweep.look_at_data()
    for name in sweep.ended():
        if execution.on_finished is not None:
            execution.on_finished(name)
    if waiting := sweep.waiting():
        sweep.check(waiting)
        sweep.plant({row.victim_id: row for row in waiting})
        sweep.defend({row.run_id: row for row in waiting})
    sweep.tidy()
    return list(rows.values())


class _Kind(NamedTuple):
    """What is worked on in groups, runs or victims: what each is called, and how it is done."""

    known: Mapping[str, Config]  # all of the sweep, by their names
    folder: Callable[[Config], Folder]
    done: Callable[[Config], bool]
    structure: Callable[[Plan], Hashable]  # that a group shares
    work: Callable[[GroupFolder, list[Plan]], None]


class _Sweep:
    """What the steps of a sweep share: where it is carried out, all of its runs, and what is at hand."""

    def __init__(self, execution: Execution, sharing: Sharing, rows: Mapping[str, Config]):
        # A curve of the loss surface is of one run by itself.
        self._execution = dataclasses.replace(execution, smoothness=0)
        self._sharing = sharing
        self._runs = execution.runs
        # How a run is planned, and how a victim is trained that no group has trained.
        devices = sharing.batch_devices
        self._at_hand = AtHand(
            dataclasses.replace(self._execution, devices=devices, data_on="device")
        )
        victims = {row.victim_id: row for row in rows.values()}
        self._of_runs = _Kind(
            known=rows,
            folder=lambda config: self._runs.run(config.run_id),
            done=lambda config: self._runs.run(config.run_id).has_ended(),
            structure=_defense_structure,
            work=self._defend,
        )
        self._of_victims = _Kind(
            known=victims,
            folder=lambda config: self._runs.victim(config.victim_id),
            done=self._is_planted,
            structure=_victim_structure,
            work=self._plant,
        )

    def look_at_data(self) -> None:
        """Refuse runs and victims that were begun with other data than are there now, or set them aside."""
        execution = self._execution
        for kind in (self._of_victims, self._of_runs):
            for row in kind.known.values():
                folder = kind.folder(row)
                if not provenance.is_of_these_data(folder, row, execution.changed):
                    with folder.locked():  # or until another process has done it
                        provenance.begin(
                            folder, row, inputs.load(row), self._runs, execution.changed
                        )

    def ended(self) -> list[str]:
        """Return the names of the runs that have ended."""
        return [name for name, row in self._of_runs.known.items() if self._of_runs.done(row)]

    def waiting(self) -> list[Config]:
        """Return the runs that have not ended, in the order in which they are best worked on."""
        rows = self._of_runs.known.values()
        return _by_victim([row for row in rows if not self._of_runs.done(row)])

    def check(self, waiting: Sequence[Config]) -> None:
        """Plan all runs, so that whatever is wrong with one does not wait for the others."""
        for row in reversed(waiting):
            plans.tell_of_batches(self._at_hand.plan(row))

    def plant(self, victims: Mapping[str, Config]) -> None:
        """Train the victims that nobody has trained yet; one whose attacker trains more than it is left to its runs."""
        items = {}
        for name, row in victims.items():
            if len(self._at_hand.plan(row).stages) == 1:
                items[name] = row
        self._divide(items, self._of_victims._replace(known=items))

    def defend(self, waiting: Mapping[str, Config]) -> None:
        """Carry out the runs whose victims are trained."""
        self._divide(waiting, self._of_runs)

    def tidy(self) -> None:
        """Remove the groups that were killed when all was done but this."""
        for folder in self._runs.groups():
            names = folder.members()
            for kind in (self._of_victims, self._of_runs):
                known = [kind.known[name] for name in names if name in kind.known]
                if names and len(known) == len(names) and all(map(kind.done, known)):
                    folder.remove()

    def _divide(self, items: Mapping[str, Config], kind: _Kind) -> None:
        """Work on the groups that no other process works on, until everything is done."""
        while left := {name: config for name, config in items.items() if not kind.done(config)}:
            worked, others = False, None
            for folder, names in self._groups(left, kind):
                mine = [left[name] for name in names if name in left]
                with locks.claimed(kind.folder(config).path for config in mine) as taken:
                    others = taken or others
                    was_done = any(map(kind.done, mine))  # in the meantime
                    if taken is None and not was_done:
                        self._stop_if_asked()
                        members = [kind.known[name] for name in names]
                        with self._execution.computing(members[0]):  # which all share
                            kind.work(folder, [self._at_hand.plan(config) for config in members])
                        worked = True
            if others is not None and not worked:
                with locks.locked(others):  # until the other process is done, or dead
                    pass

    def _stop_if_asked(self) -> None:
        should_stop = self._execution.should_stop
        if should_stop is not None and should_stop():  # an only epoch asks nobody
            raise loop.Stopped("stopped between two groups")

    def _groups(
        self, left: Mapping[str, Config], kind: _Kind
    ) -> Iterator[tuple[GroupFolder, list[str]]]:
        """Yield the folders and members of groups: first those that a process has begun, which may be no more."""
        fresh = dict(left)
        for folder in self._runs.groups():
            names = folder.members()
            if not set(names) <= kind.known.keys() or fresh.keys().isdisjoint(names):
                continue
            if all(kind.done(kind.known[name]) for name in names if name not in fresh):
                fresh = {name: config for name, config in fresh.items() if name not in names}
                yield folder, names
        alike: dict[Hashable, list[str]] = {}
        for name, config in fresh.items():
            alike.setdefault(kind.structure(self._at_hand.plan(config)), []).append(name)
        for names in alike.values():
            parts = -(-len(names) // self._sharing.at_once)
            size = -(-len(names) // parts)  # parts of one size are one program
            for start in range(0, len(names), size):
                part = names[start : start + size]
                yield self._runs.group(part), part

    def _plant(self, folder: GroupFolder, planned: list[Plan]) -> None:
        """Train a group of victims; each then lies where a run of its own would have left it."""
        for plan in planned:
            own = victim.folder_of(plan, self._execution)
            provenance.begin(own, plan.config, plan.inputs, self._runs, self._execution.changed)
        members = {
            plan.config.victim_id: inputs.of_victim(plan.inputs.fingerprint) for plan in planned
        }
        trainer = Together(self._execution, self._sharing, folder, members, of_victims=True)
        victim.plant(planned, self._execution, trainer)
        folder.remove()

    def _defend(self, folder: GroupFolder, planned: list[Plan]) -> None:
        """Carry out a group of runs and write their records."""
        members = {plan.config.run_id: plan.inputs.fingerprint for plan in planned}
        trainer = Together(self._execution, self._sharing, folder, members)
        there = [plan for plan in planned if self._has_victim(plan, trainer)]
        story.carry_out(there, self._execution, self._at_hand, trainer)
        folder.remove()

    def _has_victim(self, plan: Plan, trainer: Together) -> bool:
        """Say whether a run has a victim, or may have one; one whose victim is known to diverge is marked."""
        config = plan.config
        own = self._runs.victim(config.victim_id)
        reason = own.diverged()
        if reason is None or own.is_trained(config.training["epochs"]):
            return True
        story.begin(plan, self._execution)
        trainer.give_up(plan, loop.Diverged(reason), victim=True)
        return False

    def _is_planted(self, config: Config) -> bool:
        """Whether a victim is trained, or known to diverge."""
        own = self._runs.victim(config.victim_id)
        return own.diverged() is not None or own.is_trained(config.training["epochs"])


def _by_victim(configs: Sequence[Config]) -> list[Config]:
    """Return runs with those of the same data, and among them those of the same victim, side by side.

    Few data sets and few victims are kept at hand, and a group of runs then needs few.
    """
    data: dict[DataConfig, int] = {}
    victims: dict[str, int] = {}

    def place(config: Config) -> tuple[int, int]:
        of_data = data.setdefault(config.data, len(data))
        return of_data, victims.setdefault(config.victim_id, len(victims))

    return sorted(configs, key=place)


def _victim_structure(plan: Plan) -> Hashable:
    point = Point(jax.random.key(0), plan.stages[-1].learner, {}, loop.valid_rows(plan.attackers))
    return plan.model, plan.config.matmul_precision, group.structure(point)


def _defense_structure(plan: Plan) -> Hashable:
    each = []
    for stage in plan.defense_stages:
        learner, split = plans.planned(plan, stage)
        each.append(group.structure(Point(jax.random.key(0), learner, {}, loop.valid_rows(split))))
    return plan.model, plan.config.matmul_precision, tuple(each)
