"""Tiny-ImageNet from its official archive, or from the unpacked folder."""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path

import numpy as np

from bdjax.checks import InputError
from bdjax.data.sources import _archives, _cache, _dataset, _encoded, _folders, _trees
from bdjax.data.sources._archives import Archive
from bdjax.types import Dataset

CLASSES, TRAIN, TEST = 200, 100_000, 10_000
FOLDER = "tiny-imagenet-200"
_ZIP = Archive(
    f"{FOLDER}.zip",
    f"http://cs231n.stanford.edu/{FOLDER}.zip",
    "90528d7ca1a48142e341f4ef8d21d0de",
    248,
)
# FT-SAM's settings on this data set (section 4.1) with the victims of BackdoorBench; SFT's (A.4) and NFT's (supplement,
# section 2.2, whose Table 2 says 10 epochs where the text says 200).
DEFAULTS = {"training": {"epochs": 200, "schedule": {"kind": "plateau"}}}
_SFT = {"epochs": 15, "schedule": {"kind": "step", "period": 1, "factor": 0.3}}
_NFT_FALL = {"kind": "step", "period": 20, "factor": 0.65}
DEFENSES = {
    "ft_sam": {"rho": 8.0},
    "sft": _SFT,
    "fast_sft": _SFT,
    "nft": {"epochs": 200, "learning_rate": 0.01, "schedule": _NFT_FALL},
}

_TRAINING = re.compile(r"(?:^|/)train/(n\d{8})/(?:images/)?[^/]+\.JPEG$")
_TESTING = re.compile(r"(?:^|/)val/images/([^/]+\.JPEG)$")
_SORTED = re.compile(r"(?:^|/)val/(n\d{8})/(?:images/)?[^/]+\.JPEG$")
_TRUTH = "val/val_annotations.txt"

_log = logging.getLogger(__name__)


def tiny_imagenet(data_dir: Path | None = None, *, image_size: int = 64) -> Dataset:
    """Tiny-ImageNet, 64×64 color, 200 classes of WordNet: 100,000 to train and, its validation images, 10,000 to test.

    Read from ``tiny-imagenet-200/`` or ``tiny-imagenet-200.zip``, found in ``data_dir`` or downloaded, as laid out:
    ``train/<wnid>/images/*.JPEG`` and ``val/images/*.JPEG`` with ``val/val_annotations.txt`` (or ``val/<wnid>/``). Its
    own test images have no labels; like everybody, this is tested on ``val``.

    Classes are in the order of their WordNet numbers, which are the class names (``wnids.txt`` has another order, which
    some networks were trained in). Rows are sorted by class and file name, test images by file name. Where some classes
    have no folder in ``train/``, the others are the data set, and a line says how many they are. Gray images become
    RGB. The mean and standard deviation (.4802, .4481, .3975; .2302, .2265, .2262), the crop with a padding of 4 and no
    flip are those of BackdoorBench.

    Args:
      data_dir: where it lies.
      image_size: pixels a side.

    Source: Y. Le and X. Yang, "Tiny ImageNet Visual Recognition Challenge", 2015.

    Raises:
      InputError: something is missing or damaged; what it is.
    """
    data_dir = _folders.resolve(data_dir)
    _folders.require_folder(data_dir)
    tree = _find(data_dir)
    if tree is None:
        tree = _trees.Zip(_archives.find_or_download(data_dir, _ZIP, "tiny_imagenet"))
    names = tree.names()
    classes = _classes(tree, names)
    read = functools.partial(_read, tree, names, classes, image_size)
    place, known = data_dir / "tiny_imagenet", _trees.identity([tree])
    arrays = _cache.cached(place, read, identity=known, part=str(image_size))
    _tell_counts(len(classes), len(arrays.train_label), len(arrays.test_label))
    return _dataset.build(
        "tiny_imagenet",
        arrays,
        classes,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2302, 0.2265, 0.2262),
        crop_padding=4,
    )


def is_ready(data_dir: Path) -> bool:
    """Whether it is there."""
    if data_dir != _folders.default():
        _folders.require_folder(data_dir)
    return _find(data_dir) is not None


def files(data_dir: Path) -> list[Path]:
    """Return the folder or archive that it is read from."""
    tree = _find(data_dir)
    return [] if tree is None else [tree.place]


def _find(data_dir: Path) -> _trees.Tree | None:
    for folder in (data_dir / FOLDER, data_dir / "tiny_imagenet" / FOLDER, data_dir):
        if not all((folder / split).is_dir() for split in ("train", "val")):
            continue
        # Of data_dir itself, only what has the set's own list
        if folder != data_dir or (folder / "wnids.txt").is_file():
            return _trees.Folder(folder)
    found = _archives.find(data_dir, _ZIP.name, "tiny_imagenet")
    return None if found is None else _trees.Zip(found)


def _classes(tree: _trees.Tree, names: list[str]) -> tuple[str, ...]:
    found = {match[1] for name in names if (match := _TRAINING.search(name))}
    if len(found) < 2:
        wrong = f"has {len(found)} classes of Tiny-ImageNet (train/<wnid>/images/*.JPEG)"
        raise InputError(f"{tree.place} {wrong}; it needs two or more.")
    return tuple(sorted(found))


def _read(
    tree: _trees.Tree, names: list[str], classes: tuple[str, ...], image_size: int
) -> _dataset.Arrays:
    train = {name: match[1] for name in names if (match := _TRAINING.search(name))}
    found = dict(sorted(train.items(), key=lambda one: (one[1], one[0])))
    test = _test(tree, names)
    kept = {name: wnid for name, wnid in test.items() if wnid in classes}
    if not kept:
        raise InputError(f"{tree.place} has no image of its classes in val/.")
    number = {wnid: row for row, wnid in enumerate(classes)}
    arrays = []
    for split in (found, kept):
        arrays.append(_encoded.read_all(tree, list(split), 3, image_size))
        arrays.append(np.array([number[wnid] for wnid in split.values()], np.int32))
    return _dataset.Arrays(*arrays)


def _test(tree: _trees.Tree, names: list[str]) -> dict[str, str]:
    """Return the class of each validation image, in the order of their file names' numbers."""
    sorted_ones = {name: match[1] for name in names if (match := _SORTED.search(name))}
    if sorted_ones:
        return sorted_ones
    found = {match[1]: name for name in names if (match := _TESTING.search(name))}
    listed = next((name for name in names if name.endswith(_TRUTH)), None)
    if listed is None:
        raise InputError(f"{tree.place} has no {_TRUTH}, which has the classes of val/images.")
    text = tree.read(listed).decode("utf-8", "replace")
    rows = [line.split("\t") for line in text.splitlines()]
    truth = {row[0]: row[1] for row in rows if len(row) > 1}
    for name in sorted(found):
        if name not in truth:
            raise InputError(f"{tree.place} has the image {name} in val/, which {_TRUTH} lacks.")
    return {found[name]: truth[name] for name in sorted(found, key=_number)}


def _number(name: str) -> tuple[int, str]:
    digits = re.search(r"(\d+)\.JPEG$", name)
    return (int(digits[1]) if digits else 0, name)


def _tell_counts(classes: int, train: int, test: int) -> None:
    if (classes, train, test) != (CLASSES, TRAIN, TEST):
        official = f"the whole has {CLASSES}, {TRAIN:,} and {TEST:,}"
        told = "tiny_imagenet: %d classes, %d training and %d test images; %s."
        _log.warning(told, classes, train, test, official)
