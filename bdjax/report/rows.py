"""Records of runs, summed up over seeds: the rows that `tables` writes and `figures` draws."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

from bdjax.report.labels import SortKey, distinguishing, identity, labels, sort_key
from bdjax.report.records import Record, distinct
from bdjax.report.statistics import Interval, Statistic, interval, statistic
from bdjax.runs import soundness
from bdjax.runs.record_format import COSTS, SECTIONS
from bdjax.runs.soundness import LOW_ATTACK_SUCCESS, Fault
from bdjax.tasks.metrics import ATTACK, RATING, UTILITY, Metric, first, names, totals

CONTROLS = ("none", "ft")  # defenses that every other is compared with


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """The runs that differ only in their seed.

    ``data``, ``model``, ``attack`` and ``defense`` are printed labels: the name, and the settings that tell the row
    from the others (``ft_sam ρ=2``). ``settings`` has the same settings under their full keys (``defense.rho``).

    Attributes:
      records: of the runs, by seed.
      statistics: of each metric, in [0, 1], under its name, such as ``clean_accuracy``.
      costs: of what the defense took, under the names in `bdjax.runs.record_format.COSTS`.
      low_attack_success_share: the share of the runs with an attack success rate below 10 %.
      sharpness, stealth: of `bdjax.report.records.SHARPNESS` and ``STEALTH``, where asked for.
      intervals: of the mean of each metric, likewise; None for one seed.
      ranges: how far swept options move the row (`bdjax.report.curves.with_ranges`).
      mean_rank: of its defense (`bdjax.report.ranking.with_mean_ranks`).
    """

    data: str
    model: str
    attack: str
    defense: str
    settings: Mapping[str, object]
    records: tuple[Record, ...]
    statistics: Mapping[str, Statistic]
    costs: Mapping[str, Statistic]
    low_attack_success_share: float
    sharpness: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)
    stealth: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)
    intervals: Mapping[str, Interval | None] = dataclasses.field(default_factory=dict)
    ranges: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    mean_rank: float | None = None

    def without(self, option: str) -> Row:
        """Return the same row with a setting neither in its labels nor among its settings."""
        settings = {key: value for key, value in self.settings.items() if key != option}
        data, model, attack, defense = labels(self.records[0].config, settings)
        return dataclasses.replace(
            self, data=data, model=model, attack=attack, defense=defense, settings=settings
        )

    @property
    def n(self) -> int:
        return len(self.records)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What was measured, in the order of a table's columns."""
        return self.records[0].metrics

    def metric(self, role: str) -> Metric:
        """Return the first metric of a role (`bdjax.tasks.metrics`)."""
        return first(self.metrics, role)

    @property
    def utility(self) -> Statistic:
        """What the network is for: the clean accuracy, where each image has one class."""
        return self.statistics[self.metric(UTILITY).name]

    @property
    def attack_success(self) -> Statistic:
        """What the attacker wants: the attack success rate."""
        return self.statistics[self.metric(ATTACK).name]

    @property
    def rating(self) -> Statistic:
        """Both networks in one number: the defense effectiveness rating."""
        return self.statistics[self.metric(RATING).name]

    @property
    def run_seconds(self) -> Statistic:
        """What the defense took, without compiling."""
        return self.costs["run_seconds"]

    @property
    def gradient_evaluations(self) -> Statistic:
        """How many gradients of a batch's loss the defense computed."""
        return self.costs["gradient_evaluations"]

    @functools.cached_property
    def faults(self) -> tuple[tuple[Fault, ...], ...]:
        """What is wrong with the victim, the attack or the defended network of each run (`soundness`)."""
        found = []
        for record in self.records:
            found.append(
                soundness.of_victim(record.content) + soundness.of_defended(record.content)
            )
        return tuple(found)

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
        return not self.is_benign and not any(
            soundness.of_victim(record.content) for record in self.records
        )

    @property
    def competes(self) -> bool:
        """Whether the row may be called the best: each victim is attacked, and no network is at chance."""
        return not self.is_benign and not self.is_marked

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(record.seed for record in self.records)

    def totals(self, name: str) -> tuple[int, ...]:
        """Return how many test inputs metrics are measured on: one number, or all that occur; none where not known."""
        counted = [record.after[name] for record in self.records if name in record.after]
        return tuple(sorted(set(map(int, counted))))

    def name(self, section: str) -> str:
        """Return the bare name of the ``data``, ``model``, ``attack`` or ``defense``, without settings."""
        return self.records[0].config[section]["name"]


def summarize(
    records: Iterable[Record],
    *,
    sharpness: bool = False,
    stealth: bool = False,
    intervals: bool = False,
) -> list[Row]:
    """Sum up runs that differ only in their seed (and data folder).

    The order is that of the names of data, model and attack, then ``none``, ``ft`` and the other defenses, each with
    its settings in natural order (ρ = 2 before ρ = 10), whatever the order of the records. With ``sharpness`` or
    ``stealth`` each row has that too; it is NaN unless every seed was measured. With ``intervals`` each row has the
    95 % interval of the mean of each metric (`bdjax.report.statistics.interval`), None for one seed.
    """
    ordered = sorted(distinct(records), key=lambda record: (identity(record.settings), record.seed))
    groups: dict[str, list[Record]] = {}
    for record in ordered:
        groups.setdefault(identity(record.settings), []).append(record)
    members = list(groups.values())
    settings = distinguishing([group[0].settings for group in members])
    rows = []
    for row in map(_row, members, settings):
        if sharpness:
            row = dataclasses.replace(row, sharpness=_measured(row, Record.sharpness))
        if stealth:
            row = dataclasses.replace(row, stealth=_measured(row, Record.stealth))
        if intervals:
            row = dataclasses.replace(row, intervals=_intervals(row))
        rows.append(row)
    return sorted(rows, key=_order)


def _row(records: list[Record], settings: dict[str, object]) -> Row:
    first_one = records[0]
    low = sum(record.value(record.metric(ATTACK).name) < LOW_ATTACK_SUCCESS for record in records)
    return Row(
        *labels(first_one.config, settings),
        settings=settings,
        records=tuple(records),
        statistics=_summed(records, names(first_one.metrics)),
        costs=_summed(records, COSTS),
        low_attack_success_share=low / len(records),
    )


def _summed(records: Sequence[Record], quantities: Iterable[str]) -> dict[str, Statistic]:
    return {name: statistic([record.value(name) for record in records]) for name in quantities}


def _measured(row: Row, values: Callable[[Record], Mapping[str, float]]) -> dict[str, Statistic]:
    found = list(map(values, row.records))
    return {name: statistic([of[name] for of in found]) for name in found[0]}


def _intervals(row: Row) -> dict[str, Interval | None]:
    return {
        name: interval([record.value(name) for record in row.records]) for name in row.statistics
    }


def _order(row: Row) -> SortKey:
    *victim, defense = (sort_key(section, row.name(section), row.settings) for section in SECTIONS)
    return *victim, rank(row), defense, identity(row.records[0].settings)


def rank(row: Row) -> int:
    """Return where a row's defense stands among the controls, ``none`` and ``ft``, and the others after them."""
    name = row.name("defense")
    return CONTROLS.index(name) if name in CONTROLS else len(CONTROLS)


# --- Rows together ---------------------------------------------------------------------------------------------------


def by_task(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of each kind of task, which are those that were measured alike and can share a table."""
    kinds: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        kinds.setdefault(names(row.metrics), []).append(row)
    return list(kinds.values())


def metrics_of(rows: Iterable[Row]) -> tuple[Metric, ...]:
    """Return the metrics of rows, in order, each name once; of one kind of task they are those of any row."""
    found: dict[str, Metric] = {}
    for row in rows:
        for metric in row.metrics:
            found.setdefault(metric.name, metric)
    return tuple(found.values())


def totals_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return the names of the counts of test inputs that the metrics of rows are measured on."""
    return totals(metrics_of(rows))


def records_of(rows: Iterable[Row]) -> list[Record]:
    """Return the records of rows, row by row and by seed."""
    return [record for row in rows for record in row.records]


def names_in(rows: Iterable[Row], section: str) -> list[str]:
    """Return the bare names in a section of the rows' configs, each once and in order."""
    return list(dict.fromkeys(row.name(section) for row in rows))


def is_repeated(rows: Iterable[Row]) -> bool:
    """Say whether a row sums up several seeds, so that there are deviations to be told."""
    return any(row.n > 1 for row in rows)


def common(rows: Iterable[Row]) -> str:
    """Name the data and the model where all rows share them."""
    shared = [found[0] for found in _data_and_model(rows) if len(set(found)) == 1]
    return ", ".join(shared)


def victims(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each victim, in order, under its attack and whatever of data and model they do not share."""
    varies = [len(set(found)) > 1 for found in _data_and_model(rows)]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        apart = itertools.compress((row.data, row.model), varies)
        groups.setdefault(" · ".join([row.attack, *apart]), []).append(row)
    return groups


def _data_and_model(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Return the labels of the data of all rows, and those of the models."""
    return list(zip(*((row.data, row.model) for row in rows), strict=True))
