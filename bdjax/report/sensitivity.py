"""Sensitivity curves: what accuracy and attack success rate make of an option, such as ρ, that a set of runs sweeps.

A curve is drawn of every numeric option that takes at least ``LEAST`` values while nothing else changes but the seed.
Runs whose option is ``auto``, or that lack it, have no place on its axis.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bdjax.report.layout import (
    BLUE,
    GREEN,
    GREY,
    HEADING,
    MARGIN,
    ORANGE,
    WIDTH,
    axes,
    cut,
    legend,
    print_width,
    wrap,
    write,
)
from bdjax.report.rows import (
    CONTROLS,
    RATES,
    SYMBOLS,
    Row,
    common,
    flatten,
    identity,
    plain,
    rank,
    summarize,
    victims,
    without_defense,
)
from bdjax.report.tables import write_csv
from bdjax.report.uncertainty import Statistic

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST = 3  # values that make a curve; beside one that has them, two make a line
MOST_LINES = 8  # in one pair of panels
MOST_PANELS = 12  # pairs on one page
_NAMES = {"target_label"}  # numbers that name something, so that no curve leads from one to the next

# Okabe and Ito's colors again, yellow left out; markers tell the lines apart where colors do not
_COLORS = (BLUE, ORANGE, GREEN, "#A8457F", "#C08A00", "#2E9BD6", "#1A1A1A", "#8A5A2B")
_MARKERS = ("o", "D", "s", "^", "v", "P", "X", "h")
_DASHES = {"none": ":", "ft": "--"}
PANELS = (
    ("clean_accuracy", "ACC: clean accuracy"),
    ("attack_success_rate", "ASR: attack success rate"),
)
_MEASURED = RATES[:3]  # in the csv
_FEW = 12  # values that are marked themselves
_HEIGHT, _LEFT, _GAP, _BESIDE = 2.0, 0.5, 0.22, 2.0  # inches: a panel, its numbers, between two, their labels
_log = logging.getLogger(__name__)


# --- Finding ---------------------------------------------------------------------------------------------------------


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

    @property
    def name(self) -> str:
        """Return the base name of the files."""
        return f"sensitivity-{self.option}"

    @property
    def everything(self) -> list[Line]:
        """Return each line followed by those of its controls that no line before it has."""
        return list(dict.fromkeys(one for line in self.lines for one in (line, *line.controls)))


def find(rows: Iterable[Row]) -> list[Sensitivity]:
    """Return the options of which the rows hold a curve, each with its lines, in the order of the rows' settings."""
    rows = list(rows)
    options = dict.fromkeys(key for row in rows for key in row.settings if _is_quantity(key))
    return [found for option in options if (found := _sensitivity(option, rows))]


def _is_quantity(option: str) -> bool:
    # files are named after it, and a record may come from anywhere
    return option.split(".")[-1] not in _NAMES and re.fullmatch(r"\w+(\.\w+)*", option) is not None


def _sensitivity(option: str, rows: Sequence[Row]) -> Sensitivity | None:
    curves = _curves(option, rows)
    if max(map(len, curves), default=0) < LEAST:
        return None
    top = max(rank(curve[0]) for curve in curves)  # where only plain fine-tuning was swept, it is no control
    swept = {_victim(option, curve[0]) for curve in curves}
    constant = [row for row in rows if _is_constant(option, row) and rank(row) < top and _victim(option, row) in swept]
    # again, so that the labels tell no more than what differs here
    chosen = summarize(record for row in itertools.chain(*curves, constant) for record in row.records)
    labeled = [row.without(option) for row in chosen]
    lines = [Line(tuple(curve), tuple(_config(row)[option] for row in curve)) for curve in _curves(option, labeled)]
    controls = [line for line in lines if rank(line.row) < top]
    controls += [Line((row,)) for row in labeled if _is_constant(option, row)]
    of_victim: dict[str, list[Line]] = defaultdict(list)
    for control in controls:
        of_victim[_victim(option, control.row)].append(control)
    with_controls = [
        dataclasses.replace(line, controls=tuple(_controls(option, line, of_victim[_victim(option, line.row)])))
        for line in lines
        if rank(line.row) == top
    ]
    used = {control for line in with_controls for control in line.controls}
    return Sensitivity(option, (*with_controls, *(line for line in controls if line.values and line not in used)))


def _curves(option: str, rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows that differ in the option alone, where it has several values; they rise as in a summary."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if _is_number(_config(row).get(option)):
            groups.setdefault(identity(row.records[0], option), []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def _config(row: Row) -> dict[str, Any]:
    return flatten(row.records[0].config)


def _is_number(value: Any) -> bool:
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
    return without_defense(row.records[0], option)


def _shares_options(option: str, control: Row, row: Row) -> bool:
    first, second = (_options(option, one) for one in (control, row))
    return all(first[key] == second[key] for key in first.keys() & second.keys())


def _options(option: str, row: Row) -> dict[str, str]:
    """Return the options of a defense, or of the last stage of a chain, which is what its control repeats."""
    last = re.compile(r"defense\.(second\.)*")
    config = {key: value for key, value in _config(row).items() if key not in ("defense.name", option)}
    return {last.sub("", key, count=1): plain(value) for key, value in config.items() if last.match(key)}


def with_ranges(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with how far a swept option moves them: their stability, the smaller the better.

    ``ranges`` of a row holds, for each option over which it lies on a line (``defense.rho``), max - min over the line's
    values of the mean accuracy and of the mean attack success rate, in [0, 1]; all rows of a line have the same.
    """
    ranges: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for found in find(rows):
        for line in (one for one in found.everything if one.values):
            means = {rate: [getattr(row, rate).mean for row in line.rows] for rate, _ in PANELS}
            width = {rate: max(values) - min(values) for rate, values in means.items()}
            for row in line.rows:
                ranges[identity(row.records[0])][found.option] = width
    return [dataclasses.replace(row, ranges=ranges.get(identity(row.records[0]), {})) for row in rows]


# --- Values ----------------------------------------------------------------------------------------------------------


def as_csv(found: Sensitivity) -> str:
    """Return the values behind a figure as CSV text: one line for each value of each line, rates in [0, 1].

    Controls without the option have an empty field for its value.
    """
    titles = _titles(found)
    head = [f"{name}_{part}" for name in _MEASURED for part in Statistic._fields]
    lines = []
    for line in found.everything:
        for value, row in itertools.zip_longest(line.values, line.rows):
            parts = [part for name in _MEASURED for part in getattr(row, name)]
            measured = [None if part is None or math.isnan(part) else part for part in parts]
            lines.append((value, titles[row], row.defense, row.n, *measured))
    return write_csv((found.option, "attack", "defense", "n", *head), lines)


def _titles(found: Sensitivity) -> dict[Row, str]:
    """Return the attack of each row, with what tells its victim from the others."""
    rows = [row for line in found.everything for row in line.rows]
    return {row: title for title, group in victims(rows).items() for row in group}


# --- Figure ----------------------------------------------------------------------------------------------------------


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
        return max(_HEIGHT, sum(0.09 + 0.14 * len(label.splitlines()) for label in self.lines.values()))

    def colors(self, palette: Mapping[str, int]) -> dict[Line, tuple[str, str]]:
        """Return color and marker of each line; its controls have its color where they are its alone, else grey."""
        styles = {}
        for i, (line, label) in enumerate(self.lines.items()):
            j = palette.get(label, i)
            styles[line] = (_COLORS[j], _MARKERS[j])
        shared = [control for line in self.lines for control in line.controls]
        for line in self.lines:
            for control in line.controls:
                own = shared.count(control) == 1 and len(self.lines) > 1
                styles[control] = (styles[line][0] if own else GREY, "")
        return styles


def draw(found: Sensitivity) -> Figure:
    """Draw the curves: accuracy on the left, attack success rate on the right, one pair of panels or several.

    Lines are means over seeds, bands one sample standard deviation to either side, faint points single runs. Victims
    get panels of their own where one of them has several lines, so that each keeps its controls beside it.
    """
    from matplotlib.figure import Figure

    drawn = [one.wrapped() for one in panels(found)]
    if len(drawn) > MOST_PANELS:
        left_out = sum(len(one.lines) for one in drawn[MOST_PANELS:])
        _log.warning("%s shows the first lines; %d more are in the csv beside it.", found.name, left_out)
        drawn = drawn[:MOST_PANELS]
    labels = list(dict.fromkeys(label for one in drawn for label in one.lines.values()))
    # the same label has the same color in all panels, while there are colors
    palette = {label: i for i, label in enumerate(labels)} if len(labels) <= len(_COLORS) else {}
    beside = 0.5 + max(print_width(part) for label in labels for part in label.splitlines())
    width = (WIDTH - 2 * MARGIN - _LEFT - _GAP - beside) / 2
    titled = 0.22 if any(one.title for one in drawn) else 0.0
    heights = [titled + 0.2 + one.height + 0.3 for one in drawn]
    page = Figure(figsize=(WIDTH, 0.62 + sum(heights) + 0.55), facecolor="white")
    write(page, MARGIN, 0.12, cut(heading(found), 0.65 * (WIDTH - 2 * MARGIN)), **HEADING)
    write(page, MARGIN, 0.34, cut(circumstances(found), WIDTH - 2 * MARGIN), color=GREY)
    top = 0.62
    for one, height in zip(drawn, heights, strict=True):
        write(page, MARGIN, top, cut(one.title, 0.7 * (WIDTH - 2 * MARGIN)), size=10, weight="bold")
        styles = one.colors(palette)
        for i, (rate, title) in enumerate(PANELS):
            left = MARGIN + _LEFT + i * (width + _GAP)
            ax = axes(page, left, top + titled + 0.2, width, one.height)
            _draw_lines(ax, rate, one.lines, styles)
            ax.set_title(title, size=8.5, loc="left", pad=4)
            _value_axis(ax, found, width)
            _rate_axis(ax, numbers=i == 0)
            if one is drawn[-1]:
                ax.set_xlabel(axis_label(found.option))
        _lines_key(page, one, styles, WIDTH - MARGIN - beside + 0.08, top + titled + 0.2)
        top += height
    if key := _marks_key(found):
        legend(page, key, top + 0.25)
    return page


def panels(found: Sensitivity) -> list[Panels]:
    """Return what is drawn together: all lines, or those of each victim, in parts that panels can hold."""
    titles = _titles(found)
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
    if len({row.name("defense") for row in rows}) == 1:
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
    names = dict.fromkeys(line.row.name("defense") for line in found.lines)
    of = f" of {', '.join(names)}" if found.option.startswith("defense.") else ""
    return f"Sensitivity{of} to {_words(found.option)}"


def circumstances(found: Sensitivity) -> str:
    """Return what the lines share, how often each run was repeated, and what the rates are shares of."""
    rows = [row for line in found.lines for row in line.rows]
    shared = list(victims(rows)) if len(victims(rows)) == 1 else []
    names = dict.fromkeys(row.name("defense") for row in rows)
    shared += [*names] if len(names) == 1 and not found.option.startswith("defense.") else []
    seeds = _range(row.n for row in rows)
    clean, attacked = ("/".join(map(str, sorted(totals))) for totals in _totals(rows))
    return " · ".join(
        part
        for part in (
            common(rows),
            *shared,
            "one seed" if seeds == "1" else f"{seeds} seeds",
            f"ACC of {clean} test images, ASR of {attacked} triggered ones",
        )
        if part
    )


def _totals(rows: Sequence[Row]) -> tuple[set[int], set[int]]:
    return {total for row in rows for total in row.clean_total}, {total for row in rows for total in row.attack_total}


def _words(option: str) -> str:
    section, *_, last = option.split(".")
    words = SYMBOLS.get(last, last.replace("_", " "))
    return words if section in ("attack", "defense") else f"{section} {words}"  # of what the share is, or the rate


def axis_label(option: str) -> str:
    """Return an option in words and under its full key."""
    return f"{_words(option)}  ({option})"


def _draw_lines(ax: Axes, rate: str, lines: Mapping[Line, str], styles: Mapping[Line, tuple[str, str]]) -> None:
    """Draw lines, bands and single runs, above them the means, below them the controls."""
    controls = list(dict.fromkeys(control for line in lines for control in line.controls))
    for control in controls:
        hides = any(_coincide(control, other, rate) for other in controls if other is not control)
        _draw_control(ax, rate, control, GREY if hides else styles[control][0])
    for line in lines:
        color, marker = styles[line]
        statistics = [getattr(row, rate) for row in line.rows]
        means = _means(line, rate)
        stds = 100 * np.array([math.nan if statistic.std is None else statistic.std for statistic in statistics])
        low, high = np.clip([means - stds, means + stds], 0, 100)
        ax.fill_between(line.values, low, high, color=color, alpha=0.13, lw=0, zorder=2)
        ax.vlines(line.values, low, high, color=color, alpha=0.45, lw=1, zorder=3)
        repeated = [(value, row) for value, row in zip(line.values, line.rows, strict=True) if row.n > 1]
        runs = [(value, 100 * record.value(rate)) for value, row in repeated for record in row.records]
        if runs:
            ax.plot(*zip(*runs, strict=True), marker, color=color, ms=3, alpha=0.35, mew=0, zorder=4, clip_on=False)
        style = {"color": color, "marker": marker, "ms": 5.5, "mec": "white", "mew": 0.7, "lw": 1.4}
        ax.plot(line.values, means, zorder=5, clip_on=False, **style)


def _means(line: Line, rate: str) -> np.ndarray:
    return 100 * np.array([getattr(row, rate).mean for row in line.rows])


def _coincide(first: Line, second: Line, rate: str) -> bool:
    """Say whether two controls of one kind lie on each other, so that neither's color would tell whose it is."""
    alike = first.row.name("defense") == second.row.name("defense") and first.values == second.values
    return alike and bool(np.all(np.abs(_means(first, rate) - _means(second, rate)) < 1))


def _draw_control(ax: Axes, rate: str, control: Line, color: str) -> None:
    means = _means(control, rate)
    style = {"color": color, "ls": _DASHES[control.row.name("defense")], "lw": 1, "zorder": 1.5}
    if control.values:
        ax.plot(control.values, means, **style)
    else:
        ax.axhline(means[0], **style)


def _rate_axis(ax: Axes, numbers: bool) -> None:
    ax.set_ylim(-3, 103)
    ax.set_yticks(range(0, 101, 25), ["0", "25", "50", "75", "100 %"] if numbers else [""] * 5)
    ax.grid(axis="y", color="#D5D5D5", lw=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)
    ax.spines[["left", "right", "top"]].set_visible(False)
    ax.spines["bottom"].set_color(GREY)


def _value_axis(ax: Axes, found: Sensitivity, width: float) -> None:
    """Scale the axis to the values and mark them, with a number at each that has room for it."""
    values = sorted({value for line in found.lines for value in line.values})
    name, options = scale(values)
    ax.set_xscale(name, **options)
    transform = ax.xaxis.get_transform()
    places = transform.transform(np.array(values, float))
    margin = 0.05 * (places[-1] - places[0])
    ax.set_xlim(*transform.inverted().transform(np.array([places[0] - margin, places[-1] + margin])))
    ax.minorticks_off()
    ax.tick_params(axis="x", length=3, color=GREY)
    if len(values) > _FEW and name == "linear":
        return  # round numbers tell more than some of the values
    inches = width * (places - places[0]) / (places[-1] - places[0] + 2 * margin)
    numbers = [plain(value) for value in values]
    shown = _with_room(inches.tolist(), [print_width(number) + 0.1 for number in numbers])
    ax.set_xticks(values, [number if i in shown else "" for i, number in enumerate(numbers)])
    ax.minorticks_off()


def scale(values: Sequence[float]) -> tuple[str, dict[str, float]]:
    """Return the scale for rising values, by its name in matplotlib and its options.

    It is logarithmic where they span a factor of ten and lie more evenly so; a zero before them then stands
    as far from the next as these from each other.
    """
    positive = np.array([value for value in values if value > 0], float)
    if values[0] < 0 or len(positive) < 2 or positive[-1] < 9.99 * positive[0]:
        return "linear", {}
    gaps, ratios = np.diff(positive), np.diff(np.log10(positive))
    if len(positive) > 2 and ratios.max() / ratios.min() >= gaps.max() / gaps.min():
        return "linear", {}
    if values[0] > 0:
        return "log", {}
    return "symlog", {"linthresh": float(positive[0]), "linscale": float(0.9 * np.median(ratios))}


def _with_room(places: Sequence[float], widths: Sequence[float]) -> set[int]:
    """Return which labels to print so that none touches another: the last, and from the first on what fits."""
    last = len(places) - 1
    shown, end = {last}, -math.inf
    for i in range(last):
        left, right = places[i] - widths[i] / 2, places[i] + widths[i] / 2
        if left >= end and right <= places[last] - widths[last] / 2:
            shown.add(i)
            end = right
    return shown


def _lines_key(page: Figure, panels: Panels, styles: Mapping[Line, tuple[str, str]], left: float, top: float) -> None:
    from matplotlib.lines import Line2D

    across, down = page.get_size_inches()
    handles = [
        Line2D([], [], color=color, marker=marker, ms=5.5, mec="white", mew=0.7, lw=1.4, label=label)
        for line, label in panels.lines.items()
        for color, marker in [styles[line]]
    ]
    page.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(left / across, 1 - top / down),
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.8,
        handletextpad=0.5,
    )


def _marks_key(found: Sensitivity) -> list[Artist]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    repeated = any(row.n > 1 for line in found.lines for row in line.rows)
    style = {"color": GREY, "marker": "o", "mew": 0}
    keys: list[Artist] = []
    if repeated:
        keys.append(Line2D([], [], ms=5.5, lw=1.4, label="mean", **style))
        keys.append(Patch(color=GREY, alpha=0.25, lw=0, label="± std"))
        keys.append(Line2D([], [], ms=3, alpha=0.5, ls="", label="one seed", **style))
    names = {control.row.name("defense") for line in found.lines for control in line.controls}
    words = {"none": "none (attacked network)", "ft": "ft (plain fine-tuning)"}
    return keys + [
        Line2D([], [], color=GREY, lw=1, ls=_DASHES[name], label=words[name]) for name in CONTROLS if name in names
    ]
