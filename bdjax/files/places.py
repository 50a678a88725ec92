"""Where something is to be written: refused before the work, not after it, where it could not be."""

from __future__ import annotations

import os
from pathlib import Path

from bdjax.checks import InputError
from bdjax.files.failures import IMPOSSIBLE


def check_folder(name: str, place: str | os.PathLike[str], below: Path | None = None) -> Path:
    """Return the path of a folder that is there or could be made.

    Args:
      name: of the argument, for the message.
      place: of the folder.
      below: the longest path that is to be made in it.

    Raises:
      InputError: it has no name, leads nowhere, or something that is no folder is in its way.
    """
    if not os.fspath(place):
        raise InputError(f"{name} must name a folder, got ''.")
    folder = Path(place)
    _check_path(name, folder if below is None else folder / below, os.fspath(place))
    for above in (folder, *folder.parents):
        if above.is_dir():
            break
        if above.exists():
            what = "a file" if above.is_file() else "none"
            raise InputError(f"{name} must be a folder; {above} is {what}.")
    return folder


def check_file(name: str, place: str | os.PathLike[str]) -> Path:
    """Return the path of a file that is there, to be replaced, or could be made.

    Raises:
      InputError: it has no name, leads nowhere, is a folder or a device, or its folder cannot be.
    """
    file = Path(place)
    if not file.name:
        raise InputError(f"{name} must be a file, got {os.fspath(place)!r}.")
    _check_path(name, file, os.fspath(place))
    if file.exists() and not file.is_file():
        what = "a folder" if file.is_dir() else "none"
        raise InputError(f"{name} must be a file; {file} is {what}.")
    check_folder(f"the folder of {name}", file.parent)
    return file


def _check_path(name: str, path: Path, given: str) -> None:
    try:
        os.stat(path)
    except OSError as error:
        if error.errno in IMPOSSIBLE:
            raise InputError(
                f"{name} must be a shorter path, or one that leads somewhere; got {given!r}."
            ) from error
