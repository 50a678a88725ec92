"""Archives of data sets: found where data lie, or downloaded; what is downloaded must have the published checksum."""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import urllib.request
import uuid
from pathlib import Path
from typing import NamedTuple

from bdjax.checks import InputError

_BLOCK = 1 << 20
_BY_LENGTH = {32: "md5", 64: "sha256"}  # hexadecimal digits of a checksum


class Archive(NamedTuple):
    """A file that somebody publishes.

    Attributes:
      name: of the file.
      url: of the file.
      checksum: MD5 or SHA-256, hexadecimal.
      megabytes: its size, to be told before it is downloaded.
    """

    name: str
    url: str
    checksum: str
    megabytes: int


def find(data_dir: Path, name: str, folder: str = "") -> Path | None:
    """Return a file of that name in ``data_dir``, in a folder of it or in its ``downloads``, or None.

    Args:
      data_dir: where data lie.
      name: of the file.
      folder: of the data set, in ``data_dir``.
    """
    places = (data_dir, data_dir / folder, data_dir / "downloads")
    return next((place / name for place in places if (place / name).is_file()), None)


def find_or_download(data_dir: Path, archive: Archive, dataset: str) -> Path:
    """Return the archive as `find` does, downloaded into ``data_dir/downloads`` if it is nowhere.

    Args:
      data_dir: where data lie.
      archive: which.
      dataset: what it is of.

    Raises:
      InputError: there is none, and it cannot be downloaded or is not the published one.
    """
    found = find(data_dir, archive.name, dataset)
    return found if found is not None else _download(data_dir, archive, dataset)


def _download(data_dir: Path, archive: Archive, dataset: str) -> Path:
    target = data_dir / "downloads" / archive.name
    partial = target.with_name(f"{archive.name}.{uuid.uuid4().hex}.part")
    told = f"bdjax: downloading {archive.url} ({archive.megabytes} MB) to {target.parent}"
    print(told, file=sys.stderr, flush=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        checksum = _fetch(archive, partial)
        if checksum != archive.checksum:
            wrong = f"is not the official archive ({_kind(archive)} {checksum})"
            raise InputError(f"the download of {archive.url} {wrong}; try again later.")
        os.replace(partial, target)
    except (OSError, http.client.HTTPException) as error:
        failed = f"{dataset} is not in {data_dir} and could not be downloaded ({error})"
        other = "name the folder that holds it (data_dir or BDJAX_DATA_DIR)"
        put = f"put {archive.name} from {archive.url} into {data_dir}"
        raise InputError(f"{failed}; {put}, or {other}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _fetch(archive: Archive, target: Path) -> str:
    """Download a file and return its checksum; a terminal is told how far it is."""
    digest = hashlib.new(_kind(archive), usedforsecurity=False)
    with urllib.request.urlopen(archive.url, timeout=30) as response, target.open("wb") as file:
        whole, done = int(response.headers.get("Content-Length") or 0), 0
        while block := response.read(_BLOCK):
            digest.update(block)
            file.write(block)
            done += len(block)
            _tell(archive.name, done, whole)
    return digest.hexdigest()


def _tell(name: str, done: int, whole: int) -> None:
    if sys.stderr.isatty():
        share = f"{100 * done // whole} %" if whole else f"{done >> 20} MB"
        end = "\n" if done == whole else ""
        print(f"\rbdjax: {name}: {share}", end=end, file=sys.stderr, flush=True)


def _kind(archive: Archive) -> str:
    return _BY_LENGTH[len(archive.checksum)]
