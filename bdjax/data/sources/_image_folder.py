"""People's own data: ``<name>/train/<class>/*.png`` and ``<name>/test/<class>/*.png``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from bdjax import footprint
from bdjax.checks import InputError
from bdjax.data.sources import _dataset, _images
from bdjax.types import Dataset

T = TypeVar("T")

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp")


class _Files(NamedTuple):
    paths: list[Path]
    label: np.ndarray  # int32 [n]


class _Shape(NamedTuple):
    """What all images become, and how many threads read them."""

    height: int
    width: int
    channels: int
    threads: int


def image_folder(root: Path, image_size: int | None = None) -> Dataset:
    """Return the images of ``<root>/{train,test}/<class>/``, named after the folder.

    Classes are the folders' names in alphabetical order, the same in both splits; rows are sorted by class and file
    name. If every image is gray there is one channel, else all are converted to RGB (transparency is dropped). The
    mean and standard deviation are measured on the training images.

    Args:
      root: the folder with the splits.
      image_size: resize every image to this many pixels a side; without it all must have one size.

    Raises:
      InputError: a split, a class or its images are missing, an image cannot be read or differs in size.
    """
    class_names = _class_names(root)
    train, test = (_list(root / split, class_names) for split in ("train", "test"))
    shape = _survey([*train.paths, *test.paths], image_size)
    footprint.check_images(len(train.paths) + len(test.paths), (shape.height, shape.width, shape.channels))
    images = [_read(files.paths, shape, image_size) for files in (train, test)]
    arrays = _dataset.Arrays(images[0], train.label, images[1], test.label)
    return _dataset.build(root.name, arrays, class_names)


def _class_names(root: Path) -> tuple[str, ...]:
    found = {}
    for split in ("train", "test"):
        folder = root / split
        if not folder.is_dir():
            raise InputError(f"image folder {root} has no {split} split; put its images into {folder}/<class>/.")
        found[split] = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if only := sorted(found["train"] ^ found["test"]):
        where = "train" if only[0] in found["train"] else "test"
        raise InputError(f"the splits of {root} differ: class {only[0]!r} is only in {where}; both need every class.")
    if len(found["train"]) < 2:
        raise InputError(f"image folder {root} needs two classes or more, got {sorted(found['train'])}.")
    return tuple(sorted(found["train"]))


def _list(folder: Path, class_names: Sequence[str]) -> _Files:
    paths, label = [], []
    for number, name in enumerate(class_names):
        files = sorted(
            path
            for path in (folder / name).iterdir()
            if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
        )
        if not files:
            raise InputError(f"class folder {folder / name} has no image ({', '.join(EXTENSIONS)}).")
        paths += files
        label += [number] * len(files)
    return _Files(paths, np.array(label, np.int32))


def _survey(paths: Sequence[Path], image_size: int | None) -> _Shape:
    """Decide on the shape of all images from the files' headers alone."""
    headers = [_named(path, _images.header) for path in paths]
    for path, (mode, _) in zip(paths, headers, strict=True):
        if mode.startswith(("I", "F")):
            raise InputError(f"image {path} has more than 8 bits a channel (mode {mode}); convert it to 8 bits.")
    channels = 1 if all(mode in ("1", "L") for mode, _ in headers) else 3
    height, width = headers[0][1]
    threads = _images.workers(height, width)
    if image_size is not None:
        return _Shape(image_size, image_size, channels, threads)
    for path, (_, size) in zip(paths, headers, strict=True):
        if size != (height, width):
            raise InputError(
                f"images differ in size: {paths[0]} is {height}×{width} and {path} is {size[0]}×{size[1]} "
                f"(height×width); pass image_size to resize all of them."
            )
    return _Shape(height, width, channels, threads)


def _read(paths: Sequence[Path], shape: _Shape, image_size: int | None) -> np.ndarray:
    out = np.empty((len(paths), shape.height, shape.width, shape.channels), np.uint8)

    def one(row: int) -> None:
        out[row] = _named(paths[row], _images.read_file, shape.channels, image_size)

    _images.in_threads(one, range(len(paths)), shape.threads)
    return out


def _named(path: Path, read: Callable[..., T], *options: Any) -> T:
    """Return ``read(path, *options)``; where that fails, name the file."""
    try:
        return read(path, *options)
    except Exception as error:  # Pillow answers a damaged file with OSError, SyntaxError, struct.error, its own, …
        reason = str(error).rstrip(".")
        raise InputError(f"image {path} cannot be read ({reason}); replace it or take it away.") from error
