"""Files in the format of MNIST: big-endian sizes, then bytes; compressed by gzip or not."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bdjax.checks import InputError
from bdjax.data.sources import _archives, _cache, _extra, _folders
from bdjax.data.sources._archives import Archive
from bdjax.data.sources._dataset import Arrays

FILES = tuple(
    f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
_LARGEST = 1 << 30  # bytes of one file once it is decompressed


def read(
    data_dir: Path, name: str, folders: Sequence[str], archives: Mapping[str, Archive]
) -> Arrays:
    """Return the splits of a data set in four such files, or that TensorFlow Datasets prepared.

    Args:
      data_dir: where data sets lie.
      name: of the data set, and of its folder.
      folders: others that it may lie in.
      archives: of each of `FILES`, what is downloaded where it is nowhere.

    Raises:
      InputError: a file is missing or damaged; which one.
    """
    if (prepared := _folders.newest_version(data_dir, name)) is not None:
        with _extra.required():
            from bdjax.data.sources import _tfds

        return _cache.cached(prepared, lambda: _tfds.read_folder(prepared))
    paths = [find(data_dir, (name, *folders), file) for file in FILES]
    found = [
        path or _archives.find_or_download(data_dir / name, archives[file], name)
        for path, file in zip(paths, FILES, strict=True)
    ]
    train, train_label, test, test_label = map(_array, found, (3, 1, 3, 1))
    for image, label, path in ((train, train_label, found[0]), (test, test_label, found[2])):
        if len(image) != len(label):
            wrong = f"has {len(image)} images, and there are {len(label)} labels"
            raise InputError(f"{path} {wrong}; replace both files.")
    labels = (label.astype(np.int32) for label in (train_label, test_label))
    first, second = labels
    return Arrays(train[..., None], first, test[..., None], second)


def is_ready(data_dir: Path, name: str, folders: Sequence[str]) -> bool:
    """Whether all files are there."""
    if data_dir != _folders.default():
        _folders.require_folder(data_dir)
    if _folders.newest_version(data_dir, name) is not None:
        return True
    return all(find(data_dir, (name, *folders), file) for file in FILES)


def find(data_dir: Path, folders: Sequence[str], file: str) -> Path | None:
    """Return a file by one of its usual names, in one of these folders, or None."""
    names = (f"{file}-ubyte", f"{file.replace('-idx', '.idx')}-ubyte")
    for folder in folders:
        for inner in ("", "raw", "downloads"):
            for name in (*names, *(f"{name}.gz" for name in names)):
                if (path := data_dir / folder / inner / name).is_file():
                    return path
    return None


def _array(path: Path, dimensions: int) -> np.ndarray:
    content = _content(path)
    header = 4 + 4 * dimensions
    magic, *shape = struct.unpack_from(f">{1 + dimensions}I", content.ljust(header, b"\0"))
    if magic != 0x800 + dimensions:
        wrong = f"is no file of bytes in {dimensions} dimensions (it begins with {magic:#x})"
        raise InputError(f"{path} {wrong}; replace it.")
    if len(content) != header + math.prod(shape):
        wrong = f"has {len(content)} bytes where its header says {header + math.prod(shape)}"
        raise InputError(f"{path} {wrong}; replace it.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged or cut short ({error}); replace it.") from error
    if len(content) > _LARGEST:
        raise InputError(f"{path} has more than {_LARGEST} bytes; replace it.")
    return content
