"""Encoded images as one array, or by row."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bdjax.checks import InputError
from bdjax.data.sources._trees import Tree
from bdjax.devices import footprint

_PART = 64  # images that a thread decodes at once


def read_all(tree: Tree, names: Sequence[str], channels: int, image_size: int) -> np.ndarray:
    """Return images, uint8 [n, image_size, image_size, channels]: whole, bilinear, antialiased where they shrink.

    Raises:
      InputError: they do not fit into memory, or one is damaged; it is named.
    """
    from bdjax.data.sources import _images  # Pillow is imported only where there are images to read

    shape = (image_size, image_size, channels)
    footprint.check_images(len(names), shape)
    out = np.empty((len(names), *shape), np.uint8)

    def one(row: int) -> None:
        content = tree.read(names[row])
        try:
            out[row] = _images.read_file(io.BytesIO(content), channels, image_size)
        # Pillow answers a damaged file with OSError, SyntaxError, struct.error, …
        except Exception as error:
            reason = str(error).rstrip(".").replace(" <_io.BytesIO object", "")
            wrong = f"image {names[row]} of {tree.place} cannot be read ({reason})"
            raise InputError(f"{wrong}; replace it or take it away.") from error

    _images.in_threads(one, range(len(names)), _images.workers(image_size, image_size))
    return out


class Cropped:
    """The middles of image files [n, h, w, 3], decoded by row; a `bdjax.data.streams.ReadByRow`."""

    dtype = np.dtype(np.uint8)

    def __init__(self, paths: Sequence[Path], image_size: int):
        self._paths, self.shape = paths, (len(paths), image_size, image_size, 3)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all images once they are decoded."""
        return math.prod(self.shape)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Return the images of these rows; safe to call from several threads.

        Raises:
          InputError: one of them is damaged.
        """
        from bdjax.data.sources import (
            _images,
        )  # Pillow is imported only where there are images to read

        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for place, row in enumerate(rows):
            path = self._paths[int(row)]
            try:
                out[place] = _images.read_middle(path, self.shape[1])
            # Pillow answers a damaged file with OSError, SyntaxError, struct.error, …
            except Exception as error:
                reason = str(error).rstrip(".")
                remedy = "replace it or take it away"
                raise InputError(f"image {path} cannot be read ({reason}); {remedy}.") from error
        return out


def decoded(images: Cropped) -> np.ndarray:
    """Return all images as one array.

    Raises:
      InputError: they do not fit into memory, or one is damaged.
    """
    from bdjax.data.sources import _images  # Pillow is imported only where there are images to read

    footprint.check_images(len(images), images.shape[1:])
    out = np.empty(images.shape, np.uint8)

    def part(start: int) -> None:
        rows = np.arange(start, min(start + _PART, len(images)))
        out[rows] = images[rows]

    threads = _images.workers(*images.shape[1:3])
    _images.in_threads(part, range(0, len(images), _PART), threads)
    return out
