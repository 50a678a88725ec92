"""People's own arrays: ``.npz`` files, and folders of ``.npy`` files, by what their arrays are called."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, NamedTuple, TypeAlias

import numpy as np

from bdjax.checks import InputError, did_you_mean
from bdjax.data.sources import _dataset
from bdjax.devices import footprint
from bdjax.types import Dataset

# The words that a name is made of: x_train, train_images, images, test_label, …
_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
}
_KINDS = {
    **dict.fromkeys(("x", "image", "images", "input", "inputs", "data"), "image"),
    **dict.fromkeys(("y", "label", "labels", "target", "targets"), "label"),
}
_NAMES = ("class_names", "label_names")
_SPELLED = "x_train, y_train, x_test and y_test, or train_images, train_labels and so on"
_HEADER = 10_000  # bytes that an array's header may have

_log = logging.getLogger(__name__)


class _Key(NamedTuple):
    split: str  # "" where a name has none
    kind: str


class _Found(NamedTuple):
    image: np.ndarray  # uint8 [n, h, w, c]
    label: np.ndarray  # int32 [n]


def is_one(path: Path) -> bool:
    """Return whether a path is a ``.npz`` file, or a folder with arrays as `load` reads them."""
    if path.suffix == ".npz" and path.is_file():
        return True
    return path.is_dir() and any(_key(file.stem) for file in path.glob("*.npy"))


def load(path: Path) -> Dataset:
    """Return the images and labels of a ``.npz`` file, or of a folder of ``.npy`` files.

    Names have a word for the split (train; test, else val) and one for what it is (x, image, images, data; y, label,
    labels, target), in any order: ``x_train``, ``train_images``. Images are uint8 [n, h, w] or [n, h, w, 1 or 3],
    labels whole numbers [n] or [n, 1] from 0. ``class_names`` may be there, and other arrays are left out. Nothing
    pickled is read.

    Raises:
      InputError: an array is missing, damaged, or of another type, shape or range; which one.
    """
    stored = _open(path)
    splits = {
        split: found
        for split in ("train", "test", "validation")
        if (found := _take(path, stored, split))
    }
    test = splits.get("test") or splits.get("validation")
    if "train" not in splits or test is None:
        lacking = "test" if "train" in splits else "training"
        raise InputError(
            f"{path} has no {lacking} images; it needs {_SPELLED}, and has {_said(stored)}."
        )
    return _build(path, stored, splits["train"], test, None)


def load_clean(
    path: Path,
    num_classes: int | None,
    class_names: tuple[str, ...],
    channels: int | None,
    image_size: int | None,
) -> Dataset:
    """Return the training images of the same, or those of names without a split, and no test images.

    Where the file has names of its classes, and those of the network are given, labels get the network's numbers.

    Raises:
      InputError: as for `load`; or labels or names that are no classes of the network's.
    """
    stored = _open(path)
    found = _take(path, stored, "train") or _take(path, stored, "")
    if found is None:
        raise InputError(f"{path} needs image and label, or {_SPELLED}; it has {_said(stored)}.")
    if channels is not None and found.image.shape[-1] != channels:
        found = found._replace(image=_with_channels(path, found.image, channels))
    if image_size is not None and found.image.shape[1:3] != (image_size, image_size):
        from bdjax.data.sources import _images  # Pillow is imported only where it is needed

        found = found._replace(image=_images.resize(found.image, image_size))
    if class_names and (own := _class_names(stored)):
        found = found._replace(label=_renumbered(path, found.label, own, class_names))
    count = num_classes or len(class_names)
    known = (count, class_names) if count else None
    nothing = _Found(found.image[:0], found.label[:0])
    return _build(path, stored, found, nothing, known)


def _build(
    path: Path,
    stored: Mapping[str, np.ndarray],
    train: _Found,
    test: _Found,
    known: tuple[int, tuple[str, ...]] | None,
) -> Dataset:
    """Return the data set; ``known`` are the number and names of the classes of a network."""
    count, names = known or (0, ())
    if train.image.shape[1:] != test.image.shape[1:]:
        differ = f"{train.image.shape[1:]} and {test.image.shape[1:]}"
        raise InputError(f"{path} must have training and test images of one shape, got {differ}.")
    names = names or _class_names(stored)
    highest = int(max(train.label.max(initial=0), test.label.max(initial=0)))
    count = count or len(names) or highest + 1
    if highest >= count:
        raise InputError(f"{path} has the label {highest}; there are {count} classes, from 0.")
    if known is None and not names:
        _check_every_class(path, train.label, count)
    names = names if len(names) == count else tuple(map(str, range(count)))
    return _dataset.build(path.name, _dataset.Arrays(*train, *test), names)


def _class_names(stored: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Return the names of the classes in the order of their numbers; none where they are not there."""
    key = next((key for key in _NAMES if key in stored), None)
    return () if key is None else tuple(map(str, stored[key].reshape(-1).tolist()))


def _renumbered(
    path: Path, label: np.ndarray, own: tuple[str, ...], names: tuple[str, ...]
) -> np.ndarray:
    """Return labels with the numbers of a network's classes, by their names."""
    for name in own:
        if own.count(name) > 1:
            raise InputError(
                f"class_names in {path} must differ from one another; {name!r} is there twice."
            )
        if name not in names:
            wrong = f"{name!r} is none of the network's {len(names)} classes"
            raise InputError(
                f"class_names in {path} must be the network's; {wrong}{did_you_mean(name, names)}."
            )
    if (highest := int(label.max(initial=0))) >= len(own):
        raise InputError(f"{path} has the label {highest}; there are {len(own)} classes, from 0.")
    return np.array([names.index(name) for name in own], np.int32)[label]


def _check_every_class(path: Path, label: np.ndarray, count: int) -> None:
    """Refuse labels that leave a class out, such as those that begin at 1."""
    without = np.flatnonzero(np.bincount(label, minlength=count) == 0)
    if len(without) or count < 2:
        wrong = f"class {without[0]} has none" if len(without) else "there is one class"
        remedy = "labels are 0, 1, … (or name the classes in an array class_names)"
        raise InputError(
            f"{path} must have training images of two classes or more: {wrong}; {remedy}."
        )


def _take(path: Path, stored: Mapping[str, np.ndarray], split: str) -> _Found | None:
    """Return the images and labels of a split, None where it has neither."""
    keys = {kind: _only(path, stored, _Key(split, kind)) for kind in ("image", "label")}
    image, label = keys["image"], keys["label"]
    if image is None or label is None:
        if image is None and label is None:
            return None
        lacking = "labels" if label is None else "images"
        raise InputError(
            f"{path} has {image or label} and no {lacking} for it; it needs {_SPELLED}."
        )
    found = _Found(
        _checked_image(f"{image} in {path}", stored[image]),
        _checked_label(f"{label} in {path}", stored[label]),
    )
    if len(found.image) != len(found.label):
        counts = f"{len(found.image)} and {len(found.label)}"
        raise InputError(f"{image} and {label} in {path} must have as many rows, got {counts}.")
    return found


def _only(path: Path, stored: Iterable[str], key: _Key) -> str | None:
    found = [name for name in stored if _key(name) == key]
    if len(found) > 1:
        raise InputError(f"{path} must have one array of each, got {' and '.join(found)}.")
    return found[0] if found else None


def _key(name: str) -> _Key | None:
    """Return what an array of this name is, None where the name does not say."""
    words = name.lower().replace("-", "_").split("_")
    split = [_SPLITS[word] for word in words if word in _SPLITS]
    kind = [_KINDS[word] for word in words if word in _KINDS]
    if len(kind) != 1 or len(split) > 1 or len(words) > len(kind) + len(split):
        return None
    return _Key(split[0] if split else "", kind[0])


def _checked_image(name: str, array: np.ndarray) -> np.ndarray:
    array = array[..., None] if array.ndim == 3 else array
    if array.dtype != np.uint8:
        remedy = "of floats in [0, 1], store (255 * x).round().astype('uint8')"
        raise InputError(f"{name} must be uint8 from 0 to 255, got {array.dtype}; {remedy}.")
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        first = array.ndim == 4 and array.shape[1] in (1, 3)
        remedy = "; put the channels last, .transpose(0, 2, 3, 1)" if first else ""
        raise InputError(
            f"{name} must be [n, h, w] or [n, h, w, 1 or 3], got {array.shape}{remedy}."
        )
    return array


def _with_channels(path: Path, image: np.ndarray, channels: int) -> np.ndarray:
    if image.shape[-1] != 1:
        raise InputError(f"{path} must have images with {channels} channel, got {image.shape[-1]}.")
    return np.repeat(image, channels, axis=-1)


def _checked_label(name: str, array: np.ndarray) -> np.ndarray:
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or flat.dtype.kind not in "iu":
        got = f"{array.dtype} of shape {array.shape}"
        raise InputError(f"{name} must be whole numbers [n], a class for each image, got {got}.")
    if flat.size and (flat.min() < 0 or flat.max() >= 2**31):
        raise InputError(f"{name} must be classes from 0, got {flat.min()} to {flat.max()}.")
    return flat.astype(np.int32)


def _said(stored: Mapping[str, np.ndarray]) -> str:
    return ", ".join(stored) or "no array"


def _open(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of names that are known; others are left out, and a line says so."""
    with contextlib.ExitStack() as stack:
        opened = _members(path, stack) if path.is_file() else _files(path)
        unknown = [name for name in opened if _key(name) is None and name not in _NAMES]
        if unknown:
            some = ", ".join(unknown[:5])
            _log.warning("%s: left out %s, whose names say neither image nor label.", path, some)
        known = [name for name in opened if name not in unknown]
        return {name: _array(f"{name} in {path}", *opened[name]) for name in known}


_Opened: TypeAlias = tuple[Callable[[], IO[bytes]], int]  # what opens an array, and its bytes


def _members(path: Path, stack: contextlib.ExitStack) -> dict[str, _Opened]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    # zipfile answers a damaged table of contents with BadZipFile, NotImplementedError, IndexError, …
    except Exception as error:
        wrong = f"is damaged or no .npz file ({_line(error)})"
        raise InputError(f"{path} {wrong}; write it with numpy.savez.") from error
    members = [one for one in archive.infolist() if one.filename.endswith(".npy")]
    return {
        one.filename.removesuffix(".npy"): (functools.partial(archive.open, one), one.file_size)
        for one in members
    }


def _files(path: Path) -> dict[str, _Opened]:
    return {
        file.stem: (functools.partial(file.open, "rb"), file.stat().st_size)
        for file in sorted(path.glob("*.npy"))
    }


def _array(name: str, opening: Callable[[], IO[bytes]], size: int) -> np.ndarray:
    """Read an array whose header is believed only if the file is as long as it says; nothing pickled is read."""
    try:
        with opening() as file:
            content = file.read(_HEADER)
            header = io.BytesIO(content)
            version = np.lib.format.read_magic(header)
            reading = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                reading = np.lib.format.read_array_header_2_0
            shape, _, dtype = reading(header)
            if dtype.hasobject:
                raise InputError(f"{name} must be numbers, got Python objects.")
            wanted = math.prod(shape) * dtype.itemsize
            if header.tell() + wanted != size:
                raise ValueError(f"{size} bytes where its header says {header.tell() + wanted}")
            if len(shape) > 2:
                footprint.check_images(shape[0], (*shape[1:], dtype.itemsize))
            return _whole(content, file, size)
    except InputError:
        raise
    # NumPy and zipfile answer damage with ValueError, BadZipFile, zlib.error, EOFError, MemoryError, …
    except Exception as error:
        raise InputError(f"{name} is damaged ({_line(error)}); write it again.") from error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def _whole(content: bytes, file: IO[bytes], size: int) -> np.ndarray:
    buffer = io.BytesIO(content + file.read(size - len(content)) + file.read(1))
    return np.lib.format.read_array(buffer, allow_pickle=False)
