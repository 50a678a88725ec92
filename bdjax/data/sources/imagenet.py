"""ImageNet from its class folders, or from a prepared TensorFlow Datasets folder."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bdjax.checks import InputError
from bdjax.data.sources import _dataset, _encoded, _extra, _folders
from bdjax.data.sources._dataset import Arrays
from bdjax.types import Dataset

# SFT's settings on this data set (A.4) and NFT's (supplement, section 2.2).
_SFT = {"epochs": 2, "learning_rate": 0.001, "schedule": {"kind": "constant"}}
DEFAULTS = {"holdout": {"share": 0.03}}
DEFENSES = {
    "sft": _SFT,
    "fast_sft": _SFT,
    "nft": {
        "epochs": 10,
        "learning_rate": 0.001,
        "batch_size": 32,
        "schedule": {"kind": "step", "period": 1, "factor": 0.65},
    },
}
CLASSES = 1000
LIST = "wnids.txt"
_WNID = re.compile(r"n\d{8}")
_ROOTS = ("imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", "imagenet/ILSVRC/Data/CLS-LOC")

_log = logging.getLogger(__name__)


def imagenet(
    data_dir: Path | None = None, *, image_size: int = 224, on_disk: bool = False
) -> Dataset:
    """ImageNet (ILSVRC 2012), 224×224 color, 1,000 classes of WordNet: 1,281,167 to train and 50,000 to test.

    Read from ``<data_dir>/imagenet/train/<wnid>/`` and ``val/<wnid>/`` (``ILSVRC2012/``, ``ILSVRC/Data/CLS-LOC/``), or
    from ``imagenet2012/<version>/`` that TensorFlow Datasets prepared. Where the folder has a file ``wnids.txt``, a
    WordNet number a line, these classes alone are the data set, as in the papers that use 100 or 200 of them; a line
    says so. Classes are in the order of their numbers, which are the class names; rows by class and file name.

    The shorter side of each image is made 8/7 of ``image_size``, bilinear and antialiased, and the middle is cut out,
    for training too. Nothing is downloaded, and nothing is cached: with ``on_disk`` the training images are decoded as
    they are needed, without it all of them must fit into memory. The mean and standard deviation (.485, .456, .406;
    .229, .224, .225) are the customary ones; images are cropped with a padding of 4 and flipped.

    Args:
      data_dir: where it lies.
      image_size: pixels a side.
      on_disk: leave the training images there.

    Source: O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015.

    Raises:
      InputError: it is not there, or not in folders of its classes, or an image is damaged; what to do.
    """
    data_dir = _folders.resolve(data_dir)
    _folders.require_folder(data_dir)
    if (root := _root(data_dir)) is not None:
        arrays, classes = _of_folders(root, image_size, on_disk)
    elif (prepared := _folders.newest_version(data_dir, "imagenet2012")) is not None:
        arrays, classes = _prepared(prepared, image_size, on_disk)
    else:
        wanted = f"{data_dir}/imagenet/train/<wnid>/ and val/<wnid>/"
        raise InputError(f"imagenet is not in {data_dir}; put it into {wanted}.")
    if len(classes) != CLASSES:
        _log.warning("imagenet: %d of its %d classes.", len(classes), CLASSES)
    return _dataset.build(
        "imagenet",
        arrays,
        classes,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        crop_padding=4,
        flip=True,
    )


def is_ready(data_dir: Path) -> bool:
    """Whether it is there."""
    if data_dir != _folders.default():
        _folders.require_folder(data_dir)
    prepared = _folders.newest_version(data_dir, "imagenet2012")
    return _root(data_dir) is not None or prepared is not None


def files(data_dir: Path) -> list[Path]:
    """Return the folder that it is read from."""
    root = _root(data_dir) or _folders.newest_version(data_dir, "imagenet2012")
    return [] if root is None else [root]


def _root(data_dir: Path) -> Path | None:
    for root in _ROOTS:
        if (data_dir / root / "train").is_dir() and (data_dir / root / "val").is_dir():
            return data_dir / root
    return None


def _of_folders(root: Path, image_size: int, on_disk: bool) -> tuple[Arrays, tuple[str, ...]]:
    classes = _classes(root)
    train, test = (_files(root / split, classes) for split in ("train", "val"))
    (paths, label), (test_paths, test_label) = train, test
    images: _encoded.Cropped | np.ndarray = _encoded.Cropped(paths, image_size)
    if not on_disk:
        images = _encoded.decoded(images)
    decoded = _encoded.decoded(_encoded.Cropped(test_paths, image_size))
    return Arrays(images, label, decoded, test_label), classes  # type: ignore[arg-type]


def _classes(root: Path) -> tuple[str, ...]:
    there = {path.name for path in (root / "train").iterdir() if _WNID.fullmatch(path.name)}
    if len(there) < 2:
        raise InputError(f"{root}/train has {len(there)} class folders of ImageNet, n01440764/ …")
    if not (root / LIST).is_file():
        return tuple(sorted(there))
    words = (root / LIST).read_text("utf-8", "replace").split("\n")
    wanted = {line.split()[0] for line in words if line.strip()}
    if lacking := sorted(wanted - there):
        raise InputError(f"{root / LIST} has {lacking[0]!r}, which has no folder in {root}/train.")
    if len(wanted) < 2:
        raise InputError(f"{root / LIST} must have two classes or more, got {sorted(wanted)}.")
    return tuple(sorted(wanted))


def _files(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    paths: list[Path] = []
    label: list[int] = []
    for number, wnid in enumerate(classes):
        if not (folder / wnid).is_dir():
            remedy = "sort its images into a folder for each class"
            raise InputError(f"{folder} has no folder {wnid}; {remedy}.")
        found = [path for path in (folder / wnid).iterdir() if path.suffix.lower() in _SUFFIXES]
        if not found:
            raise InputError(f"{folder / wnid} has no image ({', '.join(_SUFFIXES)}).")
        paths += sorted(found)
        label += [number] * len(found)
    return paths, np.array(label, np.int32)


_SUFFIXES = (".jpeg", ".jpg", ".png")


def _prepared(folder: Path, image_size: int, on_disk: bool) -> tuple[Arrays, tuple[str, ...]]:
    with _extra.required():
        from bdjax.data.sources import _tfds

    read: Callable[..., Arrays] = _tfds.read_by_row if on_disk else _tfds.read_folder
    arrays = read(folder, image_size, cropped=True)
    return arrays, _folders.class_names(folder, CLASSES)
