"""Clean images for a network from elsewhere: a folder of class folders, without splits."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bdjax.checks import InputError, did_you_mean
from bdjax.data.sources import _dataset, _image_folder
from bdjax.devices import footprint
from bdjax.types import Dataset

_log = logging.getLogger(__name__)


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


def clean_folder(root: Path, wanted: Wanted) -> Dataset:
    """Return the images of ``<root>/<class>/`` as training images, and no test images.

    Where ``root`` has the splits that `_image_folder` reads, its ``train/`` is read. Which class a folder is:
    `_class_numbers`. All else is as for `bdjax.data.sources._image_folder.image_folder`.

    Raises:
      InputError: as there; or a folder that is no class of the network's.
    """
    root = _classes_root(root)
    folders = _image_folder.classes_in(root, root)
    numbers = _class_numbers(root, folders, wanted)
    left_out = _image_folder.loose(root)
    found = _image_folder.listed(folders, list(numbers), left_out)
    _image_folder.tell_left_out(root, left_out)
    nothing = _image_folder.Files([], [], np.empty(0, np.int32))
    shape = _image_folder.survey(found, nothing, wanted.image_size)
    shape = shape._replace(channels=wanted.channels or shape.channels)
    footprint.check_images(len(found.paths), (shape.height, shape.width, shape.channels))
    image = _image_folder.read(found.paths, shape, wanted.image_size)
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
    folders = _image_folder.classes_in(root, _classes_root(root))
    seen: dict[int, Path] = {}
    for name in [name for name in class_names if name in folders]:
        for path in _image_folder.listed({name: folders[name]}, [name], []).paths:
            if not (name.isdecimal() and path.stem.isdecimal()):
                wanted = "<label>/<row>.png, both of them whole numbers"
                raise InputError(f"image {path} must be called {wanted}.")
            if (first := seen.setdefault(int(path.stem), path)) is not path:
                raise InputError(f"row {path.stem} is there twice: {first} and {path}.")
    return np.array(list(seen), np.int64)


def _classes_root(root: Path) -> Path:
    """Return the folder that holds the class folders."""
    train = root / "train"
    if not train.is_dir() or not any(path.is_dir() for path in _image_folder.entries(train)):
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
    names, classes = _image_folder.ordered(set(folders)), wanted.class_names
    count = wanted.num_classes or len(classes) or None
    if not names or (count is None and len(names) < 2):
        least = "a class folder" if count else "two class folders"
        files = any(path.is_file() for path in _image_folder.entries(root))
        above = ", and files: perhaps the folder above is meant" if files else ""
        raise InputError(f"image folder {root} needs {least} or more, got {names}{above}.")
    if classes and set(names) & set(classes):
        for name in names:
            if name not in classes:
                wrong = f"is none of the network's {len(classes)} classes"
                raise InputError(
                    f"class folder {root / name} {wrong}{did_you_mean(name, classes)}."
                )
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
