"""Pages of figures: colors, print, and places in inches from the top left corner, so that nothing overlaps."""

from __future__ import annotations

import bisect
import functools
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdjax.checks import InputError
from bdjax.files.atomic import write_bytes

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, three of them darkened until small print is easy to read on white
BLUE, ORANGE, GREEN, GREY = "#0068A8", "#C44E00", "#007A5A", "#6B6B6B"
# Dots, and rings around those that are at the same place
BEFORE = {
    "label": "before the defense",
    "color": BLUE,
    "marker": "o",
    "ms": 2.8,
    "mew": 0,
    "ls": "",
    "alpha": 0.65,
}
AFTER = {
    **BEFORE,
    "label": "after the defense",
    "color": ORANGE,
    "mfc": "none",
    "mew": 0.6,
    "ms": 3.2,
}
WEIGHT_NORM = r"weight norm $\|W_k\|_2$"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "pdf.fonttype": 42,
    "svg.hashsalt": "bdjax",
}
FORMATS = ("png", "pdf", "svg")
WIDTH, MARGIN = 8.0, 0.15  # inches
HEADING = {"size": 11, "weight": "bold"}
KEY = 0.28  # inches from the bottom of a page of panels to its key


def need_matplotlib() -> None:
    """Raise InputError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(
            "Figures need matplotlib, which pip install 'bdjax[plots]' brings."
        ) from error


def save(page: Figure, path: Path) -> Path:
    """Write a page, whole or not at all, in the format that the suffix names."""
    write_bytes(path, encode(page, path.suffix[1:]))
    return path


def encode(page: Figure, format: str = "png", dpi: float = 200) -> bytes:
    """Return a page as a file in one of ``FORMATS``; a long one has fewer dots than asked, as a raster has an end."""
    # no date, so that the same records give the same file
    metadata = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[format]
    file = io.BytesIO()
    page.savefig(
        file, format=format, dpi=min(dpi, 30_000 / page.get_figheight()), metadata=metadata
    )
    return file.getvalue()


@functools.cache
def print_width(words: str) -> float:
    """Return how wide words print at the size of the figures, in inches."""
    from matplotlib.textpath import TextPath

    # print on a raster comes out a little wider than the outlines
    if not words.strip():  # of which matplotlib makes no path
        return 0.0
    return 1.03 * TextPath((0, 0), words, size=STYLE["font.size"]).get_extents().width / 72


def cut(words: str, room: float) -> str:
    """Return words that print no wider than the room, ending in … where they were cut; two letters always stay."""
    if len(words) <= 3 or print_width(words) <= room:
        return words
    shortened = [words[:length].rstrip() + "…" for length in range(2, len(words))]
    fitting = bisect.bisect_right(shortened, room, key=print_width)
    return shortened[max(fitting - 1, 0)]


def wrap(words: str, room: float) -> list[str]:
    """Return words on lines that print no wider than the room; a word that is wider by itself is broken."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if print_width(longer) <= room:
            lines[-1] = longer
            continue
        lines += [word] if lines[-1] else []
        lines[-1] = word
        while print_width(lines[-1]) > room and len(lines[-1]) > 1:
            rest = lines[-1]
            fitting = next(
                n for n in range(len(rest) - 1, 0, -1) if n == 1 or print_width(rest[:n]) <= room
            )
            lines[-1:] = [rest[:fitting], rest[fitting:]]
    return lines


def axes(page: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes whose place on the page is given in inches from the top left corner."""
    across, down = page.get_size_inches()
    return page.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def panels(
    titles: Iterable[str], heading: str, *, columns: int = 2, height: float = 1.6, left: float = 0.5
) -> tuple[Figure, list[Axes]]:
    """Return a page of axes of equal size, one for each title, from left to right and down.

    Args:
      titles: above the panels.
      heading: above all.
      columns: panels side by side.
      height: of a panel, and ``left``, the room for its numbers, in inches.

    The strip of ``KEY`` inches at the bottom is left for a `legend`.
    """
    from matplotlib.figure import Figure

    titles = list(titles)
    below, above = 0.5, 0.3  # axis label and numbers; title
    width = (WIDTH - 2 * MARGIN) / columns - left - 0.1
    lines = -(-len(titles) // columns)
    page = Figure(figsize=(WIDTH, 0.4 + lines * (above + height + below) + KEY), facecolor="white")
    write(page, MARGIN, 0.12, cut(heading, 0.75 * (WIDTH - 2 * MARGIN)), **HEADING)
    made = []
    for number, title in enumerate(titles):
        line, column = divmod(number, columns)
        x, y = (
            MARGIN + left + column * (width + left + 0.1),
            0.4 + line * (above + height + below) + above,
        )
        write(page, x, y - 0.2, cut(title, 0.9 * width), weight="bold")
        ax = axes(page, x, y, width, height)
        ax.grid(color="#D5D5D5", lw=0.6)
        ax.set_axisbelow(True)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        made.append(ax)
    return page, made


def write(page: Figure, left: float, top: float, words: str, **style: Any) -> None:
    """Write words whose top left corner is given in inches from that of the page."""
    across, down = page.get_size_inches()
    page.text(left / across, 1 - top / down, words, va="top", **style)


def legend(page: Figure, key: Sequence[Artist], top: float, **style: Any) -> None:
    """Write a key in one line, in the middle of the page."""
    at = (0.5, 1 - top / page.get_figheight())
    plain: dict[str, Any] = {"frameon": False, "borderpad": 0, "handletextpad": 0.4}
    page.legend(handles=key, loc="upper center", bbox_to_anchor=at, ncol=len(key), **plain, **style)


def remark(ax: Axes, words: str) -> None:
    """Write words into the top right corner of a panel, for which its contents make room."""
    ax.margins(y=0.2)
    box = {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1}
    small = 0.85 * STYLE["font.size"]
    ax.text(
        0.99,
        0.97,
        words,
        transform=ax.transAxes,
        ha="right",
        va="top",
        size=small,
        color=GREY,
        bbox=box,
    )


def key(*styles: Mapping[str, Any]) -> list[Artist]:
    """Return a key of lines and marks that are drawn in these styles, each with its label."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], **style) for style in styles]
