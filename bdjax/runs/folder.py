"""The folder of runs: where each file of a run, of its victim and of its group lies, and what says that it is done.

::

    <out>/<run_id>/             record.json config.yaml data.json samples.npz selection.json smoothness.json
                                checkpoints-<stage>/ checkpoints-<stage>.unroll.json analysis-<name>.npz
    <out>/victims/<victim_id>/  data.json diverged.json checkpoints/ checkpoints-<stage>/, and their .unroll.json
    <out>/groups/<group>/       group.json form.json checkpoints/ stage-<number>/, while a sweep works on it
    <out>/data-<digest>/        the same again: what was made of other data and set aside

Nobody else spells these names. Everything is written whole or not at all (`bdjax.files.atomic`), and a folder is worked
in by one process at a time (`bdjax.files.locks`). Nothing here computes, so that a report starts at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bdjax.files import atomic, locks
from bdjax.files.atomic import Plain, damaged

SCHEMA_VERSION = 1  # of the record
RECORD, CONFIG, DATA, SAMPLES = "record.json", "config.yaml", "data.json", "samples.npz"
SMOOTHNESS, SELECTION, DIVERGED = "smoothness.json", "selection.json", "diverged.json"
VICTIMS, GROUPS, GROUP, FORM = "victims", "groups", "group.json", "form.json"
CHECKPOINTS, _STAGE, _ANALYSIS = "checkpoints", "stage", "analysis-"
# As long as any path below the folder of runs gets.
DEEPEST = Path(
    VICTIMS, 100 * "v", f"{CHECKPOINTS}-surrogate", "state.orbax-checkpoint-tmp", 100 * "f"
)

_BEGUN = {"train": str, "test": str, "files?": {str: str}, "stamp?": str}
_FINISHED = {
    "run_id": str,
    "status": str,
    "data": {"fingerprint": {"train": str, "test": str, "files?": {str: str}}},
}
_RECORD = (_FINISHED, {"run_id": str, "status": str, "reason": str})
_MEASURED = {str: {str: (float, bool, None)}}  # of each kind of images
_SMOOTHNESS = {
    "run?": str,
    "settings?": {str: float},
    "before?": _MEASURED,
    "after?": _MEASURED,
    "curve?": {"settings?": {str: float}, "rows?": [{"epoch": int}]},
}
_TRIAL = {"value": float, "accuracy": float, "gradient_evaluations": int}
_SELECTION = {
    "run": str,
    "option": str,
    "chosen": float,
    "within_budget": bool,
    "accuracy_before": float,
    "aside_count": int,
    "trials": [_TRIAL],
}
_UNROLL = {"unroll": int, "seconds": {str: float}}
_GROUP = {"names": [str], "data": [(dict, None)]}
_FORM = {"form": str, "seconds": {str: float}}


@dataclasses.dataclass(frozen=True)
class LoopFolder:
    """The checkpoints of one stage of training or of a defense, and how its steps were chosen to be computed."""

    path: Path

    def has(self, epoch: int) -> bool:
        """Say whether the stage was saved after so many epochs; only its newest checkpoint is kept."""
        return (self.path / str(epoch)).is_dir()

    def unroll(self) -> Plain | None:
        """Return how many steps are written out, as it was timed when the stage was begun."""
        return atomic.read_json(self._unroll, _UNROLL)

    def write_unroll(self, content: Mapping[str, Any]) -> None:
        """Keep that for whoever goes on with the stage."""
        atomic.write_json(self._unroll, content)

    @property
    def _unroll(self) -> Path:
        return self.path.with_name(f"{self.path.name}.unroll.json")


@dataclasses.dataclass(frozen=True)
class Folder:
    """What runs and victims have in common: a lock, and the data that they were begun with."""

    path: Path

    @property
    def name(self) -> str:
        """The name of the run or of the victim."""
        return self.path.name

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the folder for this process, as `bdjax.files.locks.locked` does."""
        return locks.locked(self.path)

    def record(self) -> Plain | None:
        """Return the record in the folder, if it is of a kind that has one."""
        return None

    def begun_with(self) -> Plain | None:
        """Return the fingerprint with which this was begun and the stamp of its files, None where it was not begun.

        What is finished is of the data that its record names, whatever lies beside it; the stamp may not be known.
        """
        begun = atomic.read_json(self.path / DATA, _BEGUN)
        record = self.record()
        if record is None or record["status"] != "finished":
            return begun and {"stamp": None, **begun}
        own = record["data"]["fingerprint"]
        is_own = begun is not None and fingerprint_of(begun) == own
        return {**own, "stamp": begun.get("stamp") if begun and is_own else None}

    def write_begun_with(self, fingerprint: Mapping[str, Any], stamp: str) -> None:
        """Write down with which data this is begun."""
        atomic.write_json(self.path / DATA, {**fingerprint, "stamp": stamp})


@dataclasses.dataclass(frozen=True)
class RunFolder(Folder):
    """The folder of a run, named as the run is."""

    @property
    def record_file(self) -> Path:
        """The file of the record."""
        return self.path / RECORD

    def record(self) -> Plain | None:
        """Return the record, of whatever status, None if there is none yet.

        Raises:
          InputError: it is damaged, or of another run than the folder is named after.
        """
        record = atomic.read_json(self.record_file, _RECORD)
        if record is not None and record["run_id"] != self.name:
            raise damaged(self.record_file, f"it is the record of {record['run_id']}")
        return record

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write the record; from then on the run has ended."""
        atomic.write_json(self.record_file, record)

    def finished(self) -> Plain | None:
        """Return the record of a run that is finished; None where it is not, or has diverged.

        Raises:
          InputError: as for `record`.
        """
        record = self.record()
        return record if record is not None and record["status"] == "finished" else None

    def has_ended(self) -> bool:
        """Say whether the run is finished or has diverged.

        Raises:
          InputError: as for `record`.
        """
        record = self.record()
        return record is not None and record["status"] in ("finished", "diverged")

    def write_config(self, text: str) -> None:
        """Write the config as YAML."""
        atomic.write_text(self.path / CONFIG, text)

    def write_samples(self, arrays: Mapping[str, Any]) -> None:
        """Write test images and what the networks say of them."""
        atomic.write_arrays(self.path / SAMPLES, run=self.name, **arrays)

    def selection(self) -> Plain | None:
        """Return which strength was chosen and what was tried, None where none was yet.

        Raises:
          InputError: the file is damaged, or of another run.
        """
        selection = atomic.read_json(self.path / SELECTION, _SELECTION)
        if selection is not None and (run_id := selection.pop("run")) != self.name:
            raise damaged(self.path / SELECTION, f"it is of the run {run_id}")
        return selection

    def write_selection(self, content: Mapping[str, Any]) -> None:
        """Keep what was chosen."""
        atomic.write_json(self.path / SELECTION, {"run": self.name, **content})

    @property
    def smoothness_file(self) -> Path:
        """The file of what was measured of the loss surface."""
        return self.path / SMOOTHNESS

    def smoothness(self, run_id: str | None = None) -> Plain | None:
        """Return what was measured of the loss surface, None where nothing was.

        Args:
          run_id: of the run; None for the folder's name.

        Raises:
          InputError: the file is damaged, or of another run.
        """
        content = atomic.read_json(self.smoothness_file, _SMOOTHNESS)
        own = run_id or self.name
        if content and content.get("run", own) != own:
            raise damaged(self.smoothness_file, f"it is of the run {content['run']}")
        return content

    def write_smoothness(self, content: Mapping[str, Any]) -> None:
        """Write what was measured of the loss surface."""
        atomic.write_json(self.smoothness_file, content)

    def stage(self, number: int) -> LoopFolder:
        """Return where a stage of the defense is saved."""
        return LoopFolder(self.path / f"{CHECKPOINTS}-{number}")

    def findings(self, analysis: str) -> Path:
        """Return the file of what an analysis found."""
        return self.path / f"{_ANALYSIS}{analysis}.npz"

    def analyses(self) -> dict[str, Path]:
        """Return the files of all that analyses found, by the names of the analyses."""
        files = sorted(self.path.glob(f"{_ANALYSIS}*.npz"))
        return {file.stem.removeprefix(_ANALYSIS): file for file in files}


@dataclasses.dataclass(frozen=True)
class VictimFolder(Folder):
    """The folder of an attacked model, which all runs that begin there share."""

    def stage(self, name: str) -> LoopFolder:
        """Return where a stage of the attacker's training is saved."""
        own = CHECKPOINTS if name == "victim" else f"{CHECKPOINTS}-{name}"
        return LoopFolder(self.path / own)

    def is_trained(self, epochs: int) -> bool:
        """Say whether the victim has been trained for its epochs."""
        return not epochs or self.stage("victim").has(epochs)

    def diverged(self) -> str | None:
        """Return why the victim has no result, where that is known.

        Raises:
          InputError: the file is damaged, or of another victim.
        """
        file = self.path / DIVERGED
        noted = atomic.read_json(file, {"victim": str, "reason": str})
        if noted is not None and noted["victim"] != self.name:
            raise damaged(file, f"it is of the victim {noted['victim']}")
        return None if noted is None else noted["reason"]

    def write_diverged(self, reason: str) -> None:
        """Write down why the victim has no result, so that its runs need not try again."""
        atomic.write_json(self.path / DIVERGED, {"victim": self.name, "reason": reason})


@dataclasses.dataclass(frozen=True)
class GroupStage:
    """Where the points of a group are trained together for one stage: in which form, and their checkpoints."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints of all points together."""
        return self.path / CHECKPOINTS

    def form(self) -> Plain | None:
        """Return the form that was chosen when the stage was begun."""
        return atomic.read_json(self.path / FORM, _FORM)

    def write_form(self, content: Mapping[str, Any]) -> None:
        """Keep that for whoever goes on with the stage."""
        atomic.write_json(self.path / FORM, content)


@dataclasses.dataclass(frozen=True)
class GroupFolder:
    """The folder of a group of points of a sweep, which is removed when the group is done."""

    path: Path

    def members(self) -> list[str]:
        """Return the names of the runs, or of the victims; none where that is not written yet."""
        return (atomic.read_json(self.path / GROUP, _GROUP) or {"names": []})["names"]

    def begin(self, members: Mapping[str, Mapping[str, Any] | None]) -> None:
        """Write down the members and the fingerprints of their data.

        What an earlier process left there is only continued if it was made of the same data: whoever deletes a victim
        to train it anew does not know of the group. Nor is it if that process was killed while it removed the folder.
        """
        content = {"names": list(members), "data": list(members.values())}
        if atomic.read_json(self.path / GROUP, _GROUP) != content:
            self.remove()
        atomic.write_json(self.path / GROUP, content)

    def stage(self, number: int | None = None) -> GroupStage:
        """Return where a stage of the runs' defense is trained, or, without a number, the victims of a group."""
        return GroupStage(self.path if number is None else self.path / f"{_STAGE}-{number}")

    def remove(self) -> None:
        """Remove the folder, or what can be removed of it."""
        shutil.rmtree(self.path, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class RunsFolder:
    """The folder of the run folders."""

    path: Path

    def run(self, run_id: str) -> RunFolder:
        """Return the folder of a run."""
        return RunFolder(self.path / run_id)

    def victim(self, victim_id: str) -> VictimFolder:
        """Return the folder of an attacked model."""
        return VictimFolder(self.path / VICTIMS / victim_id)

    def group(self, members: Sequence[str]) -> GroupFolder:
        """Return the folder of the group of these runs or victims, in this order."""
        digest = hashlib.sha256(" ".join(members).encode()).hexdigest()
        return GroupFolder(self.path / GROUPS / digest[:10])

    def groups(self) -> list[GroupFolder]:
        """Return the groups that processes have begun."""
        files = sorted((self.path / GROUPS).glob(f"*/{GROUP}"))
        return [GroupFolder(file.parent) for file in files]

    def set_aside(self, folder: Folder, name: str) -> None:
        """Move what is in a folder to the same place below ``name``, or ``name-2`` and so on, in this one.

        Its lock stays, as does, to the last, what says that there is something to be moved. So a call that was killed
        is gone on with by the next one, at the same place: one that has nothing of the same name, nor yet what is
        moved last.
        """
        place = folder.path.relative_to(self.path)
        entries = [entry for entry in folder.path.iterdir() if entry.name != locks.LOCK]
        number, target = itertools.count(2), self.path / name / place
        while (target / DATA).exists() or any((target / entry.name).exists() for entry in entries):
            target = self.path / f"{name}-{next(number)}" / place
        target.mkdir(parents=True, exist_ok=True)
        in_order = sorted(entries, key=lambda entry: (entry.name == DATA, entry.suffix == ".json"))
        for entry in in_order:
            entry.rename(target / entry.name)


def fingerprint_of(begun: Mapping[str, Any]) -> Plain:
    """Return the fingerprint in what `Folder.begun_with` returns."""
    return {key: value for key, value in begun.items() if key != "stamp"}
