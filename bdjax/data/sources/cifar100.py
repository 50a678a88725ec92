"""CIFAR-100 from a prepared TensorFlow Datasets folder or from the official binary archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bdjax.checks import InputError
from bdjax.data.sources import _archives, _cache, _cifar_archive, _dataset, _extra, _folders, _trees
from bdjax.data.sources._archives import Archive
from bdjax.data.sources._dataset import Arrays
from bdjax.types import Dataset

_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
CLASS_NAMES = tuple(_NAMES.split())
_TAR = Archive(
    "cifar-100-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    169,
)
_MEMBERS = ("train.bin", "test.bin")
_RECORD = 2 + 3 * 32 * 32  # the coarse and the fine label, then the red, green and blue planes


def cifar100(data_dir: Path | None = None, *, on_disk: bool = False) -> Dataset:
    """CIFAR-100, 32×32 color, 100 classes: 50,000 to train and 10,000 to test.

    Read from the newest version in ``<data_dir>/cifar100/`` that TensorFlow Datasets prepared, in the order of its
    files (which needs the extra ``data`` once), or else from ``cifar-100-binary.tar.gz``, found in ``data_dir`` or
    downloaded. The labels are the fine ones. The decoded arrays are cached. With ``on_disk`` the training images stay
    in a prepared folder's files.

    The mean (.5071, .4865, .4409) and standard deviation (.2673, .2564, .2762), the crop with a padding of 4 and no
    flip are those of BackdoorBench.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html.

    Raises:
      InputError: no such folder, no network, or a damaged file, which is named.
    """
    data_dir = _folders.resolve(data_dir)
    _folders.require_folder(data_dir)
    return _dataset.build(
        "cifar100",
        _arrays(data_dir, on_disk),
        CLASS_NAMES,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        crop_padding=4,
    )


def is_ready(data_dir: Path) -> bool:
    """Whether it is there."""
    if data_dir != _folders.default():
        _folders.require_folder(data_dir)
    prepared = _folders.newest_version(data_dir, "cifar100")
    return prepared is not None or _archives.find(data_dir, _TAR.name, "cifar100") is not None


def files(data_dir: Path) -> list[Path]:
    """Return the archive that it is read from, if there is one."""
    found = _archives.find(data_dir, _TAR.name, "cifar100")
    return [] if found is None else [found]


def _arrays(data_dir: Path, on_disk: bool) -> Arrays:
    if (folder := _folders.newest_version(data_dir, "cifar100")) is not None:
        with _extra.required():
            from bdjax.data.sources import _tfds

        if on_disk:
            return _tfds.read_by_row(folder)
        return _cache.cached(folder, lambda: _tfds.read_folder(folder))
    if on_disk:
        where = f"there is no prepared folder {data_dir}/cifar100/<version>/"
        raise InputError(f"data set cifar100 cannot stay on the disk: {where}.")
    archive = _archives.find_or_download(data_dir, _TAR, "cifar100")
    known = _trees.identity([_trees.File(archive)])
    return _cache.cached(data_dir / "cifar100", lambda: _read(archive), identity=known)


def _read(archive: Path) -> Arrays:
    content = _cifar_archive.members(archive, _MEMBERS)
    for name in _MEMBERS:
        if name not in content:
            why = "it is not the binary version of CIFAR-100"
            raise InputError(f"archive {archive} has no {name}; {why}.")
    return Arrays(*(array for name in _MEMBERS for array in _records(archive, name, content[name])))


def _records(archive: Path, name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    if not content or len(content) % _RECORD:
        there = f"{len(content)} bytes, which are not whole records of {_RECORD} bytes"
        raise InputError(f"{name} in archive {archive} has {there}.")
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    label = records[:, 1].astype(np.int32)
    if label.max() > 99:
        wrong = f"has the label {label.max()}"
        raise InputError(f"{name} in archive {archive} {wrong}; labels are 0 to 99.")
    return records[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), label
