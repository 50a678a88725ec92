"""Values as CSV: what a table is written from, unrounded, and the file format for all of the report."""

from __future__ import annotations

import csv
import functools
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from bdjax.files.printable import printable
from bdjax.report.rows import Row, metrics_of, totals_of
from bdjax.report.statistics import Interval, Statistic
from bdjax.runs import soundness
from bdjax.runs.record_format import COSTS, SECTIONS
from bdjax.tasks.metrics import names

Cell: TypeAlias = object  # a text, a number, or None for an empty field; written as str() has it
Column: TypeAlias = Callable[[Row], Cell]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def table(rows: Sequence[Row]) -> str:
    """Write rows as CSV with full names and unrounded values in [0, 1].

    Rows of several kinds of task have the columns of all of them, and nothing in those that are not theirs.
    """
    columns = _columns(rows)
    lines = [[read(row) for read in columns.values()] for row in rows]
    return write(list(columns), lines)


def write(head: Sequence[str], lines: Iterable[Sequence[Cell]]) -> str:
    """Write lines as CSV text; None is an empty field.

    A text that a spreadsheet would take for a formula gets an apostrophe before it, as OWASP advises (CSV injection);
    numbers stay what they are.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_harmless, head))
    writer.writerows([_harmless(cell) for cell in line] for line in lines)
    return text.getvalue().rstrip("\n")


def _harmless(cell: Cell) -> Cell:
    """Return a cell whose text, if it is one, is nothing but text."""
    if not isinstance(cell, str):
        return cell
    return ("'" if cell.startswith(_FORMULA) else "") + printable(cell)


def _columns(rows: Sequence[Row]) -> dict[str, Column]:
    """Return the columns by their heads, and how each is read from a row."""
    columns: dict[str, Column] = {
        section: functools.partial(_name, section) for section in SECTIONS
    }
    for key in dict.fromkeys(key for row in rows for key in row.settings):
        columns[key] = functools.partial(_setting, key)
    columns["n"] = lambda row: row.n
    columns["seeds"] = lambda row: _joined(row.seeds)
    for name in (*names(metrics_of(rows)), *COSTS):
        columns |= _both(name, lambda row: {**row.statistics, **row.costs})
    for name in dict.fromkeys(name for row in rows for name in (*row.sharpness, *row.stealth)):
        columns |= _both(name, lambda row: {**row.sharpness, **row.stealth}, undefined=None)
    columns["low_attack_success_share"] = lambda row: row.low_attack_success_share
    for name in totals_of(rows):
        columns[name] = functools.partial(_total, name)
    return columns | _more_columns(rows)


def _name(section: str, row: Row) -> str:
    return row.name(section)


def _setting(key: str, row: Row) -> Cell:
    return row.settings.get(key)


def _total(name: str, row: Row) -> str:
    return _joined(row.totals(name))


def _both(
    name: str, of: Callable[[Row], Mapping[str, Statistic]], undefined: float | None = math.nan
) -> dict[str, Column]:
    """Return the columns of mean and deviation; ``undefined`` stands where a mean is NaN."""

    def value(part: str, row: Row) -> Cell:
        found = getattr(of(row).get(name), part, None)
        return undefined if found is not None and math.isnan(found) else found

    return {f"{name}_{part}": functools.partial(value, part) for part in Statistic._fields}


def _more_columns(rows: Sequence[Row]) -> dict[str, Column]:
    """Return the columns of intervals, ranges, mean ranks and notes that rows have."""
    columns: dict[str, Column] = {}
    if any(row.intervals for row in rows):
        for name in names(metrics_of(rows)):
            for part in Interval._fields:
                columns[f"{name}_{part}"] = functools.partial(_bound, name, part)
    for option, name in ranges(rows):
        columns[f"{name}_range_over_{option}"] = functools.partial(_range, option, name)
    if any(row.mean_rank is not None for row in rows):
        columns["mean_rank"] = lambda row: row.mean_rank
    if any(row.is_marked for row in rows):
        columns["notes"] = lambda row: "; ".join(soundness.told(row.faults))
    return columns


def _bound(name: str, part: str, row: Row) -> Cell:
    return getattr(row.intervals.get(name), part, None)


def _range(option: str, name: str, row: Row) -> Cell:
    return row.ranges.get(option, {}).get(name)


def ranges(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the swept options and, for each, the metrics whose ranges rows have."""
    found: dict[tuple[str, str], None] = {}
    for row in rows:
        for option, of in row.ranges.items():
            found |= dict.fromkeys((option, name) for name in of)
    return list(found)


def _joined(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))
