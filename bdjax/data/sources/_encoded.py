"""Encoded images of a tree as one array."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from bdjax.checks import InputError
from bdjax.data.sources._trees import Tree
from bdjax.devices import footprint


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
