"""Records of runs, summed up over seeds. `tables` writes the rows and `figures` draws them."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bdjax.checks import InputError
from bdjax.files.atomic import parse_json
from bdjax.files.printable import printable
from bdjax.report import differing_data
from bdjax.report.uncertainty import Interval, Statistic, interval, statistic
from bdjax.runs import record_format, soundness
from bdjax.runs.folder import CONFIG as CONFIG
from bdjax.runs.folder import RECORD as RECORD
from bdjax.runs.folder import SCHEMA_VERSION, SMOOTHNESS, RunFolder
from bdjax.runs.record_format import COSTS as COSTS
from bdjax.runs.record_format import RATES as RATES
from bdjax.runs.record_format import SECTIONS as SECTIONS
from bdjax.runs.soundness import LOW_ATTACK_SUCCESS as LOW_ATTACK_SUCCESS
from bdjax.runs.soundness import Fault

BUNDLE = ".jsonl"
SHARPNESS = ("largest_eigenvalue", "hessian_trace", "fisher_trace")  # of the defended network, in its smoothness.json
STEALTH = ("psnr", "ssim", "linf", "l2", "changed_share")  # of the trigger on test images
CONTROLS = ("none", "ft")  # defenses that every other is compared with
LONGEST = 120  # characters of a label
_HOMES = {"training": "attack", "matmul_precision": "model"}
SYMBOLS = {"rho": "ρ", "alpha": "α", "gamma": "γ", "eta_f": "η_F", "eta_r": "η_r", "eta_c": "η_c"}
_log = logging.getLogger(__name__)


# --- Records ---------------------------------------------------------------------------------------------------------


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
    def settings(self) -> dict[str, Any]:
        """Return the config as dotted keys, without what a row does not depend on, and the digests."""
        return {**flatten(self.config), **self.apart}

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def before(self) -> Mapping[str, float]:
        """Counts and rates of the attacked model."""
        return self.content["metrics"]["before"]

    @property
    def after(self) -> Mapping[str, float]:
        """Counts and rates of the defended model."""
        return self.content["metrics"]["after"]

    def value(self, quantity: str) -> float:
        """Return one of ``RATES`` (in [0, 1], after the defense) or ``COSTS`` (of the defense alone)."""
        if quantity in COSTS:
            return self.content["cost"][quantity]
        if quantity == "defense_effectiveness_rating":
            return self.content["metrics"][quantity]
        return self.after[quantity]

    def sharpness(self) -> Mapping[str, float]:
        """Return ``SHARPNESS`` after the defense on the mixed images; NaN where it was not measured.

        Raises:
            InputError: ``smoothness.json`` is damaged.
        """
        content = self.smoothness()
        try:
            measured = content.get("after", {}).get("mixed", {})
            values = {name: measured.get(name) for name in SHARPNESS}
            return {name: math.nan if value is None else float(value) for name, value in values.items()}
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
            measured = self.content.get("stealth", {}).get("test", {})
            return {name: math.nan if measured.get(name) is None else float(measured[name]) for name in STEALTH}
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"stealth in {self.source} is damaged ({error}).") from error


def load(paths: Iterable[str | os.PathLike[str]]) -> list[Record]:
    """Read the records of finished runs.

    Each path is a run folder, a folder that holds run folders at any depth, a ``record.json``, or a bundle of records
    (``.jsonl``, of `bdjax.report.bundle.write`). Unfinished runs and diverged ones are left out and counted in a
    warning, and so are repetitions (see ``distinct``).

    Raises:
        InputError: no such path, no run under one, none finished under any, or a record that cannot be read or lacks a
            key.
    """
    paths = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    records: dict[tuple[Path, int | None], Record] = {}
    unfinished = diverged = 0
    for path in paths:
        files, started = _find(path)
        found = [record for file in files for record in _read(file)]
        if not found and not started:
            raise InputError(f"There is no record of a finished run under {path}.")
        finished = [record for record in found if isinstance(record, Record)]
        diverged += found.count("diverged")
        unfinished += started + len(found) - len(finished) - found.count("diverged")
        records.update(((record.folder.resolve(), record.line), record) for record in finished)
    if paths and not records:
        others = ", ".join(f"{n} {what}" for n, what in ((unfinished, "unfinished"), (diverged, "diverged")) if n)
        raise InputError(f"There is no record of a finished run under {', '.join(map(str, paths))} ({others}).")
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
        if kept.setdefault((identity(record), record.seed), record) is not record:
            repeated.append(printable(record.run_id, LONGEST))
    if repeated:
        others = count(len(repeated), "record")
        _log.warning("Left out %s with the config and seed of another: %s.", others, ", ".join(repeated))
    return list(kept.values())


def _told_apart(records: Sequence[Record]) -> list[Record]:
    """Return the records with the digests that tell them apart; what was found earlier, among more of them, stays."""
    marked, found = [], defaultdict(dict)
    for record, own in zip(records, differing_data.told_apart([record.content for record in records]), strict=True):
        new = {key: digest for key, digest in own.items() if key not in record.apart}
        marked.append(dataclasses.replace(record, apart={**record.apart, **new}) if new else record)
        for key, digest in new.items():
            found[key][digest] = None
    if found:
        differing = "; ".join(f"{key} is {' or '.join(digests)}" for key, digests in found.items())
        _log.warning("Records of one name were made of different data (%s); each has its own row.", differing)
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
    for number, line in enumerate(text.split("\n"), 1):  # a text may hold what splitlines would split at
        if line.strip():
            source = f"{file} line {number}"
            yield _checked(Record(file, _parsed(source, line), number), source)


def _parsed(source: str, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(f"{source} is not valid JSON: {error}.") from error


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{name} is no number")


def _checked(record: Record, source: str) -> Record | str:
    """Return a record that has all that the report reads, or its status where the run is not finished."""
    content = record.content
    record_format.require(source, content, "schema_version", int)
    if content["schema_version"] != SCHEMA_VERSION:
        version = content["schema_version"]
        raise InputError(f"{source} has schema_version {version}, and this bdjax reads only {SCHEMA_VERSION}.")
    record_format.require(source, content, "status", str)
    if content["status"] != "finished":
        return content["status"]
    record_format.check(content, source)
    return record


def count(number: int, noun: str) -> str:
    """Write a number of things.

    >>> from bdjax.report import count
    >>> count(1, "run"), count(3000, "run")
    ('1 run', '3,000 runs')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


# --- Rows ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """The runs that differ only in their seed.

    ``data``, ``model``, ``attack`` and ``defense`` are printed labels: the name, and the settings that tell the row
    from the others (``ft_sam ρ=2``). ``settings`` has the same settings under their full keys (``defense.rho``).
    Rates lie in [0, 1]; seconds and gradient evaluations are those of the defense.
    """

    data: str
    model: str
    attack: str
    defense: str
    settings: Mapping[str, Any]
    records: tuple[Record, ...]  # by seed
    clean_accuracy: Statistic
    attack_success_rate: Statistic
    robust_accuracy: Statistic
    defense_effectiveness_rating: Statistic
    run_seconds: Statistic
    compile_seconds: Statistic
    gradient_evaluations: Statistic
    low_attack_success_share: float  # share of the runs with an attack success rate below 10 %
    sharpness: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)  # of SHARPNESS, where asked for
    stealth: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)  # of STEALTH, likewise
    intervals: Mapping[str, Interval | None] = dataclasses.field(default_factory=dict)  # of RATES, likewise
    ranges: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)  # `sensitivity.with_ranges`
    mean_rank: float | None = None  # `ranking.with_mean_ranks`

    def without(self, option: str) -> Row:
        """Return the same row with a setting neither in its labels nor among its settings."""
        settings = {key: value for key, value in self.settings.items() if key != option}
        data, model, attack, defense = (label(self.records[0], section, settings) for section in SECTIONS)
        return dataclasses.replace(self, data=data, model=model, attack=attack, defense=defense, settings=settings)

    @property
    def n(self) -> int:
        return len(self.records)

    @functools.cached_property
    def faults(self) -> tuple[tuple[Fault, ...], ...]:
        """Return what is wrong with the victim, the attack or the defended network of each run (`soundness`)."""
        contents = [record.content for record in self.records]
        return tuple(soundness.of_victim(content) + soundness.of_defended(content) for content in contents)

    @property
    def is_benign(self) -> bool:
        """Whether no image was to be poisoned, so that there is no attack to be removed."""
        return soundness.is_benign(self.records[0].config["attack"])

    @property
    def is_marked(self) -> bool:
        """Whether something is wrong with a run of the row."""
        return any(self.faults)

    @property
    def has_attack(self) -> bool:
        """Whether each victim of the row has learned its task and the attack: what means over attacks are made of."""
        return not self.is_benign and not any(soundness.of_victim(record.content) for record in self.records)

    @property
    def competes(self) -> bool:
        """Whether the row may be called the best: each victim is attacked, and no network is at chance."""
        return not self.is_benign and not self.is_marked

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(record.seed for record in self.records)

    @property
    def clean_total(self) -> tuple[int, ...]:
        """Clean test images in each run, the denominator of the clean accuracy: one value, or all that occur."""
        return tuple(sorted({int(record.after["clean_total"]) for record in self.records}))

    @property
    def attack_total(self) -> tuple[int, ...]:
        """Triggered test images in each run, the denominator of the other two rates."""
        return tuple(sorted({int(record.after["attack_total"]) for record in self.records}))

    def name(self, section: str) -> str:
        """Return the bare name of the ``data``, ``model``, ``attack`` or ``defense``, without settings."""
        return self.records[0].config[section]["name"]


def summarize(
    records: Iterable[Record], *, sharpness: bool = False, stealth: bool = False, intervals: bool = False
) -> list[Row]:
    """Sum up runs that differ only in their seed (and data folder).

    The order is that of the names of data, model and attack, then ``none``, ``ft`` and the other defenses, each with
    its settings in natural order (ρ = 2 before ρ = 10), whatever the order of the records. With ``sharpness`` or
    ``stealth`` each row has that too; it is NaN unless every seed was measured. With ``intervals`` each row has the
    95 % interval of each mean rate (`bdjax.report.uncertainty.interval`), None for one seed.
    """
    ordered = sorted(distinct(records), key=lambda record: (identity(record), record.seed))
    groups: dict[str, list[Record]] = {}
    for record in ordered:
        groups.setdefault(identity(record), []).append(record)
    members = list(groups.values())
    settings = _distinguishing([group[0].settings for group in members])
    rows = map(_row, members, settings)
    if sharpness:
        rows = (dataclasses.replace(row, sharpness=_measured(row, Record.sharpness)) for row in rows)
    if stealth:
        rows = (dataclasses.replace(row, stealth=_measured(row, Record.stealth)) for row in rows)
    if intervals:
        rows = (dataclasses.replace(row, intervals=_intervals(row)) for row in rows)
    return sorted(rows, key=_order)


def common(rows: Iterable[Row]) -> str:
    """Name the data and the model where all rows share them."""
    shared = [labels[0] for labels in _labels(rows) if len(set(labels)) == 1]
    return ", ".join(shared)


def victims(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each victim, in order, under its attack and whatever of data and model they do not share."""
    told_apart = [len(set(labels)) > 1 for labels in _labels(rows)]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        apart = [label for label, varies in zip((row.data, row.model), told_apart, strict=True) if varies]
        groups.setdefault(" · ".join([row.attack, *apart]), []).append(row)
    return groups


def _labels(rows: Iterable[Row]) -> Iterator[tuple[str, ...]]:
    return zip(*((row.data, row.model) for row in rows), strict=True)


def target_classes(rows: Sequence[Row]) -> str:
    """Name the class that the attacker wants, where one is wanted for all images, or that of each victim."""
    titles: dict[str, dict[str, None]] = {}
    for title, group in victims(rows).items():
        for row in group:
            if target := _target_class(row.records[0]):
                titles.setdefault(target, {})[title] = None
    if len(titles) == 1:
        return f"target class: {next(iter(titles))}"
    each = (f"{target} of {', '.join(of)}" for target, of in titles.items())
    return f"target classes: {'; '.join(each)}" if titles else ""


def _target_class(record: Record) -> str:
    """Return the number and the name of an all-to-one attack's class, or nothing."""
    attack, names = record.config["attack"], record.content["data"]["class_names"]
    target = attack.get("target_label")
    if attack.get("label_map") != "all_to_one" or not isinstance(target, int | str):
        return ""
    if isinstance(target, str) and target in names:
        target = names.index(target)
    named = isinstance(target, int) and 0 <= target < len(names) and str(names[target]) != str(target)
    return printable(f"{target} ({names[target]})" if named else str(target), LONGEST)


def rank(row: Row) -> int:
    """Return where a row's defense stands among the controls, ``none`` and ``ft``, and the others after them."""
    name = row.name("defense")
    return CONTROLS.index(name) if name in CONTROLS else len(CONTROLS)


def best(rows: Sequence[Row]) -> set[Row]:
    """Return the rows whose mean defense effectiveness rating is the highest of their victim (``none`` competes).

    Rows do not compete where there is no attack to remove, or a network at chance; see `Row.competes`.
    """
    return _at_place(rows, 0)


def runners_up(rows: Sequence[Row]) -> set[Row]:
    """Return the rows with the second highest mean rating of their victim, where there are two different ones."""
    return _at_place(rows, 1)


def _at_place(rows: Sequence[Row], place: int) -> set[Row]:
    marked = set()
    for group in victims(rows).values():
        competing = [row for row in group if row.competes]
        ratings = sorted(set(map(_rating, competing)), reverse=True)
        marked |= {row for row in competing if [_rating(row)] == ratings[place : place + 1]}
    return marked


def notes(rows: Sequence[Row]) -> list[str]:
    """Write what is wrong with victims and with defended networks, by the titles of the victims."""
    written = []
    for title, group in victims(rows).items():
        written += [f"{title}: {words}" for words in soundness.told(_of_victims(group))]
        for row in group:
            defended = [soundness.of_defended(record.content) for record in row.records]
            written += [f"{title}, {row.defense}: {words}" for words in soundness.told(defended)]
    return written


def _of_victims(group: Iterable[Row]) -> list[tuple[Fault, ...]]:
    """Return what is wrong with each of the victims that rows share."""
    found = {}
    for record in (record for row in group for record in row.records):
        found.setdefault((record.content.get("victim_id"), record.seed), soundness.of_victim(record.content))
    return list(found.values())


def _rating(row: Row) -> float:
    mean = row.defense_effectiveness_rating.mean
    return -math.inf if math.isnan(mean) else mean


def _row(records: list[Record], settings: dict[str, Any]) -> Row:
    data, model, attack, defense = (label(records[0], section, settings) for section in SECTIONS)
    values = {name: [record.value(name) for record in records] for name in RATES + COSTS}
    low = sum(rate < LOW_ATTACK_SUCCESS for rate in values["attack_success_rate"]) / len(records)
    summed: dict[str, Any] = {name: statistic(of_seeds) for name, of_seeds in values.items()}
    return Row(data, model, attack, defense, settings, tuple(records), low_attack_success_share=low, **summed)


def _measured(row: Row, values: Callable[[Record], Mapping[str, float]]) -> dict[str, Statistic]:
    found = list(map(values, row.records))
    return {name: statistic([of[name] for of in found]) for name in found[0]}


def _intervals(row: Row) -> dict[str, Interval | None]:
    return {name: interval([record.value(name) for record in row.records]) for name in RATES}


def label(record: Record, section: str, settings: Mapping[str, Any]) -> str:
    """Return the name of a record's ``data``, ``model``, ``attack`` or ``defense`` and what settings of it are told."""
    shown = [f"{SYMBOLS.get(key, key)}={plain(value)}" for key, value in _of(section, settings)]
    return printable(" ".join([record.config[section]["name"], *shown]), LONGEST)


def identity(record: Record, *aside: str) -> str:
    """Return the config without its seed, its data folder and some options, and the digests, as canonical text.

    It is equal for runs of one row; with an option aside, for rows that differ in nothing else.
    """
    settings = {key: plain(value) for key, value in record.settings.items() if key not in aside}
    return json.dumps(settings, sort_keys=True)


def without_defense(record: Record, *aside: str) -> str:
    """Return what decides the attacked network and what the defender has, as canonical text; some options aside."""
    return identity(record, *aside, *(key for key in record.settings if of_defense(key)))


def of_defense(key: str) -> bool:
    """Say whether a dotted key of a config is an option of the defense, or of how its strength is chosen."""
    return key.startswith(("defense.", "selection."))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config as dotted keys, without what a row does not depend on."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif prefix + key not in ("seed", "data.data_dir"):
            flat[prefix + key] = value
    return flat


def _distinguishing(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the settings in which each config differs from others of the same name, in the order of the config.

    A setting of an attack is compared with the same attack's, and so on; what has no name of its own (training,
    holdout) is compared where data and model are the same.
    """
    peers = defaultdict(list)
    for config in configs:
        for scope in {_scope(key, config) for key in config}:
            peers[scope].append(config)

    @functools.cache
    def varies(key: str, scope: tuple[str, ...]) -> bool:
        values = {plain(peer[key]) if key in peer else "" for peer in peers[scope]}
        if key.startswith("selection."):  # which only runs have that choose a strength
            values.discard("")
        return len(values) > 1

    return [{key: value for key, value in config.items() if varies(key, _scope(key, config))} for config in configs]


def _scope(key: str, config: dict[str, Any]) -> tuple[str, ...]:
    section = key.split(".")[0]
    name = ("defense" if section == "selection" else section) + ".name"
    return (name, config[name]) if name in config else (config["data.name"], config["model.name"])


def _home(key: str) -> str:
    """Return which label shows a setting.

    The victim's training is the attack's, the holdout is the defense's, and the precision of products the network's.
    """
    section = _HOMES.get(key.split(".")[0], key.split(".")[0])
    return section if section in SECTIONS else "defense"


def _of(section: str, settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the settings that a label shows, its own section's first, under the names that it shows."""
    own = [(key, value) for key, value in settings.items() if _home(key) == section]
    own.sort(key=lambda item: not item[0].startswith(section + "."))
    return [(key.removeprefix(section + "."), value) for key, value in own]


def plain(value: Any) -> str:
    """Return a setting as it is printed; numbers that are equal are printed alike."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.15g}"
    if isinstance(value, list):
        return "[" + ",".join(map(plain, value)) + "]"
    return str(value)


def _order(row: Row) -> tuple:
    data, model, attack, defense = (
        (_natural(row.name(section)), [_natural(value) for _, value in _of(section, row.settings)])
        for section in SECTIONS
    )
    return data, model, attack, rank(row), defense, identity(row.records[0])


def _natural(value: Any) -> tuple:
    """Return a sort key under which numbers come before words and ``x2`` before ``x10``."""
    if isinstance(value, int | float):
        return (0, value)
    words = re.split(r"(\d+)", plain(value))
    return (1, tuple((0, int(word)) if word.isdigit() else (1, word) for word in words))
