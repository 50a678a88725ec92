"""Encoded images to arrays, and arrays to other sizes. The only importer of Pillow under ``data/``."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image

T = TypeVar("T")

MODES = {1: "L", 3: "RGB"}  # channels to Pillow's name for them
FORMATS = ("PNG", "JPEG", "BMP")  # by content, not by name: Pillow hands some others to outside programs


def workers(height: int, width: int) -> int:
    """Return how many threads decode images of that size fastest.

    Pillow releases the interpreter lock while it inflates. From about 48×48 pixels on, two threads on two cores are
    twice as fast as one. At 32×32 they only hand the lock to each other: 20,000 CIFAR-10 images took 2.5 s in one
    thread and 3.1 s in two.
    """
    return 1 if height * width <= 32 * 32 else os.cpu_count() or 1


def decode(encoded: Sequence[bytes], out: np.ndarray) -> None:
    """Decode PNG or JPEG files held in memory into ``out``, uint8 [n, h, w, c].

    Raises:
      ValueError: an image of another size; Pillow's own errors for what is not an image.
    """
    height, width, channels = out.shape[1:]
    for row, content in enumerate(encoded):
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.size != (width, height):
                raise ValueError(f"an image is {image.height}×{image.width} where {height}×{width} was announced")
            out[row] = _pixels(image, channels)


def read_file(path: str | os.PathLike[str], channels: int, image_size: int | None) -> np.ndarray:
    """Return one image file as uint8 [h, w, c], resized to a square if a size is given."""
    with Image.open(path, formats=FORMATS) as image:
        image = image.convert(MODES[channels])
        return _pixels(image if image_size is None else _resize(image, image_size), channels)


def header(path: str | os.PathLike[str]) -> tuple[str, tuple[int, int]]:
    """Return Pillow's mode and the (height, width) of an image file without decoding it."""
    with Image.open(path, formats=FORMATS) as image:
        return image.mode, (image.height, image.width)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Return uint8 images [n, h, w, c] as [n, size, size, c]: bilinear, antialiased where they shrink."""
    out = np.empty((len(images), size, size, images.shape[-1]), np.uint8)

    def one(row: int) -> None:
        pixels = images[row, ..., 0] if out.shape[-1] == 1 else images[row]
        out[row] = _pixels(_resize(Image.fromarray(np.ascontiguousarray(pixels)), size), out.shape[-1])

    in_threads(one, range(len(images)), workers(size, size))
    return out


def in_threads(function: Callable[[T], None], items: Iterable[T], threads: int) -> None:
    """Call the function on every item; the error raised is that of the first item that has one."""
    if threads == 1:
        for item in items:
            function(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        try:
            for _ in pool.map(function, items):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _resize(image: Image.Image, size: int) -> Image.Image:
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    image = image if image.mode == MODES[channels] else image.convert(MODES[channels])
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, channels)
