"""Finished runs as their records tell of them, and how they are read from files."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bdjax.checks import InputError
from bdjax.files.atomic import parse_json
from bdjax.files.printable import printable
from bdjax.report import differing_data
from bdjax.report.labels import LONGEST, count, flatten, identity
from bdjax.runs import record_format
from bdjax.runs.folder import CONFIG, RECORD, SCHEMA_VERSION, SMOOTHNESS, RunFolder
from bdjax.runs.record_format import COSTS
from bdjax.tasks.metrics import RATING, Metric, first

BUNDLE = ".jsonl"
# Of the defended network, in its smoothness.json
SHARPNESS = ("largest_eigenvalue", "hessian_trace", "fisher_trace")
STEALTH = ("psnr", "ssim", "linf", "l2", "changed_share")  # of the trigger on test images
_DIVERGED = "diverged"  # the status of a run that has no result
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One finished run: one victim, one defense, one seed.

    ``content`` is its whole ``record.json``, checked, and ``folder`` what else the run has left. Of a record that was
    read from a bundle (`bdjax.report.bundle`), ``folder`` is that file, ``line`` where it stands there, and ``content``
    holds the ``smoothness`` too and has no ``history``. ``apart`` are the digests that tell what it was made of from
    what others of the same name were (`bdjax.report.differing_data`), as `distinct` finds them.
    """

    folder: Path
    content: Mapping[str, Any]
    line: int | None = None
    apart: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def file(self) -> Path:
        """The file that the record stands in: its own, or that of many."""
        return self.folder / RECORD if self.line is None else self.folder

    @property
    def source(self) -> str:
        """Say where the record stands, for messages."""
        return f"{self.file}" if self.line is None else f"{self.file} line {self.line}"

    @property
    def run_id(self) -> str:
        return self.content["run_id"]

    @property
    def config(self) -> Mapping[str, Any]:
        return self.content["config"]

    @property
    def settings(self) -> dict[str, object]:
        """Return the config as dotted keys, without what a row does not depend on, and the digests."""
        return {**flatten(self.config), **self.apart}

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @functools.cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """What was measured, as the record describes it, in the order of a table's columns."""
        return record_format.metrics_of(self.content)

    def metric(self, role: str) -> Metric:
        """Return the first metric of a role (`bdjax.tasks.metrics`)."""
        return first(self.metrics, role)

    @property
    def before(self) -> Mapping[str, float]:
        """Counts and metrics of the attacked model."""
        return self.content["metrics"]["before"]

    @property
    def after(self) -> Mapping[str, float]:
        """Counts and metrics of the defended model."""
        return self.content["metrics"]["after"]

    @functools.cached_property
    def values(self) -> Mapping[str, float]:
        """The metrics after the defense, in [0, 1], and ``COSTS``, of the defense alone, by name."""
        found = {name: self.content["cost"][name] for name in COSTS}
        for metric in self.metrics:
            section = self.content["metrics"] if metric.role == RATING else self.after
            found[metric.name] = section[metric.name]
        return found

    def value(self, quantity: str) -> float:
        """Return one of ``values``."""
        return self.values[quantity]

    def sharpness(self) -> Mapping[str, float]:
        """Return ``SHARPNESS`` after the defense on the mixed images; NaN where it was not measured.

        Raises:
            InputError: ``smoothness.json`` is damaged.
        """
        content = self.smoothness()
        try:
            return _numbers(content.get("after", {}).get("mixed", {}), SHARPNESS)
        except (AttributeError, TypeError, ValueError) as error:
            if self.line is not None:
                raise InputError(f"smoothness in {self.source} is damaged ({error}).") from error
            file = self.folder / SMOOTHNESS
            raise InputError(f"{file} is damaged ({error}); delete it to make it again.") from error

    def smoothness(self) -> Mapping[str, Any]:
        """Return all that was measured of the loss surface, as ``smoothness.json`` has it; empty if nothing was.

        Raises:
            InputError: the file is damaged.
        """
        if self.line is not None:
            return self.content.get("smoothness", {})
        return RunFolder(self.folder).smoothness(self.run_id) or {}

    def stealth(self) -> Mapping[str, float]:
        """Return ``STEALTH``; NaN where there is no finite value or an older bdjax did not measure it.

        Raises:
            InputError: the record has something else there.
        """
        try:
            return _numbers(self.content.get("stealth", {}).get("test", {}), STEALTH)
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"stealth in {self.source} is damaged ({error}).") from error


def _numbers(measured: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    """Return what was measured under some names; NaN where there is nothing."""
    found = {}
    for name in names:
        value = measured.get(name)
        found[name] = math.nan if value is None else float(value)
    return found


# --- From files ------------------------------------------------------------------------------------------------------


def load(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Record]:
    """Read the records of finished runs.

    Each path is a run folder, a folder that holds run folders at any depth, a ``record.json``, or a bundle of records
    (``.jsonl``, of `bdjax.report.bundle.write`). Unfinished runs and diverged ones are left out and counted in a
    warning, and so are repetitions (see ``distinct``).

    Raises:
        InputError: no such path, no run under one, none finished under any, or a record that cannot be read or lacks a
            key.
    """
    paths = (
        [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    )
    records: dict[tuple[Path, int | None], Record] = {}
    unfinished = diverged = 0
    for path in paths:
        files, started = _find(path)
        found = [record for file in files for record in _read(file)]
        if not found and not started:
            raise InputError(f"There is no record of a finished run under {path}.")
        finished = [record for record in found if isinstance(record, Record)]
        diverged += found.count(_DIVERGED)
        unfinished += started + len(found) - len(finished) - found.count(_DIVERGED)
        records.update(((record.folder.resolve(), record.line), record) for record in finished)
    if paths and not records:
        others = ", ".join(
            f"{n} {what}" for n, what in ((unfinished, "unfinished"), (diverged, _DIVERGED)) if n
        )
        raise InputError(
            f"There is no record of a finished run under {', '.join(map(str, paths))} ({others})."
        )
    if unfinished:
        _log.warning("Left out %s without a finished record.", count(unfinished, "run"))
    if diverged:
        _log.warning("Left out %s that diverged.", count(diverged, "run"))
    return distinct(records.values())


def distinct(records: Iterable[Record]) -> list[Record]:
    """Keep the first of the records that share config, data and seed; warn of the others, and of data that differ.

    The data folder is left aside; what lay in it is compared by its digests, where the records have them.
    """
    kept: dict[tuple[str, int], Record] = {}
    repeated = []
    for record in _told_apart(list(records)):
        if kept.setdefault((identity(record.settings), record.seed), record) is not record:
            repeated.append(printable(record.run_id, LONGEST))
    if repeated:
        others = count(len(repeated), "record")
        _log.warning(
            "Left out %s with the config and seed of another: %s.", others, ", ".join(repeated)
        )
    return list(kept.values())


def _told_apart(records: Sequence[Record]) -> list[Record]:
    """Return the records with the digests that tell them apart; what was found earlier, among more of them, stays."""
    marked, found = [], defaultdict(dict)
    for record, own in zip(
        records, differing_data.told_apart([record.content for record in records]), strict=True
    ):
        new = {key: digest for key, digest in own.items() if key not in record.apart}
        marked.append(dataclasses.replace(record, apart={**record.apart, **new}) if new else record)
        for key, digest in new.items():
            found[key][digest] = None
    if found:
        differing = "; ".join(f"{key} is {' or '.join(digests)}" for key, digests in found.items())
        _log.warning(
            "Records of one name were made of different data (%s); each has its own row.", differing
        )
    return marked


def _find(path: Path) -> tuple[list[Path], int]:
    """Return the record files under a path and the number of run folders that have none yet."""
    try:
        if path.is_file():
            return [path], 0
        if not path.is_dir():
            raise InputError(f"There is no file or folder {path}.")
    except OSError as error:
        _refuse_unreadable(error)
    files, started = [], 0
    for where, folders, names in os.walk(path, onerror=_refuse_unreadable):
        folders.sort()
        if RECORD in names:
            files.append(Path(where, RECORD))
            folders.clear()  # whatever lies inside a run belongs to it
        elif CONFIG in names:
            started += 1
    return files, started


def _refuse_unreadable(error: OSError) -> None:
    """Name a folder that cannot be listed; one that has been removed in the meantime is none."""
    if not isinstance(error, FileNotFoundError):
        raise InputError(f"{error.filename} cannot be read: {error.strerror}.") from error


def _read(file: Path) -> Iterator[Record | str]:
    """Yield each record in a file, or its status where the run is not finished."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}.") from error
    if file.suffix != BUNDLE:
        yield _checked(Record(file.parent, _parsed(str(file), text)), str(file))
        return
    # A text may hold what splitlines would split at
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            source = f"{file} line {number}"
            yield _checked(Record(file, _parsed(source, line), number), source)


def _parsed(source: str, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(f"{source} is not valid JSON: {error}.") from error


def _checked(record: Record, source: str) -> Record | str:
    """Return a record that has all that the report reads, or its status where the run is not finished."""
    content = record.content
    record_format.require(source, content, "schema_version", int)
    if content["schema_version"] != SCHEMA_VERSION:
        version = content["schema_version"]
        raise InputError(
            f"{source} has schema_version {version}, and this bdjax reads only {SCHEMA_VERSION}."
        )
    record_format.require(source, content, "status", str)
    if content["status"] != "finished":
        return content["status"]
    record_format.check(content, source)
    return record
