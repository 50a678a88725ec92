"""People's own data: image files in ``<name>/train/<class>/`` and ``<name>/test/<class>/``."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from bdjax.checks import InputError
from bdjax.data.sources import _dataset, _images
from bdjax.devices import footprint
from bdjax.types import Dataset

T = TypeVar("T")

FORMATS = "PNG, JPEG, BMP, GIF, TIFF, WebP, PPM or PGM"
TEST = ("test", "val", "valid", "validation")  # the first that is there is the test split
_LISTED = 3  # of the files that are left out

_log = logging.getLogger(__name__)


class Files(NamedTuple):
    paths: list[Path]
    headers: list[tuple[str, tuple[int, int]]]  # of each, Pillow's mode and (height, width)
    label: np.ndarray  # int32 [n]


class _Shape(NamedTuple):
    """What all images become, and how many threads read them."""

    height: int
    width: int
    channels: int
    threads: int


def image_folder(root: Path, image_size: int | None = None) -> Dataset:
    """Return the images of ``<root>/{train,test}/<class>/``, named after the folder.

    An image is what Pillow reads as PNG, JPEG, BMP, GIF (the first frame), TIFF (the first page), WebP, PPM or PGM,
    whatever its file is called, at any depth below its class (Tiny-ImageNet's ``train/<class>/images/``). It is turned
    as its EXIF orientation says. Other files, and hidden ones, are left out, and one line says how many and names some;
    but a file that is called an image and is damaged or empty is an error. Where there is no ``test/``, ``val/`` or
    ``validation/`` takes its place.

    Classes are the folders' names (in Unicode's composed form, NFC), the same in both splits. Names that are all whole
    numbers are in the order of the numbers (0, 1, 2, 10), others in plain order; rows are sorted by class and by the
    file's path. If every image is stored as gray there is one channel, else all are converted to RGB (transparency is
    dropped, CMYK as Pillow does it). The mean and standard deviation are measured on the training images.

    Args:
      root: the folder with the splits.
      image_size: resize every image to this many pixels a side; without it all must have one size.

    Raises:
      InputError: a split, a class or its images are missing, two classes have one name, an image cannot be read, has
        more than 8 bits a channel, is too large to be believed or differs in size.
    """
    splits = {"train": root / "train", "test": _test_folder(root)}
    folders = {split: classes_in(root, folder) for split, folder in splits.items()}
    class_names = _class_names(root, folders, splits)
    left_out = loose(splits["train"]) + loose(splits["test"])
    train = listed(folders["train"], class_names, left_out)
    test = listed(folders["test"], class_names, left_out)
    tell_left_out(root, left_out)
    shape = survey(train, test, image_size)
    count = len(train.paths) + len(test.paths)
    footprint.check_images(count, (shape.height, shape.width, shape.channels))
    arrays = _dataset.Arrays(
        read(train.paths, shape, image_size),
        train.label,
        read(test.paths, shape, image_size),
        test.label,
    )
    return _dataset.build(root.name, arrays, class_names)


def _test_folder(root: Path) -> Path:
    found = next((name for name in TEST if (root / name).is_dir()), TEST[0])
    if found != TEST[0] and (root / "train").is_dir():
        _log.warning("image folder %s has no test/; its %s/ is the test split.", root, found)
    return root / found


def classes_in(root: Path, folder: Path) -> dict[str, Path]:
    """Return the folder of each class of a split by its name in NFC, as which two must not be the same."""
    if not folder.is_dir():
        or_val = " (or val/)" if folder.name == TEST[0] else ""
        missing = f"image folder {root} has no {folder.name} split{or_val}"
        raise InputError(f"{missing}; put its images into {folder}/<class>/.")
    classes: dict[str, Path] = {}
    for path in entries(folder):
        name = unicodedata.normalize("NFC", path.name)
        if not path.is_dir() or name.startswith("."):
            continue
        if name in classes:
            wrong = f"two class folders {name!r}, in two spellings of Unicode"
            raise InputError(f"{folder} has {wrong}; rename one.")
        classes[name] = path
    return classes


def _class_names(
    root: Path, folders: Mapping[str, Mapping[str, Path]], splits: Mapping[str, Path]
) -> tuple[str, ...]:
    """Return the classes in the order of their labels."""
    names = {split: set(classes) for split, classes in folders.items()}
    if only := ordered(names["train"] ^ names["test"]):
        where = splits["train" if only[0] in names["train"] else "test"].name
        more = f" (and {len(only) - 1} more are in one split alone)" if len(only) > 1 else ""
        wrong = f"class {only[0]!r} is only in {where}{more}"
        raise InputError(f"the splits of {root} differ: {wrong}; both need every class.")
    if len(names["train"]) < 2:
        got = sorted(names["train"])
        raise InputError(f"image folder {root} needs two classes or more, got {got}.")
    return tuple(ordered(names["train"]))


def ordered(names: set[str]) -> list[str]:
    """Sort class names: as numbers if all are whole numbers, else as they are."""
    if all(re.fullmatch("[0-9]+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def loose(folder: Path) -> list[Path]:
    """Return what lies in a split beside its class folders."""
    return [path for path in entries(folder) if path.name.startswith(".") or not path.is_dir()]


def listed(folders: Mapping[str, Path], class_names: Sequence[str], left_out: list[Path]) -> Files:
    """Return the images of a split; what is none is appended to ``left_out``."""
    paths, headers, label = [], [], []
    for number, name in enumerate(class_names):
        before, others = len(paths), len(left_out)
        for path in _files(folders[name], left_out):
            if (found := _header(path)) is None:
                left_out.append(path)
            else:
                paths.append(path)
                headers.append(found)
        if len(paths) == before:
            there = [path.name for path in left_out[others : others + _LISTED]]
            got = ", ".join(there) or "nothing"
            raise InputError(f"class folder {folders[name]} has no image ({FORMATS}), but {got}.")
        label += [number] * (len(paths) - before)
    return Files(paths, headers, np.array(label, np.int32))


def _files(folder: Path, left_out: list[Path]) -> list[Path]:
    """Return the files below a folder that are not hidden, sorted by their paths; the others are left out."""

    def walk(inner: Path, above: frozenset[str]) -> Iterator[Path]:
        real = os.path.realpath(inner)
        if real in above:
            raise InputError(f"{inner} is a link to a folder that it lies in; take it away.")
        for path in entries(inner):
            if path.name.startswith("."):
                left_out.append(path)
            elif path.is_dir():
                yield from walk(path, above | {real})
            else:
                yield path

    def place(path: Path) -> tuple[str, str]:
        relative = path.relative_to(folder).as_posix()
        return unicodedata.normalize("NFC", relative), relative

    return sorted(walk(folder, frozenset()), key=place)


def entries(folder: Path) -> list[Path]:
    """Return what a folder holds, in an order that no file system decides."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"folder {folder} cannot be read ({error.strerror}).") from error


def _header(path: Path) -> tuple[str, tuple[int, int]] | None:
    """Return what an image's header says, None for what is no image and is not called one.

    Raises:
      InputError: it is called an image, and cannot be read.
    """
    if path.suffix.lower() in _images.SUFFIXES:
        return _naming_the_file(path, _images.read_header)
    if not path.is_file():
        return None
    try:
        return _images.read_header(path)
    except Exception:  # as for `_naming_the_file`
        return None


def tell_left_out(root: Path, paths: Sequence[Path]) -> None:
    if paths:
        names = [path.relative_to(root).as_posix() for path in paths[:_LISTED]]
        more = ", …" if len(paths) > _LISTED else ""
        files = "file that is" if len(paths) == 1 else "files that are"
        no_image = "no image" if len(paths) == 1 else "no images"
        _log.warning(
            "image folder %s: left out %d %s %s (%s) or hidden: %s%s.",
            *(root, len(paths), files, no_image, FORMATS, ", ".join(names), more),
        )


def survey(train: Files, test: Files, image_size: int | None) -> _Shape:
    """Decide on the shape of all images from the files' headers alone."""
    paths, headers = [*train.paths, *test.paths], [*train.headers, *test.headers]
    for path, (mode, _) in zip(paths, headers, strict=True):
        if _images.is_deep(mode):
            wrong = f"has more than 8 bits a channel (mode {mode})"
            raise InputError(f"image {path} {wrong}; convert it to 8 bits.")
    channels = 1 if all(mode in ("1", "L") for mode, _ in headers) else 3
    height, width = headers[0][1]
    threads = _images.workers(height, width)
    if image_size is not None:
        return _Shape(image_size, image_size, channels, threads)
    for path, (_, size) in zip(paths, headers, strict=True):
        if size != (height, width):
            first = f"{paths[0]} is {height}×{width}"
            other = f"{path} is {size[0]}×{size[1]} (height×width)"
            remedy = "pass image_size to resize all of them"
            raise InputError(f"images differ in size: {first} and {other}; {remedy}.")
    return _Shape(height, width, channels, threads)


def read(paths: Sequence[Path], shape: _Shape, image_size: int | None) -> np.ndarray:
    out = np.empty((len(paths), shape.height, shape.width, shape.channels), np.uint8)

    def one(row: int) -> None:
        image = _naming_the_file(paths[row], _images.read_file, shape.channels, image_size)
        if image.shape != out.shape[1:]:  # a PNG may name its orientation after its pixels
            size = f"{image.shape[0]}×{image.shape[1]}"
            wrong = f"is {size} once it is turned upright"
            raise InputError(f"image {paths[row]} {wrong}; pass image_size, or turn it.")
        out[row] = image

    _images.in_threads(one, range(len(paths)), shape.threads)
    return out


def _naming_the_file(path: Path, read: Callable[..., T], *options: object) -> T:
    """Return ``read(path, *options)``; where that fails, name the file."""
    try:
        return read(path, *options)
    # Pillow answers a damaged file with OSError, SyntaxError, struct.error, …
    except Exception as error:
        reason = str(error).rstrip(".")
        remedy = "replace it or take it away"
        raise InputError(f"image {path} cannot be read ({reason}); {remedy}.") from error
