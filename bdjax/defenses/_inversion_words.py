"""What trigger inversion found, in words for a page and a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bdjax.defenses._anomaly import BOUND, Anomaly, anomaly
from bdjax.defenses._inversion import Inverted
from bdjax.files.printable import printable

LIMITS = (
    "Trigger inversion looks for small, localized triggers; blended, warped and sample-specific ones it can miss. "
    "A class that stands out is a suspect, not a proof, and that none does proves nothing."
)
_LONGEST_NAME = 40  # letters
_LISTED = 3  # suspects


class Line(NamedTuple):
    """What was found for one class, as numbers: shares in [0, 1], ``index`` NaN where it cannot be told."""

    name: str
    pixels: float
    success: float
    index: float
    is_suspect: bool
    found: bool


def lines(found: Inverted, class_names: Sequence[str] = ()) -> list[Line]:
    """Return a line for each class, in their order, for a table: norms beside indices."""
    odd = anomaly(found.size)
    made = []
    for number in range(len(found.norm)):
        pixels, success = float(found.norm[number]), float(found.success[number])
        name, suspect = _name(number, class_names), number in odd.suspects
        made.append(
            Line(
                name, pixels, success, float(odd.index[number]), suspect, bool(found.found[number])
            )
        )
    return made


def sentences(found: Inverted, class_names: Sequence[str] = ()) -> str:
    """Say in one to three sentences what was found: the suspects, or else the class with the smallest trigger.

    Args:
      found: of one network.
      class_names: of the classes in their order; without them they are numbers.
    """
    if not found.found.any():
        every = f"no trigger smaller than the search's start was found for any of {len(found.found)} classes"
        return f"No class can be called a suspect: {every}."
    odd = anomaly(found.size)
    # Among those found, as one that fills the image ties with those that were not
    smallest = int(np.argmin(np.where(found.found, found.norm, np.inf)))
    missing = int((~found.found).sum())
    if odd.reason:
        # Which all count as the whole image, and so as of one size
        few = 2 * missing >= len(found.found)
        reason = "for half of the classes or more none was found" if few else odd.reason
        said = f"No class can be called a suspect: {reason}."
        said += f" The smallest trigger is that of {_one(found, odd, smallest, class_names)}."
    elif odd.suspects:
        said = _suspects(found, odd, class_names)
    else:
        norm = found.norm[found.found]
        said = f"No class stands out by an anomaly index above {BOUND:g}: triggers have {_range(norm)} "
        said += f"(median {np.median(norm):.1f}); the smallest is that of {_one(found, odd, smallest, class_names)}"
        said += f", and the next has {np.sort(norm)[1]:.1f} pixels." if len(norm) > 1 else "."
    if missing:
        said += f" For {missing} of {len(found.found)} classes none smaller than the search's start was found."
    return said


def compared(before: Inverted, after: Inverted, class_names: Sequence[str] = ()) -> str:
    """Say what was found before and after a defense, and how the first one's suspects fare in the second."""
    said = f"Before: {sentences(before, class_names)}\nAfter: {sentences(after, class_names)}"
    for number in anomaly(before.size).suspects[:_LISTED]:
        name = _name(number, class_names)
        sizes = f"from {before.norm[number]:.1f} pixels to none found"
        if after.found[number]:
            sizes = f"from {before.norm[number]:.1f} to {after.norm[number]:.1f} pixels"
        said += f"\nThe smallest trigger found for {name} went {sizes}."
    return f"{said}\n{LIMITS}"


def _suspects(found: Inverted, odd: Anomaly, class_names: Sequence[str]) -> str:
    said = []
    for number in odd.suspects[:_LISTED]:
        said.append(_one(found, odd, number, class_names))
    more = len(odd.suspects) - _LISTED
    if more > 0:
        said.append(f"and {more} more")
    word = "Suspect" if len(odd.suspects) == 1 else "Suspects"
    others = np.delete(np.where(found.found, found.norm, np.nan), odd.suspects)
    others = others[~np.isnan(others)]
    need = (
        f"The other classes need {_range(others)}" if others.size else "For the others, none found"
    )
    return f"{word}: {'; '.join(said)}. {need}."


def _one(found: Inverted, odd: Anomaly, number: int, class_names: Sequence[str]) -> str:
    """Name a class with the size of its trigger, how often that works, and the index where there is one."""
    share = found.norm[number] / found.mask[number].size
    size = f"{found.norm[number]:.1f} pixels ({share:.1%} of the image)"
    works = f"which sends {found.success[number]:.0%} of the other classes' images there"
    index = "" if odd.reason else f", anomaly index {odd.index[number]:.1f}"
    return f"{_name(number, class_names)}: {size}, {works}{index}"


def _range(norm: np.ndarray) -> str:
    return f"{norm.min():.1f} to {norm.max():.1f} pixels"


def _name(number: int, class_names: Sequence[str]) -> str:
    if number < len(class_names):
        return f"class '{printable(class_names[number], _LONGEST_NAME)}'"
    return f"class {number}"
