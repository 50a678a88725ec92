"""Published values beside our own: cells, and the table of them for the console, Markdown, CSV and LaTeX."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bdjax.checks import InputError, one_of
from bdjax.report import values
from bdjax.report.cells import significant, spread
from bdjax.report.grid import FORMATS, Grid, Line, write
from bdjax.report.published import Value
from bdjax.report.records import Record
from bdjax.report.statistics import Statistic, statistic
from bdjax.runs import soundness
from bdjax.tasks.metrics import RESTORED, Metric, of_roles

NOT_RUN, NOT_MEASURED = "not run", "not measured"
_DROP = "_drop"
_SECONDS = "runtime_s"
_SHARPNESS = {"lambda_max": "largest_eigenvalue", "trace_h": "hessian_trace"}
_HEADS = {_SECONDS: "seconds", "lambda_max": "λ_max", "trace_h": "Tr(H)"}
_NOTED = "†"


class Cell(NamedTuple):
    """A published value and ours.

    Attributes:
      value: what is published.
      ours: one number for each seed, in the unit of the published one; empty where there is none.
      seeds: of those numbers.
      why: why some or all of ours are missing, or say little: ``no defense anp``, ``not run``, ``1 of 3 diverged``,
        ``attack did not take (ASR 1.7 %)``.
    """

    value: Value
    ours: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    why: str = ""

    @property
    def statistic(self) -> Statistic:
        """Mean and sample standard deviation of ours; NaN where there is none."""
        return statistic(self.ours) if self.ours else Statistic(math.nan, None)

    @property
    def difference(self) -> float:
        """Our mean less the published value, in its unit; NaN where there is none of ours."""
        return self.statistic.mean - self.value.value


def named(metrics: Sequence[Metric]) -> dict[str, Metric]:
    """Return the metrics of a task under the papers' names: their heads in small letters, and ``lcr`` for ``ra``."""
    found = {metric.head.lower(): metric for metric in metrics}
    for metric in of_roles(metrics, RESTORED):
        found["lcr"] = metric
    return found


def measure(record: Record, metric: str) -> float:
    """Return what a run has of a published metric, in its unit; NaN where that was not measured.

    Rates and drops are percentages; ``lcr`` is the robust accuracy; a drop is that by the defense; ``runtime_s`` are
    the defense's seconds without compiling; ``lambda_max`` and ``trace_h`` are those on clean and triggered images,
    half and half, with true labels, which `bdjax smoothness` writes.

    Raises:
        InputError: a metric that is none of the run's task.
    """
    metrics = named(record.metrics)
    drops = {
        f"{name}{_DROP}": one
        for name, one in metrics.items()
        if one.name in record.after and name != "lcr"
    }
    one_of([*metrics, *drops, *_SHARPNESS, _SECONDS], metric=metric)
    if metric in metrics:
        return 100 * record.value(metrics[metric].name)
    if metric in drops:
        name = drops[metric].name
        return 100 * (record.before[name] - record.after[name])
    return (
        record.value("run_seconds")
        if metric == _SECONDS
        else record.sharpness()[_SHARPNESS[metric]]
    )


def head(metric: str) -> str:
    """Return what a table calls a published metric, without the paper's underscore."""
    name = metric.removesuffix(_DROP)
    return f"{name.upper()} drop" if name != metric else _HEADS.get(metric, metric.upper())


def fill(value: Value, groups: Sequence[Sequence[Record]], why: str = "") -> Cell:
    """Return the cell of a published value and the runs that answer it.

    Args:
      value: what is published.
      groups: its runs, one for each seed; where the value is a mean over attacks, those of each of them. Each seed that
        all groups have gives a number: the mean over the groups. Attacks that are none (`bdjax.runs.soundness`) are
        left out of that mean; a single one has its number. The cell says so.
      why: what is known to be missing.
    """
    faulty = {number: faults for number, group in enumerate(groups) if (faults := _faults(group))}
    defended = [soundness.of_defended(record.content) for group in groups for record in group]
    why = "; ".join(filter(None, (why, _told(faulty, len(groups)), *soundness.told(defended))))
    if len(groups) > 1:
        groups = [group for number, group in enumerate(groups) if number not in faulty]
    measured = [
        {record.seed: measure(record, value.metric) for record in group} for group in groups
    ]
    seeds = sorted(set.intersection(*map(set, measured))) if measured else []
    ours = tuple(statistics.fmean(of[seed] for of in measured) for seed in seeds)
    if not ours or any(map(math.isnan, ours)):
        return Cell(value, why=why or (NOT_MEASURED if ours else NOT_RUN))
    return Cell(value, ours, tuple(seeds), why)


def _faults(group: Sequence[Record]) -> list[str]:
    """Say what is wrong with the victims of a published value's runs."""
    return soundness.told([soundness.of_victim(record.content) for record in group])


def _told(faulty: Mapping[int, Sequence[str]], groups: int) -> str:
    """Say what is wrong, and how many of the attacks of a mean are not in it."""
    words = ", ".join(dict.fromkeys(words for own in faulty.values() for words in own))
    return (
        f"mean without {len(faulty)} of {groups} attacks: {words}"
        if faulty and groups > 1
        else words
    )


def table(cells: Sequence[Cell], setting: str, format: str = "console") -> str:
    """Write cells as a table: ``console``, ``markdown``, ``csv`` or ``latex`` (needs the package booktabs).

    Every published value has its place; where ours is missing, the last column says why. In CSV each value has a line
    of its own, all in the published unit.

    Args:
      cells: of one published table.
      setting: what ours were measured in, for the caption.
      format: how to write it.

    Raises:
        InputError: an unknown format, or no cells.
    """
    one_of(FORMATS, format=format)
    if not cells:
        raise InputError("There are no published values to compare with.")
    return _csv(cells) if format == "csv" else write(_grid(cells, setting), format)


def _groups(cells: Sequence[Cell]) -> dict[str, dict[str, dict[str, Cell]]]:
    """Return the cells by attack, defense and metric; settings that differ within the table are part of the names."""
    attack, defense = ("attack", "poison_rate", "dataset", "model"), ("defense", "clean_data")
    varied = {
        column for column in (*attack, *defense) if len({_of(cell, column) for cell in cells}) > 1
    }
    groups: dict[str, dict[str, dict[str, Cell]]] = {}
    for cell in cells:
        names = (
            [_of(cell, column) for column in columns if column == columns[0] or column in varied]
            for columns in (attack, defense)
        )
        planted, defended = (" ".join(filter(None, words)) for words in names)
        groups.setdefault(planted, {}).setdefault(defended, {})[cell.value.metric] = cell
    return groups


def _of(cell: Cell, column: str) -> str:
    """Return a column of the value; rate and images count only where there is an attack and a defense to have them."""
    value = cell.value
    if (column == "clean_data" and value.clean_data in ("", "poisoned_trainset")) or (
        column == "poison_rate" and value.attack in ("avg", "benign")
    ):
        return ""
    return getattr(value, column)


def _written(cell: Cell | None) -> tuple[str, str, str]:
    """Write the published value, ours, and the difference."""
    if cell is None:
        return "", "", ""
    raw = cell.value.metric in (_SECONDS, *_SHARPNESS)
    printed = Statistic(cell.value.value, cell.value.std)
    published = significant(printed) if raw else spread(printed, 2)
    published += _NOTED if cell.value.note else ""
    if not cell.ours:
        return published, "–", ""
    ours = significant(cell.statistic) if raw else spread(cell.statistic)
    difference = f"{cell.difference:+.3g}" if raw else f"{cell.difference:+.1f}"
    return published, f"{ours} ({len(cell.ours)})", difference


def _grid(cells: Sequence[Cell], setting: str) -> Grid:
    metrics = list(dict.fromkeys(cell.value.metric for cell in cells))

    def line(defense: str, of: Mapping[str, Cell]) -> Line:
        numbers = (text for metric in metrics for text in _written(of.get(metric)))
        why = ", ".join(dict.fromkeys(cell.why for cell in of.values() if cell.why))
        return Line([defense, *numbers, why])

    heads = [text for m in metrics for text in (f"{head(m)} published", "ours", "difference")]
    groups = {
        attack: [line(*one) for one in group.items()] for attack, group in _groups(cells).items()
    }
    heads = ["defense", *heads, "missing"]
    return Grid("attack", heads, groups, _caption(cells, setting), words=(0, len(heads) - 1))


def _caption(cells: Sequence[Cell], setting: str) -> str:
    value = cells[0].value
    missing = Counter(cell.why or NOT_RUN for cell in cells if not cell.ours)
    reasons = "; ".join(f"{why} ({number})" for why, number in missing.items())
    noted = any(cell.value.note for cell in cells)
    means = any(cell.value.attack == "avg" for cell in cells)
    sentences = (
        f"{value.paper}, {value.table}. Ours: {setting}",
        "Rates in %, ours as mean ± sample standard deviation (number of seeds); difference: ours less the published.",
        "avg: mean over the attacks." if means else "",
        f"{_NOTED}: doubtful as printed; the note stands in the CSV." if noted else "",
        f"{len(cells) - missing.total()} of {len(cells)} values have ours.",
        f"Missing: {reasons}." if missing else "",
    )
    return " ".join(sentence for sentence in sentences if sentence)


def _csv(cells: Sequence[Cell]) -> str:
    ours = ("ours", "ours_std", "n", "seeds", "difference")
    lines = []
    for cell in cells:
        *names, published, std, note = cell.value
        measured = (
            *cell.statistic,
            len(cell.ours),
            " ".join(map(str, cell.seeds)),
            cell.difference,
        )
        lines.append(
            [
                *names,
                published,
                std,
                *(measured if cell.ours else [None] * len(ours)),
                cell.why,
                note,
            ]
        )
    columns = [*Value._fields[:-3], "published", "published_std", *ours, "missing", "note"]
    return values.write(columns, lines)
