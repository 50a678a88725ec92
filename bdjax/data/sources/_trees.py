"""Files of a folder or members of an archive, read alike. Nothing is ever unpacked, so a name can lead nowhere."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from bdjax.checks import InputError
from bdjax.data.sources import _cache

LARGEST = 64 << 20  # bytes of one file: no image and no list of labels has more


class Tree(Protocol):
    """Some files by their names, which have slashes between their parts."""

    @property
    def place(self) -> Path:
        """The folder, or the archive."""
        ...

    def names(self) -> list[str]: ...

    def read(self, name: str) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class Folder:
    """The files of a folder that are not hidden."""

    place: Path

    def names(self) -> list[str]:
        """Return them in an order that no file system decides."""
        return sorted(name for name, _ in _files(self.place))

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
          InputError: it cannot be read.
        """
        try:
            return (self.place / name).read_bytes()
        except OSError as error:
            raise InputError(f"{self.place / name} cannot be read ({error.strerror}).") from error


@dataclasses.dataclass(frozen=True)
class File:
    """One file."""

    place: Path

    def names(self) -> list[str]:
        """Return its name."""
        return [self.place.name]

    def read(self, name: str) -> bytes:
        """Return its content.

        Raises:
          InputError: it cannot be read.
        """
        return Folder(self.place.parent).read(name)


class Zip:
    """The members of a ZIP archive.

    Raises:
      InputError: it is damaged.
    """

    def __init__(self, place: Path):
        self.place = place
        try:
            self._file = zipfile.ZipFile(place)
        # As below; a damaged table of contents is answered with IndexError, too
        except Exception as error:
            raise _damaged(place, error) from error

    def names(self) -> list[str]:
        """Return the members that are files, sorted."""
        return sorted(one.filename for one in self._file.infolist() if not one.is_dir())

    def read(self, name: str) -> bytes:
        """Return the content of a member, whose checksum is right.

        Raises:
          InputError: it is damaged, or larger than any image.
        """
        try:
            if (size := self._file.getinfo(name).file_size) > LARGEST:
                raise InputError(f"{name} in archive {self.place} claims to have {size} bytes.")
            return self._file.read(name)
        except InputError:
            raise
        # zipfile answers damage with BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, …
        except Exception as error:
            raise _damaged(self.place, f"{name}: {error}") from error


def identity(trees: Iterable[Tree]) -> dict[str, list[int]]:
    """Return what shows, without reading them, that the files of trees are as they were, as `_cache` keeps it."""
    count = total = 0
    digest = hashlib.sha256()
    for tree in trees:
        for name, seen in sorted(_files(tree.place)):
            count, total = count + 1, total + seen.st_size
            known = f"{tree.place.name}/{name}\0{seen.st_size}\0{seen.st_mtime_ns}\0"
            digest.update(known.encode("utf-8", "surrogateescape"))
    return {"files": [count, total, int.from_bytes(digest.digest()[:7])]}


def _files(place: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files below a folder that are not hidden, by their names there; or a file by no name.

    Raises:
      InputError: one of them cannot be looked at, as a link that leads nowhere; or a link leads to a folder around it.
    """
    if place.is_file():
        yield "", _seen(os.fspath(place))
    else:
        yield from _below(place, "", frozenset())


def _below(
    place: Path, above: str, around: frozenset[tuple[int, int]]
) -> Iterator[tuple[str, os.stat_result]]:
    folder = os.path.join(place, above)
    own = _seen(folder)
    if (own.st_dev, own.st_ino) in around:
        raise InputError(f"{folder[:-1]} is a link to a folder that it lies in; take it away.")
    around |= {(own.st_dev, own.st_ino)}
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}).") from error
    for name in names:
        if name.startswith(".") or name == _cache.BESIDE:
            continue
        seen = _seen(os.path.join(folder, name))
        if stat.S_ISDIR(seen.st_mode):
            yield from _below(place, f"{above}{name}/", around)
        else:
            yield f"{above}{name}", seen


def _seen(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        what = "is a link that leads nowhere" if os.path.islink(path) else "cannot be read"
        raise InputError(f"{path} {what} ({error.strerror}).") from error


def _damaged(place: Path, error: object) -> InputError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    wrong = f"is damaged or cut short ({reason})"
    return InputError(f"archive {place} {wrong}; take it away or replace it.")
