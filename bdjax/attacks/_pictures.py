"""Pictures of one's own as triggers: a file, brought to a size, with its transparency as a mask."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np

from bdjax.checks import InputError

MOST_BYTES = 64 * 2**20  # of a file; a picture that is shrunk to an image needs no more


class Picture(NamedTuple):
    """A picture in [0, 1], and how opaque it is, where it is not wholly so."""

    pixels: np.ndarray  # float32 [h, w, c]
    opacity: np.ndarray | None  # float32 [h, w, 1]


def read(path: str, shape: tuple[int, ...], option: str) -> Picture:
    """Return a picture file (of several pictures, the first), upright, resized without regard to its proportions.

    It is one of the image files that an image folder may hold, recognized by its content.

    Args:
      path: of the file; ``~`` is expanded.
      shape: height, width and channels, 1 or 3, that it gets.
      option: that names the file, for the message.

    Raises:
      InputError: it is missing, no such file, too large, damaged, of more than 8 bits a channel or wholly transparent.
    """
    from bdjax.data.sources import _images  # Pillow is imported only where there are images to read

    file = os.path.expanduser(path)
    try:
        if os.path.isfile(file) and os.path.getsize(file) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
        mode, _ = _images.read_header(file)
        if _images.is_deep(mode):
            raise ValueError(f"it has more than 8 bits a channel, mode {mode}")
        pixels, opacity = _images.read_masked(file, shape)
    # Pillow answers a damaged file with OSError, SyntaxError, struct.error, its own, …
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"{option} must be a readable image file; {path!r} is not ({reason})."
        ) from error
    if opacity is not None and not opacity.any():
        raise InputError(
            f"{option} must be a picture that is to be seen; {path!r} is wholly transparent."
        )
    return Picture(
        pixels.astype(np.float32) / 255,
        None if opacity is None else opacity.astype(np.float32) / 255,
    )
