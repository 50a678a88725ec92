"""CIFAR-10 from a prepared TensorFlow Datasets folder or from the official binary archive."""

from __future__ import annotations

from pathlib import Path

from bdjax.data.sources import _cache, _dataset, _extra, _folders
from bdjax.types import Dataset

CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def cifar10(data_dir: Path | None = None, *, on_disk: bool = False) -> Dataset:
    """CIFAR-10, 32×32 color, 10 classes: 50,000 to train and 10,000 to test. Needs the extra ``data`` once.

    Read from the newest version in ``<data_dir>/cifar10/``, in the order of its files. Where there is none, it is
    prepared from ``cifar-10-binary.tar.gz``, found in ``data_dir`` or downloaded. The decoded arrays are cached beside
    the files (see ``_cache.py``). With ``on_disk`` the training images stay in the files, and nothing is cached.

    The mean (.4914, .4822, .4465) and standard deviation (.247, .243, .261) are the customary ones of the published
    attacks and defenses, rounded as there.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html.

    Raises:
      InputError: no such folder, no network, or a damaged file, which is named.
    """
    data_dir = _folders.resolve(data_dir)
    _folders.require_folder(data_dir)
    folder = _folders.newest_version(data_dir, "cifar10") or _prepare(data_dir)
    return _dataset.build(
        "cifar10",
        _read(folder, on_disk=True) if on_disk else _cache.cached(folder, lambda: _read(folder)),
        CLASS_NAMES,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.243, 0.261),
        crop_padding=4,
        flip=True,
    )


def is_ready(data_dir: Path) -> bool:
    """Whether a prepared folder is there; where the user named the folder for it, that must be there."""
    if data_dir != _folders.default():
        _folders.require_folder(data_dir)
    return _folders.newest_version(data_dir, "cifar10") is not None


# tfds is imported where something must be decoded: a cached load neither needs it nor waits for it.
def _prepare(data_dir: Path) -> Path:
    with _extra.required():
        from bdjax.data.sources import _cifar_builder

    return _cifar_builder.prepare(data_dir, CLASS_NAMES)


def _read(folder: Path, *, on_disk: bool = False) -> _dataset.Arrays:
    with _extra.required():
        from bdjax.data.sources import _tfds

    return _tfds.read_by_row(folder) if on_disk else _tfds.read_folder(folder)
