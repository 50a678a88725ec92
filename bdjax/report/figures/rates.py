"""Utility and attack success of the defenses of a victim: single seeds, means and deviations, and the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bdjax.report.cells import spread
from bdjax.report.figures.images import HEADER
from bdjax.report.layout import BLUE, GREY, ORANGE, WIDTH, cut, print_width
from bdjax.report.rows import Row, is_repeated
from bdjax.tasks.metrics import ATTACK, UTILITY, Metric, of_roles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# color, mark, and how far from the middle of the row it is drawn
_SERIES = {UTILITY: (BLUE, "o", -0.18), ATTACK: (ORANGE, "D", 0.18)}


def height_of(rows: Sequence[Row]) -> float:
    """Return how high the rates of a victim stand, in inches."""
    return 0.4 * len(rows) + 0.42


def _defense_label(row: Row, room: float) -> str:
    """Return a defense and its settings on one or two lines of that width."""
    if print_width(row.defense) <= room:
        return row.defense
    words = row.defense.split()
    fitting = [i for i in range(1, len(words)) if print_width(" ".join(words[:i])) <= room] or [1]
    return "\n".join(
        cut(" ".join(part), room) for part in (words[: fitting[-1]], words[fitting[-1] :]) if part
    )


def margins(rows: Sequence[Row], width: float) -> tuple[float, float]:
    """Return the room for the names on the left and the numbers on the right, in inches."""
    names = [line for row in rows for line in _defense_label(row, 0.4 * width).splitlines()]
    numbers = [_number(row, metric) for row in rows for metric in of_roles(row.metrics, *_SERIES)]
    return max(HEADER, 0.1 + max(map(print_width, names))), 0.1 + max(map(print_width, numbers))


def draw(ax: Axes, rows: Sequence[Row], width: float, numbers: float) -> None:
    """Draw what is kept and what is removed by each defense: single seeds, mean and deviation, and the numbers.

    ``width`` is that of the block and ``numbers`` that of the room to the right of the axes, in inches.
    """
    right = 1 + numbers / (ax.get_position().width * WIDTH)
    for y, row in enumerate(rows):
        if y % 2 == 0:
            ax.axhspan(y - 0.5, y + 0.5, color="#F3F3F3", lw=0, zorder=0)
        for metric in of_roles(row.metrics, *_SERIES):
            color, marker, offset = _SERIES[metric.role]
            _dot(ax, row, metric.name, y + offset, color, marker)
            style = {
                "color": color,
                "ha": "right",
                "va": "center",
                "transform": ax.get_yaxis_transform(),
            }
            ax.text(right, y + offset, _number(row, metric), **style)
    ax.set_yticks(range(len(rows)), [_defense_label(row, 0.4 * width) for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(-3, 103)
    ax.set_xticks(range(0, 101, 25), ["0", "25", "50", "75", "100 %"])
    ax.grid(axis="x", color="#D5D5D5", lw=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _dot(ax: Axes, row: Row, name: str, y: float, color: str, marker: str) -> None:
    statistic = row.statistics[name]
    if statistic.std is not None:
        seeds = [100 * record.value(name) for record in row.records]
        ax.plot(
            seeds, np.full(len(seeds), y), marker, color=color, ms=3.2, alpha=0.35, mew=0, zorder=2
        )
        ends = np.clip([statistic.mean - statistic.std, statistic.mean + statistic.std], 0, 1)
        ax.plot(100 * ends, [y, y], "-", color=color, lw=1.4, zorder=3)
    ax.plot(
        [100 * statistic.mean], [y], marker, color=color, ms=5.5, mec="white", mew=0.7, zorder=4
    )


def _number(row: Row, metric: Metric) -> str:
    return spread(row.statistics[metric.name], 1, 100)


def key(rows: Sequence[Row]) -> list[Line2D]:
    """Return the key of colors and marks."""
    from matplotlib.lines import Line2D

    keys = []
    for metric in of_roles(rows[0].metrics, *_SERIES):
        color, marker, _ = _SERIES[metric.role]
        keys.append(
            Line2D(
                [], [], color=color, marker=marker, ls="", label=f"{metric.head}: {metric.words}"
            )
        )
    if is_repeated(rows):
        keys.append(Line2D([], [], color=GREY, marker="o", ms=5.5, lw=1.4, label="mean ± std"))
        keys.append(
            Line2D(
                [], [], color=GREY, marker="o", ms=3.2, alpha=0.5, mew=0, ls="", label="one seed"
            )
        )
    return keys
