"""German traffic signs from the official archives of the final data set, or from their unpacked folders."""

from __future__ import annotations

import csv
import functools
import io
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bdjax.checks import InputError
from bdjax.data.sources import _archives, _cache, _dataset, _encoded, _folders, _trees
from bdjax.data.sources._archives import Archive
from bdjax.types import Dataset

CLASSES, TRAIN, TEST = 43, 39_209, 12_630
_URL = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"
_TRAIN_ZIP, _TEST_ZIP, _TRUTH_ZIP = (
    Archive(name, f"{_URL}/{name}", checksum, megabytes)
    for name, checksum, megabytes in (
        ("GTSRB_Final_Training_Images.zip", "f33fd80ac59bff73c82d25ab499e03a3", 276),
        ("GTSRB_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185", 89),
        ("GTSRB_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5", 1),
    )
)
# The archive of the online competition, which torchvision.datasets.GTSRB takes for the training set
SMALLER = "GTSRB-Training_fixed.zip"
# FT-SAM's settings on this data set (section 4.1), in which BackdoorBench's victims have half of the usual epochs.
DEFAULTS = {"training": {"epochs": 50}}
DEFENSES = {
    "ft_sam": {"rho": 8.0, "epochs": 50},
    **{name: {"epochs": 50} for name in ("ft", "l2_ft", "fine_pruning")},
}

# <class>/<track>_<frame>; copies of the set have the class before the track once more, and folders 0, 1, …, 42
_TRAINING = re.compile(r"(?:^|/)(\d{1,5})/(?:\d{5}_)?(\d{5})_(\d{5})\.(?:ppm|png)$")
_TESTING = re.compile(r"(?:^|/)(\d{5})\.(?:ppm|png)$")
_ROOTS = ("GTSRB", "gtsrb/GTSRB", "gtsrb", ".")

_log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """Where the training images, the test images and the labels of these lie."""

    train: _trees.Tree
    test: _trees.Tree
    truth: _trees.Tree


class _Images(NamedTuple):
    tree: _trees.Tree
    names: list[str]
    label: np.ndarray  # int32 [n]
    group: np.ndarray  # int32 [n]


def gtsrb(data_dir: Path | None = None, *, image_size: int = 32) -> Dataset:
    """GTSRB, 32×32 color, 43 classes of traffic signs: 39,209 to train and 12,630 to test.

    Read from ``GTSRB/Final_Training/Images/<class>/`` and ``GTSRB/Final_Test/Images/`` with ``GT-final_test.csv``, or
    from the official archives of the same (``GTSRB_Final_Training_Images.zip``, ``…_Test_Images.zip``,
    ``…_Test_GT.zip``), found in ``data_dir`` or downloaded; folders ``Train/0/ … Train/42/`` with ``Test.csv`` will do.
    Rows are in the order of class, track and frame, test images in that of their numbers. The images come in all sizes
    from 15×15 to 250×250: each is resized whole, border included, bilinear and antialiased, and the result is cached.

    The 30 frames of a track show one sign; `Dataset.train_group` numbers the tracks, so that a holdout that is held out
    keeps them together. Images are not normalized (mean 0, standard deviation 1), cropped with a padding of 4 and never
    flipped, as in BackdoorBench: some signs are the mirror images of others.

    The archive ``GTSRB-Training_fixed.zip`` that torchvision takes has only 26,640 of the training images; it is
    refused.

    Args:
      data_dir: where they lie.
      image_size: pixels a side.

    Source: J. Stallkamp, M. Schlipsing, J. Salmen and C. Igel, "Man vs. computer", Neural Networks 32, 2012,
    https://benchmark.ini.rub.de.

    Raises:
      InputError: something is missing, damaged or contradicts itself; what it is.
    """
    data_dir = _folders.resolve(data_dir)
    _folders.require_folder(data_dir)
    parts = _find(data_dir) or _download(data_dir)
    read = functools.partial(_read, parts, image_size)
    known = _trees.identity(parts)
    place = data_dir / "gtsrb"
    arrays = _cache.cached(place, read, identity=known, part=str(image_size))
    _tell_counts(len(arrays.train_label), len(arrays.test_label))
    names = tuple(map(str, range(CLASSES)))
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return _dataset.build("gtsrb", arrays, names, mean=mean, std=std, crop_padding=4)


def is_ready(data_dir: Path) -> bool:
    """Whether all of it is there."""
    if data_dir != _folders.default():
        _folders.require_folder(data_dir)
    return _find(data_dir) is not None


def files(data_dir: Path) -> list[Path]:
    """Return the folders and archives that it is read from."""
    parts = _find(data_dir)
    return [] if parts is None else [part.place for part in parts]


def _find(data_dir: Path) -> Parts | None:
    """Return where the parts are, or None where one is missing."""
    train = _part(data_dir, ("Final_Training/Images", "Train"), _TRAIN_ZIP.name)
    if train is None:
        _refuse_smaller(data_dir)
        return None
    test = _part(data_dir, ("Final_Test/Images", "Test"), _TEST_ZIP.name)
    lists = ("GT-final_test.csv", "Final_Test/Images/GT-final_test.csv", "Test.csv")
    truth = _part(data_dir, lists, _TRUTH_ZIP.name)
    return None if test is None or truth is None else Parts(train, test, truth)


def _part(data_dir: Path, places: Sequence[str], archive: str) -> _trees.Tree | None:
    for root in _ROOTS:
        for place in places:
            # "Train" and "Test" may be anybody's
            if root == "." and "inal_" not in place:
                continue
            if (path := data_dir / root / place).exists():
                return _trees.File(path) if path.is_file() else _trees.Folder(path)
    found = _archives.find(data_dir, archive, "gtsrb")
    return None if found is None else _trees.Zip(found)


def _refuse_smaller(data_dir: Path) -> None:
    unpacked = [data_dir / root / "Training" for root in _ROOTS[:3]]
    for path in (_archives.find(data_dir, SMALLER, "gtsrb"), *unpacked):
        if path is not None and path.exists():
            wrong = f"has 26,640 of GTSRB's {TRAIN:,} training images, those of a competition"
            remedy = f"put {_TRAIN_ZIP.name} from {_TRAIN_ZIP.url} into {data_dir}"
            raise InputError(f"{path} (torchvision's) {wrong}; {remedy}.")


def _download(data_dir: Path) -> Parts:
    return Parts(
        *(
            _trees.Zip(_archives.find_or_download(data_dir, archive, "gtsrb"))
            for archive in (_TRAIN_ZIP, _TEST_ZIP, _TRUTH_ZIP)
        )
    )


def _read(parts: Parts, image_size: int) -> _dataset.Arrays:
    train, test = _training(parts.train), _testing(parts.test, _truth(parts.truth))
    train_image, test_image = (
        _encoded.read_all(one.tree, one.names, 3, image_size) for one in (train, test)
    )
    return _dataset.Arrays(train_image, train.label, test_image, test.label, train.group)


def _training(tree: _trees.Tree) -> _Images:
    found = []
    for name in tree.names():
        if match := _TRAINING.search(name):
            number, track, frame = map(int, match.groups())
            found.append((number, track, frame, name))
    if not found:
        looked_for = "<class>/<track>_<frame>.ppm"
        raise InputError(f"{tree.place} has no training image of GTSRB ({looked_for}).")
    numbers, tracks, _, names = map(list, zip(*sorted(found), strict=True))
    label = np.array(numbers, np.int32)
    if label.max() >= CLASSES:
        raise InputError(f"{tree.place} has a class {label.max()}; those of GTSRB are 0 to 42.")
    pairs = np.stack([label, np.array(tracks)], 1)
    group = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
    return _Images(tree, names, label, group.astype(np.int32))


def _testing(tree: _trees.Tree, truth: Mapping[str, int]) -> _Images:
    found = {}
    for name in tree.names():
        if match := _TESTING.search(name):
            found[match[1]] = name
    listed = f"{len(truth)} test images of GTSRB are listed and {len(found)} are in {tree.place}"
    if differ := sorted(found.keys() ^ truth.keys()):
        where = "listed" if differ[0] in truth else "there"
        raise InputError(f"{listed}; only {where} is {differ[0]}.")
    numbers = sorted(found)
    label = np.array([truth[number] for number in numbers], np.int32)
    return _Images(tree, [found[number] for number in numbers], label, label)


def _truth(tree: _trees.Tree) -> dict[str, int]:
    """Return the class of each test image by its five digits."""
    for name in tree.names():
        if name.endswith(".csv"):
            text = tree.read(name).decode("utf-8-sig", "replace")
            delimiter = ";" if ";" in text.partition("\n")[0] else ","
            try:
                rows = list(csv.DictReader(io.StringIO(text), delimiter=delimiter))
            except csv.Error as error:
                wrong = f"{name} in {tree.place} must be a list of test images and their classes"
                raise InputError(f"{wrong}; it cannot be read ({error}).") from error
            # The list beside the images themselves has no classes
            if rows and "ClassId" in rows[0]:
                return dict(_class_of(tree.place, row) for row in rows)
    wrong = "has no list with the classes of GTSRB's test images (a column ClassId)"
    raise InputError(f"{tree.place} {wrong}; it is in {_TRUTH_ZIP.name} from {_TRUTH_ZIP.url}.")


def _class_of(place: Path, row: Mapping[str, str | None]) -> tuple[str, int]:
    name, number = row.get("Filename") or row.get("Path") or "", row.get("ClassId") or ""
    match = _TESTING.search(name)
    if match is None or not number.isdecimal() or int(number) >= CLASSES:
        wrong = f"the file {name!r} of class {number!r}"
        raise InputError(f"a list in {place} has {wrong}; classes of GTSRB are 0 to 42.")
    return match[1], int(number)


def _tell_counts(train: int, test: int) -> None:
    if (train, test) != (TRAIN, TEST):
        official = f"the final data set has {TRAIN:,} and {TEST:,}"
        _log.warning("gtsrb: %d training and %d test images; %s.", train, test, official)
