"""Encoded images to arrays, and arrays to other sizes. The only importer of Pillow under ``data/``."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

T = TypeVar("T")

MODES = {1: "L", 3: "RGB"}  # channels to Pillow's name for them
# By content, not by name: Pillow hands some others to outside programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
_IN_RECORDS = ("PNG", "JPEG", "BMP")  # what other programs put into records is no more than these
# How each orientation of EXIF becomes upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)


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
        with Image.open(io.BytesIO(content), formats=_IN_RECORDS) as image:
            if image.size != (width, height):
                got = f"{image.height}×{image.width}"
                raise ValueError(f"an image is {got} where {height}×{width} was announced")
            out[row] = _pixels(image, channels)


def read_file(
    path: str | os.PathLike[str] | io.BytesIO, channels: int, image_size: int | None
) -> np.ndarray:
    """Return one image file as uint8 [h, w, c], upright, resized to a square if a size is given."""
    image = upright(path)
    if image.mode != MODES[channels]:
        image = _flat(image).convert(MODES[channels])
    if image_size is not None:
        image = _resize(image, image_size)
    return _pixels(image, channels)


def read_middle(path: str | os.PathLike[str] | io.BytesIO, size: int) -> np.ndarray:
    """Return the middle of one image file, uint8 [size, size, 3], whose shorter side is made ⌈8/7 · size⌋ before."""
    image = _flat(upright(path)).convert("RGB")
    side = round(size * 8 / 7)
    scale = side / min(image.size)
    width, height = (max(side, round(scale * length)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return _pixels(image.crop((left, top, left + size, top + size)), 3)


def upright(path: str | os.PathLike[str] | io.BytesIO) -> Image.Image:
    """Return an image file (of several pictures, the first) turned as its EXIF orientation says.

    Raises:
      Exception: whatever Pillow answers to a damaged file. One that may be too large is for `header` to refuse.
    """
    with Image.open(path, formats=FORMATS) as image:
        image.load()
        if image.format == "TIFF":  # which Pillow turns itself
            return image
        turn = _TURNS.get(_orientation(image))
        return image if turn is None else image.transpose(turn)


def read_masked(
    path: str | os.PathLike[str], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return one image file, upright and at a size, uint8 [h, w, c], and its opacity [h, w, 1] if it has any holes.

    What is transparent lends its color to no pixel that is not.
    """
    height, width, channels = shape
    image = upright(path)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        opacity = np.asarray(image.getchannel("A"), np.uint8)[..., None]
        if alpha.getextrema() != (255, 255):
            return _pixels(image.convert("RGB").convert(MODES[channels]), channels), opacity
    image = image.convert(MODES[channels]).resize((width, height), Image.Resampling.BILINEAR)
    return _pixels(image, channels), None


def read_header(path: str | os.PathLike[str]) -> tuple[str, tuple[int, int]]:
    """Return Pillow's mode and the (height, width) of an upright image file without decoding it.

    To be called by one thread: it changes what becomes of warnings for a moment.

    Raises:
      Exception: whatever Pillow answers to what is no image, and to one of more pixels than `Image.MAX_IMAGE_PIXELS`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(path, formats=FORMATS)
    with image:
        width, height = image.size
        orientation = _orientation(image)
        # Whose size may be that before the turn
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            width = image.tag_v2[TiffImagePlugin.IMAGEWIDTH]
            height = image.tag_v2[TiffImagePlugin.IMAGELENGTH]
            orientation = image.tag_v2.get(ExifTags.Base.Orientation, 1)
        if orientation in _ON_ITS_SIDE:
            width, height = height, width
        return image.mode, (height, width)


def is_deep(mode: str) -> bool:
    """Return whether images of Pillow's mode have more than 8 bits a channel.

    Nobody says what their range means.
    """
    return mode.startswith(("I", "F"))


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Return uint8 images [n, h, w, c] as [n, size, size, c]: bilinear, antialiased where they shrink."""
    out = np.empty((len(images), size, size, images.shape[-1]), np.uint8)

    def one(row: int) -> None:
        pixels = images[row, ..., 0] if out.shape[-1] == 1 else images[row]
        out[row] = _pixels(
            _resize(Image.fromarray(np.ascontiguousarray(pixels)), size), out.shape[-1]
        )

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


def write_png(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Write an image, uint8 [h, w, 1 or 3], as PNG; `read_file` returns the same bits."""
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, "PNG")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation as far as it stands before the pixels; 1, upright, where EXIF is damaged."""
    try:
        exif = Image.Image.getexif(image)  # PNG's own method decodes the image
        return exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # SyntaxError, struct.error, … : the pixels may be whole all the same
        return 1


def _flat(image: Image.Image) -> Image.Image:
    """Return an image whose transparency can be dropped.

    Of a palette with levels of it, Pillow would warn.
    """
    levels = image.mode == "P" and isinstance(image.info.get("transparency"), bytes)
    return image.convert("RGBA") if levels else image


def _resize(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.BILINEAR)


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    image = image if image.mode == MODES[channels] else image.convert(MODES[channels])
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, channels)
