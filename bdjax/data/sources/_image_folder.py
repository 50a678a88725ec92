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

from bdjax.checks import InputError, one_of
from bdjax.data.sources import _dataset, _images
from bdjax.devices import footprint
from bdjax.types import Dataset

T = TypeVar("T")

FORMATS = "PNG, JPEG, BMP, GIF, TIFF, WebP, PPM or PGM"
TEST = ("test", "val", "valid", "validation")  # the first that is there is the test split
_LISTED = 3  # of the files that are left out

_log = logging.getLogger(__name__)


class _Files(NamedTuple):
    paths: list[Path]
    headers: list[tuple[str, tuple[int, int]]]  # of each, Pillow's mode and (height, width)
    label: np.ndarray  # int32 [n]


class Wanted(NamedTuple):
    """What images of one's own must fit, as far as it is known.

    Attributes:
      num_classes: of the network that they are for; labels are below it.
      class_names: of the same, in its order.
      channels: 1 or 3.
      image_size: pixels a side.
    """

    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    channels: int | None = None
    image_size: int | None = None


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
    folders = {split: _classes(root, folder) for split, folder in splits.items()}
    class_names = _class_names(root, folders, splits)
    left_out = _loose(splits["train"]) + _loose(splits["test"])
    train = _list(folders["train"], class_names, left_out)
    test = _list(folders["test"], class_names, left_out)
    _tell_left_out(root, left_out)
    shape = _survey(train, test, image_size)
    count = len(train.paths) + len(test.paths)
    footprint.check_images(count, (shape.height, shape.width, shape.channels))
    arrays = _dataset.Arrays(
        _read(train.paths, shape, image_size),
        train.label,
        _read(test.paths, shape, image_size),
        test.label,
    )
    return _dataset.build(root.name, arrays, class_names)


def clean_folder(root: Path, wanted: Wanted) -> Dataset:
    """Return the images of ``<root>/<class>/`` as training images, and no test images.

    Where ``root`` has the splits that `image_folder` reads, its ``train/`` is read. Which class a folder is:
    `_class_numbers`. All else is as for `image_folder`.

    Raises:
      InputError: as there; or a folder that is no class of the network's.
    """
    root = _classes_root(root)
    folders = _classes(root, root)
    numbers = _class_numbers(root, folders, wanted)
    left_out = _loose(root)
    found = _list(folders, list(numbers), left_out)
    _tell_left_out(root, left_out)
    nothing = _Files([], [], np.empty(0, np.int32))
    shape = _survey(found, nothing, wanted.image_size)
    shape = shape._replace(channels=wanted.channels or shape.channels)
    footprint.check_images(len(found.paths), (shape.height, shape.width, shape.channels))
    image = _read(found.paths, shape, wanted.image_size)
    label = np.array(list(numbers.values()), np.int32)[found.label]
    arrays = _dataset.Arrays(image, label, image[:0], label[:0])
    count = wanted.num_classes or len(wanted.class_names) or len(numbers)
    by_number = {number: name for name, number in numbers.items()}
    names = [by_number.get(number, str(number)) for number in range(count)]
    return _dataset.build(root.name, arrays, wanted.class_names or tuple(names))


def indices(root: Path, class_names: Sequence[str]) -> np.ndarray:
    """Return the whole number that each image's file is called, in the order in which `clean_folder` reads them.

    Raises:
      InputError: a folder or a file is called otherwise, or a number is there twice.
    """
    folders = _classes(root, _classes_root(root))
    seen: dict[int, Path] = {}
    for name in [name for name in class_names if name in folders]:
        for path in _list({name: folders[name]}, [name], []).paths:
            if not (name.isdecimal() and path.stem.isdecimal()):
                wanted = "<label>/<row>.png, both of them whole numbers"
                raise InputError(f"image {path} must be called {wanted}.")
            if (first := seen.setdefault(int(path.stem), path)) is not path:
                raise InputError(f"row {path.stem} is there twice: {first} and {path}.")
    return np.array(list(seen), np.int64)


def _classes_root(root: Path) -> Path:
    """Return the folder that holds the class folders."""
    train = root / "train"
    if not train.is_dir() or not any(path.is_dir() for path in _entries(train)):
        return root
    _log.warning("image folder %s: its train/ is read.", root)
    return train


def _class_numbers(root: Path, folders: Mapping[str, Path], wanted: Wanted) -> dict[str, int]:
    """Return the number of each class folder, in the order of the numbers.

    By the network's names of the classes, where these are known and the folders have them; else by the folders' own
    names, where these are whole numbers below the number of classes; else by their order, if there are as many.

    Raises:
      InputError: it cannot be said, or there is no class.
    """
    names, classes = _ordered(set(folders)), wanted.class_names
    count = wanted.num_classes or len(classes) or None
    if not names or (count is None and len(names) < 2):
        least = "a class folder" if count else "two class folders"
        raise InputError(f"image folder {root} needs {least} or more, got {names}.")
    if classes and set(names) & set(classes):
        for name in names:
            one_of(classes, **{f"class folder of {root}": name})
        return {name: number for number, name in enumerate(classes) if name in folders}
    if count and all(name.isdecimal() and int(name) < count for name in names):
        numbers = {name: int(name) for name in names}
        if len(set(numbers.values())) == len(numbers):
            return numbers
    if count and len(names) != count:
        wrong = f"has {len(names)} class folders and the network has {count} classes"
        remedy = f"name each folder by the number of its class, 0 to {count - 1}"
        raise InputError(f"image folder {root} {wrong}; {remedy}.")
    if count:
        told = (
            "its class folders are taken in the order of their names: %s is class 0, %s class %d."
        )
        _log.warning(f"image folder %s: {told}", root, names[0], names[-1], count - 1)
    return {name: number for number, name in enumerate(names)}


def _test_folder(root: Path) -> Path:
    found = next((name for name in TEST if (root / name).is_dir()), TEST[0])
    if found != TEST[0] and (root / "train").is_dir():
        _log.warning("image folder %s has no test/; its %s/ is the test split.", root, found)
    return root / found


def _classes(root: Path, folder: Path) -> dict[str, Path]:
    """Return the folder of each class of a split by its name in NFC, as which two must not be the same."""
    if not folder.is_dir():
        or_val = " (or val/)" if folder.name == TEST[0] else ""
        missing = f"image folder {root} has no {folder.name} split{or_val}"
        raise InputError(f"{missing}; put its images into {folder}/<class>/.")
    classes: dict[str, Path] = {}
    for path in _entries(folder):
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
    if only := _ordered(names["train"] ^ names["test"]):
        where = splits["train" if only[0] in names["train"] else "test"].name
        more = f" (and {len(only) - 1} more are in one split alone)" if len(only) > 1 else ""
        wrong = f"class {only[0]!r} is only in {where}{more}"
        raise InputError(f"the splits of {root} differ: {wrong}; both need every class.")
    if len(names["train"]) < 2:
        got = sorted(names["train"])
        raise InputError(f"image folder {root} needs two classes or more, got {got}.")
    return tuple(_ordered(names["train"]))


def _ordered(names: set[str]) -> list[str]:
    """Sort class names: as numbers if all are whole numbers, else as they are."""
    if all(re.fullmatch("[0-9]+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _loose(folder: Path) -> list[Path]:
    """Return what lies in a split beside its class folders."""
    return [path for path in _entries(folder) if path.name.startswith(".") or not path.is_dir()]


def _list(folders: Mapping[str, Path], class_names: Sequence[str], left_out: list[Path]) -> _Files:
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
    return _Files(paths, headers, np.array(label, np.int32))


def _files(folder: Path, left_out: list[Path]) -> list[Path]:
    """Return the files below a folder that are not hidden, sorted by their paths; the others are left out."""

    def walk(inner: Path, above: frozenset[str]) -> Iterator[Path]:
        real = os.path.realpath(inner)
        if real in above:
            raise InputError(f"{inner} is a link to a folder that it lies in; take it away.")
        for path in _entries(inner):
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


def _entries(folder: Path) -> list[Path]:
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


def _tell_left_out(root: Path, paths: Sequence[Path]) -> None:
    if paths:
        names = [path.relative_to(root).as_posix() for path in paths[:_LISTED]]
        more = ", …" if len(paths) > _LISTED else ""
        files = "file that is" if len(paths) == 1 else "files that are"
        no_image = "no image" if len(paths) == 1 else "no images"
        _log.warning(
            "image folder %s: left out %d %s %s (%s) or hidden: %s%s.",
            *(root, len(paths), files, no_image, FORMATS, ", ".join(names), more),
        )


def _survey(train: _Files, test: _Files, image_size: int | None) -> _Shape:
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


def _read(paths: Sequence[Path], shape: _Shape, image_size: int | None) -> np.ndarray:
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
