"""The contact sheet of attacks: test images, the same with each trigger, and what it changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bdjax.checks import InputError
from bdjax.files import failures, places
from bdjax.report.layout import (
    FORMATS,
    GREY,
    HEADING,
    MARGIN,
    STYLE,
    WIDTH,
    axes,
    need_matplotlib,
    save,
    write,
)

if TYPE_CHECKING:  # what is shown is made with JAX, which drawing it does not need
    from matplotlib.figure import Figure

    from bdjax.runs.show import Shown

_NAMES, _GAP = 1.55, 0.04  # inches: the column of names, and between images
_SCALES = (1, 2, 5, 10, 20, 50, 100)  # of the residual


def draw(shown: Sequence[Shown], path: str | Path, heading: str = "") -> Path:
    """Draw one row of clean images, and for each attack those with its trigger and its residual, scaled to be seen.

    The residual is (x' − x)·k around a middle grey, and k, which stands beside it, the largest for which hardly
    anything is cut off. Images are clean ones of the first attack; attacks that show others get a row of their own.

    Raises:
      InputError: nothing to draw, another suffix than png, pdf or svg, no matplotlib, or an unwritable file.
    """
    path = check(path)
    if not shown:
        raise InputError("there is no attack to draw.")
    import matplotlib

    with matplotlib.rc_context(cast(Any, STYLE)):
        page = _page(shown, heading)
        with failures.blaming_the_path(f"the sheet cannot be written to {path}"):
            return save(page, path)


def check(path: str | Path) -> Path:
    """Return the path of a sheet that could be drawn, before anything is trained for it.

    Raises:
      InputError: another suffix than png, pdf or svg, no file that could be, or no matplotlib.
    """
    path = Path(path)
    if path.suffix[1:] not in FORMATS:
        raise InputError(f"file must end in .{', .'.join(FORMATS)}; got {str(path)!r}.")
    need_matplotlib()
    return places.check_file("file", path)


def scale(change: np.ndarray) -> int:
    """Return the largest k of 1, 2, 5, … for which 99 % of the changed values of k (x' − x) stay within ±127."""
    size = np.abs(change[change != 0])
    reach = float(np.quantile(size, 0.99)) if size.size else 0.0
    return max((k for k in _SCALES if k * reach <= 127), default=1)


def residual(clean: np.ndarray, triggered: np.ndarray) -> tuple[np.ndarray, int]:
    """Return what a trigger changes on uint8 images, 128 + k (x' − x), and k of `scale`."""
    change = triggered.astype(np.int32) - clean
    k = scale(change)
    return np.clip(128 + k * change, 0, 255).astype(np.uint8), k


def _page(shown: Sequence[Shown], heading: str) -> Figure:
    from matplotlib.figure import Figure

    count = shown[0].clean.shape[0]
    height, width = shown[0].clean.shape[1:3]
    column = (WIDTH - 2 * MARGIN - _NAMES) / count
    row = (column - _GAP) * height / width + _GAP
    lines = list(_lines(shown))
    top = 0.45 if heading else 0.15
    page = Figure(
        figsize=(WIDTH, top + sum(row + space for *_, space in lines) + 0.1), facecolor="white"
    )
    write(page, MARGIN, 0.12, heading, **HEADING)
    for name, details, images, space in lines:
        top += space
        write(page, MARGIN, top + row / 2 - 0.09 * (1 + len(details)), name, weight="bold")
        for number, words in enumerate(details, 1):
            write(
                page,
                MARGIN,
                top + row / 2 + 0.09 * (2 * number - 1 - len(details)),
                words,
                color=GREY,
                size=7.5,
            )
        for number, image in enumerate(images):
            left = MARGIN + _NAMES + number * column
            _image(page, image, left, top, column - _GAP, row - _GAP)
        top += row
    return page


def _lines(shown: Sequence[Shown]) -> Any:
    """Yield for each row its name, further words, images, and the space above it in inches."""
    last = None
    for one in shown:
        if last is None or not np.array_equal(one.clean, last):
            yield "clean", (), one.clean, 0.0 if last is None else 0.1
            last = one.clean
        seen = one.stealth
        yield one.attack, (f"PSNR {seen.psnr:.1f} dB", f"SSIM {seen.ssim:.3f}"), one.triggered, 0.1
        change, k = residual(one.clean, one.triggered)
        words = (f"ℓ∞ {255 * seen.linf:.0f} levels", f"{seen.changed_share:.0%} changed")
        yield f"residual × {k}", words, change, 0.0


def _image(
    page: Figure, image: np.ndarray, left: float, top: float, width: float, height: float
) -> None:
    ax = axes(page, left, top, width, height)
    gray = image.shape[-1] == 1
    ax.imshow(
        image[..., 0] if gray else image,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="nearest",
        aspect="auto",
    )
    ax.axis("off")
