"""What of a sweep is drawn together: lines in pairs of panels, with the words around them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping

from bdjax.report.curves.lines import Line, Sensitivity
from bdjax.report.labels import SYMBOLS
from bdjax.report.layout import BLUE, GREEN, GREY, ORANGE, wrap
from bdjax.report.rows import common, names_in, victims
from bdjax.tasks.metrics import UTILITY, Metric

MOST_LINES = 8  # in one pair of panels
MOST_PANELS = 12  # pairs on one page
# Okabe and Ito's colors again, yellow left out; markers tell the lines apart where colors do not
COLORS = (BLUE, ORANGE, GREEN, "#A8457F", "#C08A00", "#2E9BD6", "#1A1A1A", "#8A5A2B")
_MARKERS = ("o", "D", "s", "^", "v", "P", "X", "h")
_HEIGHT, _BESIDE = 2.0, 2.0  # inches: the least of a panel, and the most of the labels beside it


@dataclasses.dataclass(frozen=True, eq=False)
class Panels:
    """One pair of panels and what stands above and beside it: a title, lines and their labels."""

    title: str
    lines: Mapping[Line, str]  # to labels

    def wrapped(self) -> Panels:
        """Return the same with labels on as many lines as the room beside the panels asks for."""
        lines = {line: "\n".join(wrap(label, _BESIDE)) for line, label in self.lines.items()}
        return dataclasses.replace(self, lines=lines)

    @property
    def height(self) -> float:
        """Return the inches of a panel: enough for the labels beside it."""
        return max(
            _HEIGHT, sum(0.09 + 0.14 * len(label.splitlines()) for label in self.lines.values())
        )

    def colors(self, palette: Mapping[str, int]) -> dict[Line, tuple[str, str]]:
        """Return color and marker of each line; its controls have its color where they are its alone, else grey."""
        styles = {}
        for i, (line, label) in enumerate(self.lines.items()):
            j = palette.get(label, i)
            styles[line] = (COLORS[j], _MARKERS[j])
        shared = [control for line in self.lines for control in line.controls]
        for line in self.lines:
            for control in line.controls:
                own = shared.count(control) == 1 and len(self.lines) > 1
                styles[control] = (styles[line][0] if own else GREY, "")
        return styles


def panels(found: Sensitivity) -> list[Panels]:
    """Return what is drawn together: all lines, or those of each victim, in parts that panels can hold."""
    titles = found.titles
    by_victim: dict[str, list[Line]] = {}
    for line in found.lines:
        by_victim.setdefault(titles[line.row], []).append(line)
    apart = len(by_victim) > 1 and max(map(len, by_victim.values())) > 1
    groups = by_victim if apart else {"": list(found.lines)}
    made = []
    for title, lines in groups.items():
        parts = list(_parts(lines))
        for i, part in enumerate(parts, 1):
            count = f" ({i} of {len(parts)})" if title and len(parts) > 1 else ""
            labels = {line: _label(found, line, "" if apart else titles[line.row]) for line in part}
            made.append(Panels(title + count, labels))
    return made


def _parts(lines: list[Line]) -> Iterator[list[Line]]:
    """Yield lines in parts of nearly equal length that panels can hold."""
    count = math.ceil(len(lines) / MOST_LINES)
    for i in range(count):
        yield lines[i * len(lines) // count : (i + 1) * len(lines) // count]


def _label(found: Sensitivity, line: Line, title: str) -> str:
    """Return what tells a line from the others: its victim, its defense, its settings."""
    rows = [line.row for line in found.lines]
    defense = line.row.defense
    if len(names_in(rows, "defense")) == 1:
        defense = defense.removeprefix(line.row.name("defense")).strip()
    shown = [title] if len(victims(rows)) > 1 and title else []
    label = " · ".join([*shown, *([defense] if defense else [])]) or line.row.defense
    if len({row.n for other in found.everything for row in other.rows}) > 1:
        label += f" (n={_range(row.n for row in line.rows)})"
    return label


def _range(numbers: Iterable[int]) -> str:
    low, high = min(found := list(numbers)), max(found)
    return str(low) if low == high else f"{low}–{high}"


def heading(found: Sensitivity) -> str:
    """Return the title of a figure."""
    names = names_in([line.row for line in found.lines], "defense")
    of = f" of {', '.join(names)}" if found.option.startswith("defense.") else ""
    return f"Sensitivity{of} to {_words(found.option)}"


def circumstances(found: Sensitivity) -> str:
    """Return what the lines share, how often each run was repeated, and what the rates are shares of."""
    rows = [row for line in found.lines for row in line.rows]
    shared = list(victims(rows)) if len(victims(rows)) == 1 else []
    names = names_in(rows, "defense")
    shared += [*names] if len(names) == 1 and not found.option.startswith("defense.") else []
    seeds = _range(row.n for row in rows)
    measured = [f"{metric.head}{_on(found, metric)}" for metric in found.drawn]
    parts = (
        common(rows),
        *shared,
        "one seed" if seeds == "1" else f"{seeds} seeds",
        ", ".join(measured),
    )
    return " · ".join(filter(None, parts))


def _on(found: Sensitivity, metric: Metric) -> str:
    """Say on how many inputs a metric is measured."""
    if not metric.total:
        return ""
    totals = sorted(
        {total for line in found.lines for row in line.rows for total in row.totals(metric.total)}
    )
    inputs = "test images" if metric.role == UTILITY else "triggered ones"
    return f" {'of' if metric.part else 'on'} {'/'.join(map(str, totals))} {inputs}"


def panel_title(metric: Metric) -> str:
    """Return what stands above the curves of a metric."""
    return f"{metric.head}: {metric.words}"


def _words(option: str) -> str:
    section, *_, last = option.split(".")
    words = SYMBOLS.get(last, last.replace("_", " "))
    # Of what the share is, or the rate
    return words if section in ("attack", "defense") else f"{section} {words}"


def axis_label(option: str) -> str:
    """Return an option in words and under its full key."""
    return f"{_words(option)}  ({option})"
