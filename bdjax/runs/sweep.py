"""A sweep, told in order: axes → points → victims → defenses → records. Many runs, few programs.

Each point is a run of its own, with the name, folder, checkpoints and record that `bdjax.runs.run` would have given it,
within rounding. What is done is not done again, whoever did it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import shutil
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from bdjax.checks import InputError, integer
from bdjax.defenses import stage_key
from bdjax.defenses.chain import stages
from bdjax.runs import config as configs
from bdjax.runs import plans, provenance, records, schema
from bdjax.runs import run as single
from bdjax.runs.config import Config, DataConfig
from bdjax.runs.inputs import Fingerprint
from bdjax.runs.plans import Plan
from bdjax.runs.run import Execution, Victim
from bdjax.sweeps import check_axes
from bdjax.train import attacker, group, loop
from bdjax.train.checkpoints import Checkpoints
from bdjax.train.group import Point
from bdjax.types import Model

_DIVERGED = "diverged.json"  # in the folder of a victim without a result
_GROUP = {"names": [str], "data": [(dict, None)]}
_FORM = {"form": str, "seconds": {str: float}}


@dataclasses.dataclass(frozen=True)
class Spread:
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
            raise InputError(f"batch_devices must divide devices = {self.devices}; got {self.batch_devices}.")


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
        config = configs.resolve(
            schema.merge(values, schema.overrides([f"--{path}={word}" for path, word in zip(axes, words, strict=True)]))
        )
        if (other := found.setdefault(config.run_id, words)) is not words:
            same = next(f"{path} {a} and {b}" for path, a, b in zip(axes, other, words, strict=True) if a != b)
            raise InputError(f"the sweep has the same point twice: {same} are one value.")
        configured.append(config)
    return configured


def run(wanted: Sequence[Config], execution: Execution, spread: Spread) -> list[Config]:
    """Carry out runs and their control rows, and return them all; what is finished is left as it is.

    Runs that differ in numbers alone are one program, victims and each stage of a defense alike. Processes that are
    given the same folder divide the groups among them. A run that diverges gets a record that says so.

    Raises:
      InputError: something asked for cannot be; nothing was compiled.
      bdjax.train.loop.Stopped: as `Execution.should_stop` said, between two groups too; a later call continues.
    """
    group.point_mesh(spread.devices, spread.batch_devices)  # are there so many?
    rows = {row.run_id: row for config in wanted for row in single.with_controls(config)}
    sweep = _Sweep(execution, spread, rows)
    sweep.look_at_data()
    for name in sweep.ended():
        execution.on_finished(name)
    if waiting := _by_victim([row for row in rows.values() if not _settled(execution.out, row)]):
        for row in reversed(waiting):  # whatever is wrong with one should not wait for the others
            with single.computing(row, execution):
                plans.tell_of_batches(plans.prepare(row, spread.batch_devices, "device"))
        sweep.plant({row.victim_id: row for row in waiting})
        sweep.defend(waiting)
    sweep.tidy()
    return list(rows.values())


class _Row(NamedTuple):
    """A run on its way: its plan with its strength chosen, where it began, and where it is."""

    plan: Plan
    victim: Victim
    purified: loop.Result
    selection: dict[str, Any] | None
    how: list[dict[str, Any]]  # of each stage: form, points, devices

    @property
    def id(self) -> str:
        return self.plan.config.run_id

    def point(self, number: int) -> Point:
        """Return what the group is given for a stage of the defense."""
        key = stage_key(plans.key_for(self.plan.config, "defense"), number)
        stage = stages(self.plan.defense)[number]
        return Point(key, stage, self.purified.variables, loop.valid_rows(self.plan.holdout))


class _Sweep:
    """What the steps of a sweep share: where it is carried out, all of its runs, and the victims at hand."""

    def __init__(self, execution: Execution, spread: Spread, rows: Mapping[str, Config]):
        self._execution = execution
        self._spread = spread
        self._rows = rows

    def look_at_data(self) -> None:
        """Refuse runs and victims that were begun with other data than are there now, or set them aside."""
        folders = {self._victim_folder(row): row for row in self._rows.values()}
        folders |= {self._folder(row): row for row in self._rows.values()}
        out, changed = self._execution.out, self._execution.changed
        for folder, row in folders.items():
            if not provenance.is_of_these_data(folder, row, changed):
                with records.locked(folder):  # or until another process has done it
                    provenance.settle(folder, plans.prepare(row), out, changed)

    def ended(self) -> list[str]:
        """Return the names of the runs that have ended."""
        return [name for name, row in self._rows.items() if self._done(row)]

    def plant(self, victims: Mapping[str, Config]) -> None:
        """Train the victims that nobody has trained yet; one whose attacker trains more than it is left to its runs."""
        victims = {name: config for name, config in victims.items() if _is_one_stage(config)}
        self._divide(victims, victims, self._planted, self._victim_folder, _victim_structure, self._plant)

    def defend(self, waiting: Sequence[Config]) -> None:
        """Carry out the runs whose victims are trained."""
        items = {config.run_id: config for config in waiting}
        self._divide(items, self._rows, self._done, self._folder, _defense_structure, self._defend)

    def tidy(self) -> None:
        """Remove the groups that were killed when all was done but this."""
        victims = {row.victim_id: row for row in self._rows.values()}
        for file in (self._execution.out / "groups").glob("*/group.json"):
            names = (records.read_json(file, _GROUP) or {"names": []})["names"]
            for known, done in ((victims, self._planted), (self._rows, self._done)):
                if names and all(name in known and done(known[name]) for name in names):
                    shutil.rmtree(file.parent, ignore_errors=True)

    def _divide(
        self,
        items: Mapping[str, Config],
        known: Mapping[str, Config],
        done: Callable[[Config], bool],
        folder: Callable[[Config], Path],
        structure: Callable[[Config, Spread], Hashable],
        work: Callable[[Path, list[Config]], None],
    ) -> None:
        """Work on the groups that no other process works on, until everything is done."""
        while left := {name: config for name, config in items.items() if not done(config)}:
            worked, others = False, None
            for where, names in self._groups(left, known, done, structure):
                mine = [left[name] for name in names if name in left]
                with records.claimed(map(folder, mine)) as taken:
                    others = taken or others
                    if taken is None and not any(map(done, mine)):  # nor was it done in the meantime
                        if self._execution.should_stop is not None and self._execution.should_stop():
                            raise loop.Stopped("stopped between two groups")  # an only epoch asks nobody
                        members = [known[name] for name in names]
                        with single.computing(members[0], self._execution):  # which all share
                            work(where, members)
                        worked = True
            if others is not None and not worked:
                with records.locked(others):  # until the other process is done, or dead
                    pass

    def _groups(
        self,
        left: Mapping[str, Config],
        known: Mapping[str, Config],
        done: Callable[[Config], bool],
        structure: Callable[[Config, Spread], Hashable],
    ) -> Iterator[tuple[Path, list[str]]]:
        """Yield the folders and members of groups: first those that a process has begun, which may be no more."""
        groups, fresh = self._execution.out / "groups", dict(left)
        for file in sorted(groups.glob("*/group.json")):
            names = (records.read_json(file, _GROUP) or {"names": []})["names"]
            rest = [known[name] for name in names if name in known and name not in fresh]
            if set(names) <= known.keys() and not fresh.keys().isdisjoint(names) and all(map(done, rest)):
                fresh = {name: config for name, config in fresh.items() if name not in names}
                yield file.parent, names
        alike: dict[Hashable, list[str]] = {}
        for name, config in fresh.items():
            alike.setdefault(structure(config, self._spread), []).append(name)
        for names in alike.values():
            size = -(-len(names) // -(-len(names) // self._spread.at_once))  # parts of one size are one program
            for start in range(0, len(names), size):
                part = names[start : start + size]
                yield groups / hashlib.sha256(" ".join(part).encode()).hexdigest()[:10], part

    def _plant(self, folder: Path, members: list[Config]) -> None:
        """Train a group of victims; each then lies where a run of its own would have left it."""
        planned = [plans.prepare(config, self._spread.batch_devices, "device") for config in members]
        own = [self._victim_folder(config) for config in members]
        for plan, path in zip(planned, own, strict=True):
            provenance.settle(path, plan, self._execution.out, self._execution.changed)
        _open(folder, {plan.config.victim_id: plan.fingerprint for plan in planned})
        points = [_victim_point(plan) for plan in planned]
        saved = functools.partial(single.victim_checkpoints, stage="victim", out=self._execution.out)
        checkpoints = [functools.partial(saved, config) for config in members]
        outcomes, _ = self._train(points, planned[0].model, f"{len(members)} victims", folder, checkpoints)
        for config, path, outcome in zip(members, own, outcomes, strict=True):
            if isinstance(outcome, loop.Diverged) and not self._planted(config):
                self._note(path, str(outcome))
        shutil.rmtree(folder, ignore_errors=True)

    def _defend(self, folder: Path, members: list[Config]) -> None:
        """Carry out a group of runs, stage by stage of their defense, and write their records."""
        rows = [row for config in members if (row := self._begin(config)) is not None]
        found = {row.id: row.plan.fingerprint for row in rows}
        _open(folder, {config.run_id: found.get(config.run_id) for config in members})
        for number in range(len(stages(rows[0].plan.defense)) if rows else 0):
            plan, points = rows[0].plan, [row.point(number) for row in rows]
            saved = functools.partial(single.defense_checkpoints, stage=number, out=self._execution.out)
            checkpoints = [functools.partial(saved, row.plan.config) for row in rows]
            label = f"{len(rows)} × {plan.config.defense.name}"
            outcomes, how = self._train(points, plan.model, label, folder / f"stage-{number}", checkpoints)
            alive = []
            for row, point, outcome in zip(rows, points, outcomes, strict=True):
                if isinstance(outcome, loop.Diverged):
                    self._mark(row.plan.config, str(outcome))
                else:
                    result = outcome.result(point, plan.model, row.purified.history)
                    alive.append(row._replace(purified=result, how=[*row.how, how]))
            rows = alive
            if not rows:
                break
        for row in rows:
            if not _settled(self._execution.out, row.plan.config):
                more = {"sweep": row.how, **({"selection": row.selection} if row.selection else {})}
                single.conclude(row.plan, row.victim, row.purified, self._execution, more)
        shutil.rmtree(folder, ignore_errors=True)

    def _begin(self, config: Config) -> _Row | None:
        """Return the run with its victim at hand and its strength chosen; None if the victim has diverged."""
        folder = self._execution.out / config.run_id
        plan = plans.prepare(config, self._spread.batch_devices, "device")
        if not self._done(config):
            provenance.settle(folder, plan, self._execution.out, self._execution.changed)
        records.write_text(folder / "config.yaml", schema.to_yaml(config.to_dict()))
        reason = self._reason(config)
        if reason is not None and not self._trained(config):
            self._mark(config, f"of the victim, {reason}")
            return None
        alone = dataclasses.replace(self._execution, devices=self._spread.batch_devices)  # as it was planned
        with records.locked(self._victim_folder(config)):
            try:
                victim = single.attack(plan, alone)
            except loop.Diverged as diverged:  # of a victim of several stages; its other runs are not to try again
                self._note(self._victim_folder(config), str(diverged))
                self._mark(config, f"of the victim, {diverged}")
                return None
        plan = plans.arm(plan, victim.trigger_state)
        plan, selection = single.select_strength(plan, victim.trained.variables, folder / "selection.json")
        return _Row(plan, victim, loop.Result(victim.trained.variables, []), selection, [])

    def _train(
        self,
        points: Sequence[Point],
        model: Model,
        label: str,
        folder: Path,
        checkpoints: Sequence[Callable[[], Checkpoints]],
    ) -> tuple[list[group.Trained | loop.Diverged], dict[str, Any]]:
        """Train a group; save each point where a run of its own would; tell how it was done."""
        execution, spread, epochs = self._execution, self._spread, points[0].learner.epochs
        devices = min(spread.devices, len(points) * spread.batch_devices)
        mesh = group.point_mesh(devices, spread.batch_devices)
        choice = self._choice(folder / "form.json", points, model, mesh)
        with contextlib.ExitStack() as stack:
            owner = {"group": folder.relative_to(execution.out).as_posix()}
            kept = Checkpoints(folder / "checkpoints", execution.checkpoint_seconds, owner) if epochs else None
            outcomes = group.run(
                points,
                model,
                form=choice.form,
                mesh=mesh,
                checkpoints=kept and stack.enter_context(kept),
                on_epoch=execution.on_epoch and functools.partial(execution.on_epoch, label, epochs),
                should_stop=execution.should_stop,
                prepare=execution.prepare,
                unroll=1 if isinstance(execution.unroll, str) else execution.unroll,
            )
        for own, outcome in zip(checkpoints, outcomes, strict=True):
            if epochs and isinstance(outcome, group.Trained):
                _save(own, outcome)
        return outcomes, {**choice._asdict(), "points": len(points), "devices": devices}

    def _choice(self, file: Path, points: Sequence[Point], model: Model, mesh: Mesh | None) -> group.Choice:
        """Return the form: as asked, as chosen when the group was begun, or as chosen now."""
        if self._spread.form != group.AUTO:
            return group.Choice(self._spread.form, {})
        if (earlier := records.read_json(file, _FORM)) is not None:
            return group.Choice(group.check_form(earlier["form"]), earlier["seconds"])
        choice = group.choose(points, model, mesh)
        records.write_json(file, choice._asdict())
        return choice

    def _mark(self, config: Config, reason: str) -> None:
        """Write the record of a run that has no result."""
        if self._done(config):  # a group that is continued has all of its runs again
            return
        single.mark_diverged(config, self._execution.out, reason)

    def _note(self, folder: Path, reason: str) -> None:
        """Write down why a victim has no result."""
        records.write_json(folder / _DIVERGED, {"victim": folder.name, "reason": reason})

    def _reason(self, config: Config) -> str | None:
        """Return why a victim has no result, if it has none."""
        file = self._victim_folder(config) / _DIVERGED
        noted = records.read_json(file, {"victim": str, "reason": str})
        if noted is not None and noted["victim"] != config.victim_id:
            raise records.damaged(file, f"it is of the victim {noted['victim']}")
        return None if noted is None else noted["reason"]

    def _done(self, config: Config) -> bool:
        return _settled(self._execution.out, config)

    def _folder(self, config: Config) -> Path:
        return self._execution.out / config.run_id

    def _victim_folder(self, config: Config) -> Path:
        return self._execution.out / "victims" / config.victim_id

    def _planted(self, config: Config) -> bool:
        """Whether a victim is trained, or known to diverge."""
        return self._reason(config) is not None or self._trained(config)

    def _trained(self, config: Config) -> bool:
        epochs = config.training["epochs"]
        return not epochs or _saved_epoch(self._victim_folder(config) / "checkpoints") == epochs


def _is_one_stage(config: Config) -> bool:
    return len(attacker.stages(configs.build_attack(config), *configs.build_training(config))) == 1


def _by_victim(configs: Sequence[Config]) -> list[Config]:
    """Return runs with those of the same data, and among them those of the same victim, side by side.

    Few data sets and few victims are kept at hand, and a group of runs then needs few.
    """
    data: dict[DataConfig, int] = {}
    victims: dict[str, int] = {}

    def place(config: Config) -> tuple[int, int]:
        return data.setdefault(config.data, len(data)), victims.setdefault(config.victim_id, len(victims))

    return sorted(configs, key=place)


def _open(folder: Path, members: Mapping[str, Fingerprint | None]) -> None:
    """Write down the members of a group and the fingerprints of their data.

    What an earlier process left there is only continued if it was made of the same data: whoever deletes a victim to
    train it anew does not know of the group. Nor is it if that process was killed while it removed the folder.
    """
    content = {"names": list(members), "data": list(members.values())}
    if records.read_json(folder / "group.json", _GROUP) != content:
        shutil.rmtree(folder, ignore_errors=True)
    records.write_json(folder / "group.json", content)


def _settled(out: Path, config: Config) -> bool:
    """Whether a run has ended: finished, or diverged."""
    record = records.read_record(out / config.run_id)
    return record is not None and record["status"] in ("finished", "diverged")


def _victim_point(plan: Plan) -> Point:
    key, variables = plans.key_for(plan.config, "training"), plan.model.init(plans.key_for(plan.config, "init"))
    stage = plan.stages[-1]
    images = plans.poison_training(plan).visible if stage.sees_poisoned else plan.attackers
    begin = attacker.start(stage, variables, variables, plan.trigger_state)
    return Point(key, stage.learner, begin, loop.valid_rows(jax.device_get(images)))


def _victim_structure(config: Config, spread: Spread) -> Hashable:
    plan = plans.prepare(config, spread.batch_devices, "device")
    point = Point(jax.random.key(0), plan.stages[-1].learner, {}, loop.valid_rows(plan.attackers))
    return plan.model, config.matmul_precision, group.structure(point)


def _defense_structure(config: Config, spread: Spread) -> Hashable:
    plan = plans.prepare(config, spread.batch_devices, "device")
    holdout = loop.valid_rows(plan.holdout)
    each = (group.structure(Point(jax.random.key(0), stage, {}, holdout)) for stage in stages(plan.defense))
    return plan.model, config.matmul_precision, tuple(each)


def _save(own: Callable[[], Checkpoints], trained: group.Trained) -> None:
    """Save a point's last state, unless that was done before a kill."""
    with own() as checkpoints:
        epoch = len(trained.history)
        if checkpoints.epoch != epoch:
            checkpoints.save(epoch, trained.state, [row._asdict() for row in trained.history], force=True)


def _saved_epoch(folder: Path) -> int | None:
    if not folder.is_dir():
        return None
    with Checkpoints(folder) as checkpoints:
        return checkpoints.epoch
