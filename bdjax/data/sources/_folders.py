"""Where data sets lie on disk. Nothing here opens a data set."""

from __future__ import annotations

import os
import re
from collections.abc import Container
from pathlib import Path

from bdjax.checks import InputError

PREPARED = "tfds:"  # what stands before the name of any set that TensorFlow Datasets prepared


def default() -> Path:
    """Return the folder that TensorFlow Datasets uses when it is told nothing, without importing it."""
    return Path(os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))


def resolve(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the argument, else the environment variable ``BDJAX_DATA_DIR``, else the default; ``~`` is expanded."""
    if data_dir is not None and not os.fspath(data_dir):
        raise InputError("data_dir must name a folder, got ''.")
    named = data_dir if data_dir is not None else os.environ.get("BDJAX_DATA_DIR") or None
    # Which takes an unknown ~user as it is
    return default() if named is None else Path(os.path.expanduser(named))


def locate(
    name: str, data_dir: str | os.PathLike[str] | None, known: Container[str]
) -> tuple[str, str | None]:
    """Return a data set's own name and its ``data_dir`` where the name is the path of a folder; others as they are.

    A path has a separator in it or begins with ``~``, or is ``.`` or ``..``; a relative one starts at ``data_dir``, or
    else where the process is. The name is the last part, so that it does not matter where the data lie; ``./`` stays
    before the name of a data set that bdjax knows.

    Raises:
      InputError: a path without a name, such as ``/``.

    >>> from bdjax.data.sources import _folders
    >>> _folders.locate("/data/shapes/", None, ["digits"]), _folders.locate("shapes", None, ["digits"])
    (('shapes', '/data'), ('shapes', None))
    >>> _folders.locate("~/digits", "/data", ["digits"])[0], _folders.locate("./digits", "/data", ["digits"])
    ('./digits', ('./digits', '/data'))
    """
    base = None if data_dir is None else os.fspath(data_dir)
    if not is_path(name) or name.startswith(PREPARED):
        return name, base
    start = os.path.expanduser(base or ".")
    path = Path(os.path.abspath(os.path.join(start, os.path.expanduser(name))))
    if not path.name:
        raise InputError(f"data.name must name a folder, got {name!r}.")
    return f"./{path.name}" if path.name in known else path.name, str(path.parent)


def is_path(name: str) -> bool:
    """Return whether a data set's name is the path of a folder."""
    if not isinstance(name, str):
        return False
    return (
        any(mark in name for mark in {"/", os.sep}) or name.startswith("~") or name in (".", "..")
    )


def require_folder(folder: Path) -> None:
    """Refuse a folder that is not there, lest a misspelled path be filled with a download."""
    if folder.parts[:1] == ("~",):
        remedy = "name the folder of the data sets (data_dir, BDJAX_DATA_DIR)"
        raise InputError(f"there is no home for {folder}; {remedy}.")
    if folder == default() and not folder.exists():
        folder.mkdir(parents=True)
    if not folder.is_dir():
        remedy = "create it, or name the one that holds your data sets"
        raise InputError(f"data_dir {folder} is not a folder; {remedy}.")


def newest_version(data_dir: Path, name: str) -> Path | None:
    """Return the folder ``<data_dir>/<name>/<version>`` of the highest version that was prepared, or None."""
    newest: tuple[tuple[int, ...], Path] | None = None
    for folder in (data_dir / name).glob("*.*.*"):
        if not re.fullmatch(r"\d+\.\d+\.\d+", folder.name):
            continue
        version = tuple(map(int, folder.name.split(".")))
        if (folder / "dataset_info.json").is_file() and (newest is None or version > newest[0]):
            newest = version, folder
    return None if newest is None else newest[1]


def class_names(folder: Path, count: int) -> tuple[str, ...]:
    """Return the names of the labels in a prepared folder, or their numbers where it does not say."""
    path = folder / "label.labels.txt"
    names = path.read_text("utf-8", "replace").split("\n") if path.is_file() else []
    found = tuple(name.strip() for name in names if name.strip())
    return found if len(found) == count else tuple(map(str, range(count)))


def is_writable(folder: Path) -> bool:
    """Tell whether files may be put into a folder.

    One without any write permission is left alone, by root too.
    """
    if not folder.is_dir() or not folder.stat().st_mode & 0o222:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
