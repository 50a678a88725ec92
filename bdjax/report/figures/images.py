"""Clean and triggered test images in two rows, with the predictions before and after the defense below them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bdjax.report.layout import GREEN, GREY, ORANGE, cut, print_width
from bdjax.report.samples import Sample, choose

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

HEADER = 0.75  # inches: the names of lines, left of what is drawn
_LINE = 0.155  # inches of a line of print
_OUTCOMES = {
    "right": (GREEN, "✓", "true label"),
    "hit": (ORANGE, "✗", "attacker's label"),
    "other": (GREY, "–", "other label"),
}


def _cells(sample: Sample, width: float) -> tuple[list[int], float, float]:
    """Return the images that fit into a block of that width, and the width of a column and height of an image."""
    names = [sample.class_name(label) for label in np.unique(sample.arrays["label"])]
    least = min(max(0.5, 0.14 + max(print_width(f"✗ {name}") for name in names)), 1.2)
    room = width - HEADER
    chosen = choose(sample, min(int(room / least), 10))
    column = min(room / len(chosen), 1.2)
    height, across = sample.arrays["clean"].shape[1:3]
    return chosen, column, min(0.9 * column * height / across, 1.5 * column)


def height_of(sample: Sample, width: float) -> float:
    """Return how high the images of a sample stand in a block of that width, in inches."""
    return 0.18 + 2 * (_cells(sample, width)[2] + 2 * _LINE + 0.05) + 0.08


def draw(ax: Axes, sample: Sample, width: float) -> None:
    """Draw clean and triggered images in two rows, each with the predictions before and after below it.

    The data units of the axes are inches, so that print and images keep their distance at every size.
    """
    chosen, column, height = _cells(sample, width)
    ax.axis("off")
    labels = [sample.class_name(sample.arrays["label"][i]) for i in chosen]
    _line(ax, 0.07, column, "true label", labels, [GREY] * len(chosen))
    for images, top in (("clean", 0.18), ("triggered", 0.18 + height + 2 * _LINE + 0.13)):
        ax.text(0, top + height / 2, images, weight="bold", va="center")
        for j, i in enumerate(chosen):
            _image(ax, sample.arrays[images][i], HEADER + (j + 0.5) * column, top, height)
        for line, when in enumerate(("before", "after")):
            seen = [_OUTCOMES[sample.outcome(f"{images}_{when}", i)] for i in chosen]
            names = [sample.class_name(sample.arrays[f"{images}_{when}"][i]) for i in chosen]
            words = [f"{sign} {name}" for (_, sign, _), name in zip(seen, names, strict=True)]
            y = top + height + 0.05 + (line + 0.5) * _LINE
            _line(ax, y, column, when, words, [color for color, _, _ in seen])
    ax.set_xlim(0, width)
    ax.set_ylim(height_of(sample, width), 0)


def _line(
    ax: Axes, y: float, column: float, head: str, words: Sequence[str], colors: Sequence[str]
) -> None:
    """Write a line of words, each centered in its column and cut where it is wider."""
    ax.text(0, y, head, va="center", color=GREY)
    for j, (word, color) in enumerate(zip(words, colors, strict=True)):
        ax.text(
            HEADER + (j + 0.5) * column,
            y,
            cut(word, column - 0.08),
            ha="center",
            va="center",
            color=color,
        )


def _image(ax: Axes, image: np.ndarray, center: float, top: float, height: float) -> None:
    half = height * image.shape[1] / image.shape[0] / 2
    gray = image.shape[-1] == 1
    ax.imshow(
        image[..., 0] if gray else image,
        cmap="gray" if gray else None,
        vmin=0,
        vmax=255,
        interpolation="nearest",
        extent=(center - half, center + half, top + height, top),
        aspect="auto",
    )


def key() -> list[Line2D]:
    """Return the key of the signs before predictions."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=color, marker=f"${sign}$", ls="", ms=6, mew=0, label=label)
        for color, sign, label in _OUTCOMES.values()
    ]
