"""Decoded arrays kept on disk beside their source, so that a large data set is decoded once.

A cache is a folder of ``.npy`` files and a manifest that holds their SHA-256 and what the source's files looked like
(size and time of change). The arrays' names contain their checksums and every file is put in place by a rename, the
manifest last; so processes that load at once, or are killed, leave either a whole cache or none.

A folder with a cache can stand for its source: it needs none of the libraries that decode, nor the files that they
read. Whoever carries arrays to a machine without them writes, where they are to lie, ::

    cifar10/3.0.2/dataset_info.json                        {"name": "cifar10", "version": "3.0.2"} is enough
    cifar10/3.0.2/bdjax-cache/<field>-<sha256[:16]>.npy    of each field of `Arrays`, NumPy's format 1.0
    cifar10/3.0.2/bdjax-cache/manifest.json                {"format": 1,
                                                            "source": {"dataset_info.json": [bytes, mtime_ns]},
                                                            "arrays": {field: {"dtype", "shape", "sha256"}}}

where ``sha256`` is that of the whole ``.npy`` and ``source`` has every file beside the cache as it is there: a copy of
such a folder has to keep the times of change (``cp -a``).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NotRequired, TypeAlias, TypedDict, cast

import numpy as np

from bdjax.data.sources import _folders
from bdjax.data.sources._dataset import Arrays

FORMAT = (
    1  # of the manifest and of what the arrays mean; a cache of another format is written again
)
MANIFEST = "manifest.json"
BESIDE = "bdjax-cache"
_OPTIONAL = tuple(Arrays._field_defaults)


class _Entry(TypedDict):
    """Of an array in a manifest."""

    dtype: str
    shape: list[int]
    sha256: str


class _Manifest(TypedDict):
    """What is read may lack anything."""

    format: NotRequired[int]
    source: NotRequired[Identity]
    arrays: NotRequired[dict[str, _Entry]]


Identity: TypeAlias = dict[str, list[int]]  # of a source: size and time of change of each file


class _DamagedError(Exception):
    """A cache that says it is whole and is not."""


def cached(
    source: Path,
    read: Callable[[], Arrays],
    *,
    identity: Identity | None = None,
    part: str = "",
) -> Arrays:
    """Return what ``read()`` makes of the folder ``source``, from the cache where there is one.

    The cache lies in ``<source>/bdjax-cache``, or in the user's cache folder where the source is read-only. It counts
    only while every file of the source has the size and time of change that the manifest recorded. A cache that was
    altered or cut short is named in a warning and made anew from the source.

    Args:
      source: the folder; it is made where it is not there yet.
      read: makes the arrays.
      identity: of the files that ``read`` reads; those that lie in ``source`` itself unless it is given.
      part: of the cache's folder, where one source is read in several ways.
    """
    identity = _identity(source) if identity is None else identity
    places = [source / BESIDE / part]
    if (of_user := user_folder(source)) is not None:
        places.append(of_user / part)
    for place in places:
        try:
            arrays = _load(place, identity)
        except _DamagedError as damage:
            # Whoever called load()
            warnings.warn(f"{damage}; it is made anew from {source}.", stacklevel=4)
            continue
        if arrays is not None:
            return arrays
    arrays = read()
    _store(places[0] if _may_write(places[0]) else places[-1], identity, arrays)
    return arrays


def user_folder(source: Path) -> Path | None:
    """Return the place of the cache of a read-only source, in ``XDG_CACHE_HOME`` or ``~/.cache``, if there is one."""
    home = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    if home.parts[:1] == ("~",):  # a container's user may have none
        return None
    resolved = source.resolve()
    name = hashlib.sha256(str(resolved).encode()).hexdigest()[:16]
    return home / "bdjax" / "data" / f"{resolved.parent.name}-{name}"


def _identity(source: Path) -> Identity:
    identity: Identity = {}
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            seen = path.stat()
            identity[path.name] = [seen.st_size, seen.st_mtime_ns]
    return identity


def _may_write(place: Path) -> bool:
    nearest = next(folder for folder in (place, *place.parents) if folder.exists())
    return _folders.is_writable(nearest)


def _file_name(field: str, checksum: str) -> str:
    return f"{field}-{checksum[:16]}.npy"


def _load(place: Path, identity: Identity) -> Arrays | None:
    """Return the arrays, or None where there is no cache of this source.

    Raises:
      _DamagedError: it is not whole.
    """
    manifest = _manifest(place)
    if manifest is None or manifest.get("format") != FORMAT or manifest.get("source") != identity:
        return None
    try:
        known = manifest["arrays"]  # type: ignore[typeddict-item]
        fields = [field for field in Arrays._fields if field in known or field not in _OPTIONAL]
        # SHA-256 and reading both release the interpreter lock.
        with ThreadPoolExecutor(len(fields)) as pool:
            read = pool.map(
                _load_array, [place] * len(fields), fields, map(known.__getitem__, fields)
            )
            return Arrays(**dict(zip(fields, read, strict=True)))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _DamagedError(f"cache manifest {place / MANIFEST} is damaged") from error


def _manifest(place: Path) -> _Manifest | None:
    try:
        manifest = json.loads((place / MANIFEST).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _DamagedError(f"cache manifest {place / MANIFEST} is damaged") from error
    if not isinstance(manifest, dict):
        raise _DamagedError(f"cache manifest {place / MANIFEST} is damaged")
    return cast(_Manifest, manifest)


def _load_array(place: Path, field: str, entry: _Entry) -> np.ndarray:
    path = place / _file_name(field, entry["sha256"])
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise _DamagedError(f"cache file {path} cannot be read ({error.strerror})") from error
    # The whole file is checked before any of it is interpreted, the header included.
    if hashlib.sha256(content.data).hexdigest() != entry["sha256"]:
        raise _DamagedError(f"cache file {path} was altered or cut short (its checksum differs)")
    header = io.BytesIO(content[:1024].tobytes())
    np.lib.format.read_magic(header)
    shape, _, dtype = np.lib.format.read_array_header_1_0(header)
    return content[header.tell() :].view(dtype).reshape(shape)


def _store(place: Path, identity: Identity, arrays: Arrays) -> None:
    """Write the cache; where that is not possible, say so and go on: it only saves time."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        entries: dict[str, _Entry] = {}
        for field, array in arrays._asdict().items():
            if array is not None:
                entries[field] = _store_array(place, field, array)
        with _put_in_place(place / MANIFEST) as temporary:
            manifest = {"format": FORMAT, "source": identity, "arrays": entries}
            temporary.write_text(json.dumps(manifest, indent=1), "utf-8")
        _sweep(place, {_file_name(field, entry["sha256"]) for field, entry in entries.items()})
    except OSError as error:
        failed = f"the decoded images could not be cached in {place} ({error.strerror})"
        warnings.warn(f"{failed}; they are decoded again each time.", stacklevel=5)


def _sweep(place: Path, current: set[str]) -> None:
    """Take away the arrays of a former source, and what a killed process left an hour ago or earlier."""
    for path in place.glob("*.npy"):
        if path.name not in current:
            path.unlink(missing_ok=True)
    for path in place.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink()


def _store_array(place: Path, field: str, array: np.ndarray) -> _Entry:
    with _temporary(place / field) as temporary:
        with temporary.open("wb") as file:
            np.save(file, np.ascontiguousarray(array), allow_pickle=False)
        with temporary.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(temporary, place / _file_name(field, checksum))
    return {"dtype": array.dtype.str, "shape": list(array.shape), "sha256": checksum}


@contextlib.contextmanager
def _put_in_place(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces ``path`` in one step when the block ends well."""
    with _temporary(path) as temporary:
        yield temporary
        os.replace(temporary, path)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
