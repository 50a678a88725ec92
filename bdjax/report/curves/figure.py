"""The figure of a sweep: curves in pairs of panels, the utility on the left and the attack success on the right."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from bdjax.report.curves.axis import scale, with_room
from bdjax.report.curves.lines import Line, Sensitivity
from bdjax.report.curves.panels import (
    COLORS,
    MOST_PANELS,
    Panels,
    axis_label,
    circumstances,
    heading,
    panel_title,
    panels,
)
from bdjax.report.labels import plain
from bdjax.report.layout import GREY, HEADING, MARGIN, WIDTH, axes, cut, legend, print_width, write
from bdjax.report.rows import CONTROLS, is_repeated

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Styles: TypeAlias = Mapping[Line, tuple[str, str]]  # the color and the marker of each line

_DASHES = {"none": ":", "ft": "--"}
_FEW = 12  # values that are marked themselves
_LEFT, _GAP = 0.5, 0.22  # inches: the numbers of a panel, and between two
_log = logging.getLogger(__name__)


def draw(found: Sensitivity) -> Figure:
    """Draw the curves: the utility on the left, the attack success on the right, one pair of panels or several.

    Lines are means over seeds, bands one sample standard deviation to either side, faint points single runs. Victims
    get panels of their own where one of them has several lines, so that each keeps its controls beside it.
    """
    from matplotlib.figure import Figure

    drawn = [one.wrapped() for one in panels(found)]
    if len(drawn) > MOST_PANELS:
        left_out = sum(len(one.lines) for one in drawn[MOST_PANELS:])
        _log.warning(
            "%s shows the first lines; %d more are in the csv beside it.", found.name, left_out
        )
        drawn = drawn[:MOST_PANELS]
    labels = list(dict.fromkeys(label for one in drawn for label in one.lines.values()))
    # the same label has the same color in all panels, while there are colors
    palette = {label: i for i, label in enumerate(labels)} if len(labels) <= len(COLORS) else {}
    beside = 0.5 + max(print_width(part) for label in labels for part in label.splitlines())
    titled = 0.22 if any(one.title for one in drawn) else 0.0
    heights = [titled + 0.2 + one.height + 0.3 for one in drawn]
    page = Figure(figsize=(WIDTH, 0.62 + sum(heights) + 0.55), facecolor="white")
    write(page, MARGIN, 0.12, cut(heading(found), 0.65 * (WIDTH - 2 * MARGIN)), **HEADING)
    write(page, MARGIN, 0.34, cut(circumstances(found), WIDTH - 2 * MARGIN), color=GREY)
    top = 0.62
    for one, height in zip(drawn, heights, strict=True):
        write(page, MARGIN, top, cut(one.title, 0.7 * (WIDTH - 2 * MARGIN)), size=10, weight="bold")
        styles = one.colors(palette)
        below = _draw_pair(page, found, one, styles, top + titled + 0.2, beside)
        if one is drawn[-1]:
            for ax in below:
                ax.set_xlabel(axis_label(found.option))
        _lines_key(page, one, styles, WIDTH - MARGIN - beside + 0.08, top + titled + 0.2)
        top += height
    if key := _marks_key(found):
        legend(page, key, top + 0.25)
    return page


def _draw_pair(
    page: Figure, found: Sensitivity, one: Panels, styles: Styles, top: float, beside: float
) -> list[Axes]:
    """Draw a panel for each metric, side by side, and return them; ``top`` and ``beside`` are inches."""
    width = (WIDTH - 2 * MARGIN - _LEFT - _GAP - beside) / 2
    made = []
    for i, metric in enumerate(found.drawn):
        left = MARGIN + _LEFT + i * (width + _GAP)
        ax = axes(page, left, top, width, one.height)
        _draw_lines(ax, metric.name, one.lines, styles)
        ax.set_title(panel_title(metric), size=8.5, loc="left", pad=4)
        _value_axis(ax, found, width)
        _rate_axis(ax, numbers=i == 0)
        made.append(ax)
    return made


def _draw_lines(ax: Axes, rate: str, lines: Mapping[Line, str], styles: Styles) -> None:
    """Draw lines, bands and single runs, above them the means, below them the controls."""
    controls = list(dict.fromkeys(control for line in lines for control in line.controls))
    for control in controls:
        hides = any(_coincide(control, other, rate) for other in controls if other is not control)
        _draw_control(ax, rate, control, GREY if hides else styles[control][0])
    for line in lines:
        color, marker = styles[line]
        statistics = [row.statistics[rate] for row in line.rows]
        means = _means(line, rate)
        stds = 100 * np.array(
            [math.nan if statistic.std is None else statistic.std for statistic in statistics]
        )
        low, high = np.clip([means - stds, means + stds], 0, 100)
        ax.fill_between(line.values, low, high, color=color, alpha=0.13, lw=0, zorder=2)
        ax.vlines(line.values, low, high, color=color, alpha=0.45, lw=1, zorder=3)
        faint = {"color": color, "ms": 3, "alpha": 0.35, "mew": 0, "zorder": 4, "clip_on": False}
        if runs := _single_runs(line, rate):
            ax.plot(*zip(*runs, strict=True), marker, **faint)
        style = {"color": color, "marker": marker, "ms": 5.5, "mec": "white", "mew": 0.7, "lw": 1.4}
        ax.plot(line.values, means, zorder=5, clip_on=False, **style)


def _single_runs(line: Line, rate: str) -> list[tuple[float, float]]:
    """Return the value of the option and the rate in percent of each run that is one of several seeds."""
    runs = []
    for value, row in zip(line.values, line.rows, strict=True):
        if row.n > 1:
            runs += [(value, 100 * record.value(rate)) for record in row.records]
    return runs


def _means(line: Line, rate: str) -> np.ndarray:
    return 100 * np.array([row.statistics[rate].mean for row in line.rows])


def _coincide(first: Line, second: Line, rate: str) -> bool:
    """Say whether two controls of one kind lie on each other, so that neither's color would tell whose it is."""
    alike = (
        first.row.name("defense") == second.row.name("defense") and first.values == second.values
    )
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
    ax.set_xlim(
        *transform.inverted().transform(np.array([places[0] - margin, places[-1] + margin]))
    )
    ax.minorticks_off()
    ax.tick_params(axis="x", length=3, color=GREY)
    if len(values) > _FEW and name == "linear":
        return  # round numbers tell more than some of the values
    inches = width * (places - places[0]) / (places[-1] - places[0] + 2 * margin)
    numbers = [plain(value) for value in values]
    shown = with_room(inches.tolist(), [print_width(number) + 0.1 for number in numbers])
    ax.set_xticks(values, [number if i in shown else "" for i, number in enumerate(numbers)])
    ax.minorticks_off()


def _lines_key(page: Figure, panels: Panels, styles: Styles, left: float, top: float) -> None:
    from matplotlib.lines import Line2D

    across, down = page.get_size_inches()
    handles = [
        Line2D(
            [], [], color=color, marker=marker, ms=5.5, mec="white", mew=0.7, lw=1.4, label=label
        )
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

    repeated = any(is_repeated(line.rows) for line in found.lines)
    style = {"color": GREY, "marker": "o", "mew": 0}
    keys: list[Artist] = []
    if repeated:
        keys.append(Line2D([], [], ms=5.5, lw=1.4, label="mean", **style))
        keys.append(Patch(color=GREY, alpha=0.25, lw=0, label="± std"))
        keys.append(Line2D([], [], ms=3, alpha=0.5, ls="", label="one seed", **style))
    names = {control.row.name("defense") for line in found.lines for control in line.controls}
    words = {"none": "none (attacked network)", "ft": "ft (plain fine-tuning)"}
    return keys + [
        Line2D([], [], color=GREY, lw=1, ls=_DASHES[name], label=words[name])
        for name in CONTROLS
        if name in names
    ]
