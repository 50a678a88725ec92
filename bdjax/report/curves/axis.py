"""The axis of a swept option: its scale, and which of its values there is room to print at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


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


def with_room(places: Sequence[float], widths: Sequence[float]) -> set[int]:
    """Return which labels to print so that none touches another: the last, and from the first on what fits."""
    last = len(places) - 1
    shown, end = {last}, -math.inf
    for i in range(last):
        left, right = places[i] - widths[i] / 2, places[i] + widths[i] / 2
        if left >= end and right <= places[last] - widths[last] / 2:
            shown.add(i)
            end = right
    return shown
