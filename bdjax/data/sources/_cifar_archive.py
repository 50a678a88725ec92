"""The official binary archive of CIFAR-10: finding, checking and reading it."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Container
from pathlib import Path, PurePosixPath

import numpy as np

from bdjax.checks import InputError
from bdjax.data.sources import _archives
from bdjax.data.sources._dataset import Arrays

NAME = "cifar-10-binary.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{NAME}"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"

_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = "test_batch.bin"
_LARGEST = 256 << 20  # bytes of a member
_RECORD = 1 + 3 * 32 * 32  # one byte of label, then the red, green and blue planes, row by row


def find_or_download(data_dir: Path) -> Path:
    """Return the archive in ``data_dir`` or ``data_dir/downloads``; download it there if it is in neither.

    Raises:
      InputError: there is none and it cannot be downloaded.
    """
    archive = _archives.Archive(NAME, URL, MD5, 170)
    return _archives.find_or_download(data_dir, archive, "cifar10")


def read_archive(archive: Path) -> Arrays:
    """Return the images [n, 32, 32, 3] and labels of the archive; nothing is unpacked to disk.

    A file that was put there by hand is judged by its structure, so that a smaller archive in the same format works:
    the six members, whole records, labels from 0 to 9.

    Raises:
      InputError: the archive is damaged, cut short or not of this format; what is wrong is named.
    """
    content = members(archive, (*_TRAIN, _TEST))
    if missing := [name for name in (*_TRAIN, _TEST) if name not in content]:
        why = "it is not the binary version of CIFAR-10"
        raise InputError(f"archive {archive} has no {missing[0]}; {why}.")
    train = [_records(archive, name, content[name]) for name in _TRAIN]
    images, labels = zip(*train, strict=True)
    test = _records(archive, _TEST, content[_TEST])
    return Arrays(np.concatenate(images), np.concatenate(labels), *test)


def members(archive: Path, wanted: Container[str]) -> dict[str, bytes]:
    """Return the content of those members of a ``.tar.gz`` that are called so, in whatever folder; none is unpacked.

    Raises:
      InputError: the archive is damaged or cut short.
    """
    try:
        return _members(archive, wanted)
    except InputError:
        raise
    # Damage is answered with OSError, EOFError, TarError, zlib.error, ValueError, OverflowError, …
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        wrong = f"is damaged or cut short ({reason})"
        raise InputError(f"archive {archive} {wrong}; take it away or replace it.") from error


def _members(archive: Path, wanted: Container[str]) -> dict[str, bytes]:
    content = {}
    with gzip.open(archive) as stream:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                # A link is no content, and may lead nowhere or to itself
                if name in wanted and member.isreg() and (file := tar.extractfile(member)):
                    if member.size > _LARGEST:
                        raise InputError(f"{name} in archive {archive} has {member.size} bytes.")
                    content[name] = file.read()
        # Tar stops before the end of the file, where gzip keeps the checksum of it all
        while stream.read(1 << 20):
            pass
    return content


def _records(archive: Path, name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    if not content or len(content) % _RECORD:
        there = f"{len(content)} bytes, which are not whole records of {_RECORD} bytes"
        raise InputError(f"{name} in archive {archive} has {there}.")
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    label = records[:, 0].astype(np.int32)
    if label.max() > 9:
        wrong = f"has the label {label.max()}"
        raise InputError(f"{name} in archive {archive} {wrong}; labels are 0 to 9.")
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), label
