"""Sensitivity curves: what the utility and the attack success make of an option, such as ρ, that runs sweep.

A curve is drawn of every numeric option that takes at least ``LEAST`` values while nothing else changes but the seed.
Runs whose option is ``auto``, or that lack it, have no place on its axis.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeGuard

from bdjax.report import values
from bdjax.report.labels import flatten, identity, plain, without_defense
from bdjax.report.rows import CONTROLS, Row, by_task, rank, records_of, summarize, victims
from bdjax.report.statistics import Statistic
from bdjax.tasks.metrics import ATTACK, RATING, UTILITY, Metric, of_roles

LEAST = 3  # values that make a curve; beside one that has them, two make a line
DRAWN = (UTILITY, ATTACK)  # the metrics that have a curve
# Numbers that name something, so that no curve leads from one to the next
_NAMES = {"target_label"}


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """Runs that agree in everything but one option and the seed: one row for each value, in rising order.

    The labels of the rows leave the option out. A control that does not have the option is one row without a value.
    """

    rows: tuple[Row, ...]
    values: tuple[float, ...] = ()
    controls: tuple[Line, ...] = ()  # no defense, and plain fine-tuning, of the same victim

    @property
    def row(self) -> Row:
        """Return a row, for what all rows share: labels, and names."""
        return self.rows[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Sensitivity:
    """An option that was swept, under its full key (``defense.rho``), and its lines."""

    option: str
    lines: tuple[Line, ...]
    kind: str = ""  # of the task, where the option was swept on several: the name of its utility

    @property
    def name(self) -> str:
        """Return the base name of the files."""
        return f"sensitivity-{self.option}" + (f"-{self.kind}" if self.kind else "")

    @property
    def drawn(self) -> tuple[Metric, ...]:
        """Return the metrics that have a curve."""
        return of_roles(self.lines[0].row.metrics, *DRAWN)

    @property
    def titles(self) -> dict[Row, str]:
        """Return the attack of each row, with what tells its victim from the others."""
        rows = [row for line in self.everything for row in line.rows]
        return {row: title for title, group in victims(rows).items() for row in group}

    @property
    def everything(self) -> list[Line]:
        """Return each line followed by those of its controls that no line before it has."""
        return list(dict.fromkeys(one for line in self.lines for one in (line, *line.controls)))


def find(rows: Iterable[Row]) -> list[Sensitivity]:
    """Return the options of which the rows hold a curve, each with its lines, in the order of the rows' settings."""
    kinds = by_task(list(rows))
    made = []
    for own in kinds:
        kind = own[0].metric(UTILITY).name if len(kinds) > 1 else ""
        for option in dict.fromkeys(
            key for row in own for key in row.settings if _is_quantity(key)
        ):
            if found := _sensitivity(option, own):
                made.append(dataclasses.replace(found, kind=kind))
    return made


def _is_quantity(option: str) -> bool:
    # files are named after it, and a record may come from anywhere
    return option.split(".")[-1] not in _NAMES and re.fullmatch(r"\w+(\.\w+)*", option) is not None


def _sensitivity(option: str, rows: Sequence[Row]) -> Sensitivity | None:
    curves = _curves(option, rows)
    if max(map(len, curves), default=0) < LEAST:
        return None
    # Where only plain fine-tuning was swept, it is no control
    top = max(rank(curve[0]) for curve in curves)
    swept = {_victim(option, curve[0]) for curve in curves}
    constant = [
        row
        for row in rows
        if _is_constant(option, row) and rank(row) < top and _victim(option, row) in swept
    ]
    # again, so that the labels tell no more than what differs here
    chosen = summarize(records_of([*itertools.chain(*curves), *constant]))
    labeled = [row.without(option) for row in chosen]
    lines = [Line(tuple(curve), _values(option, curve)) for curve in _curves(option, labeled)]
    controls = [line for line in lines if rank(line.row) < top]
    controls += [Line((row,)) for row in labeled if _is_constant(option, row)]
    of_victim: dict[str, list[Line]] = defaultdict(list)
    for control in controls:
        of_victim[_victim(option, control.row)].append(control)
    with_controls = []
    for line in lines:
        if rank(line.row) == top:
            own = _controls(option, line, of_victim[_victim(option, line.row)])
            with_controls.append(dataclasses.replace(line, controls=tuple(own)))
    used = {control for line in with_controls for control in line.controls}
    return Sensitivity(
        option, (*with_controls, *(line for line in controls if line.values and line not in used))
    )


def _curves(option: str, rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows that differ in the option alone, where it has several values; they rise as in a summary."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if _is_number(_config(row).get(option)):
            groups.setdefault(identity(row.records[0].settings, option), []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def _values(option: str, curve: Iterable[Row]) -> tuple[float, ...]:
    return tuple(filter(_is_number, (_config(row)[option] for row in curve)))


def _config(row: Row) -> dict[str, object]:
    return flatten(row.records[0].config)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_constant(option: str, row: Row) -> bool:
    return row.name("defense") in CONTROLS and option not in _config(row)


def _controls(option: str, line: Line, of_victim: Sequence[Line]) -> list[Line]:
    """Return the controls of a line: those of its victim and, where there are several, with its options."""
    found = []
    for name in CONTROLS:
        named = [control for control in of_victim if control.row.name("defense") == name]
        alike = [control for control in named if _shares_options(option, control.row, line.row)]
        found += alike or (named if len(named) == 1 else [])
    return found


def _victim(option: str, row: Row) -> str:
    return without_defense(row.records[0].settings, option)


def _shares_options(option: str, control: Row, row: Row) -> bool:
    first, second = (_options(option, one) for one in (control, row))
    return all(first[key] == second[key] for key in first.keys() & second.keys())


def _options(option: str, row: Row) -> dict[str, str]:
    """Return the options of a defense, or of the last stage of a chain, which is what its control repeats."""
    last = re.compile(r"defense\.(second\.)*")
    config = {
        key: value for key, value in _config(row).items() if key not in ("defense.name", option)
    }
    return {
        last.sub("", key, count=1): plain(value) for key, value in config.items() if last.match(key)
    }


def with_ranges(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with how far a swept option moves them: their stability, the smaller the better.

    ``ranges`` of a row holds, for each option over which it lies on a line (``defense.rho``), max - min over the line's
    values of the means of the utility and of the attack success, in [0, 1]; all rows of a line have the same.
    """
    ranges: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for found in find(rows):
        for line in (one for one in found.everything if one.values):
            width = {}
            for metric in found.drawn:
                means = [row.statistics[metric.name].mean for row in line.rows]
                width[metric.name] = max(means) - min(means)
            for row in line.rows:
                ranges[identity(row.records[0].settings)][found.option] = width
    return [
        dataclasses.replace(row, ranges=ranges.get(identity(row.records[0].settings), {}))
        for row in rows
    ]


def as_csv(found: Sensitivity) -> str:
    """Return the values behind a figure as CSV text: one line for each value of each line, rates in [0, 1].

    Controls without the option have an empty field for its value.
    """
    titles = found.titles
    measured = [metric.name for metric in found.lines[0].row.metrics if metric.role != RATING]
    head = [f"{name}_{part}" for name in measured for part in Statistic._fields]
    lines = []
    for line in found.everything:
        for value, row in itertools.zip_longest(line.values, line.rows):
            parts = [part for name in measured for part in row.statistics[name]]
            known = [None if part is None or math.isnan(part) else part for part in parts]
            lines.append((value, titles[row], row.defense, row.n, *known))
    return values.write((found.option, "attack", "defense", "n", *head), lines)
