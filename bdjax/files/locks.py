"""Locks of folders, which keep the work in each to one process at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import filelock

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; a second one waits until the first is done, or dead.

    Raises:
      OSError: the file system has no locks, or the folder cannot be written.
    """
    with _lock(folder, wait=True):
        yield


@contextlib.contextmanager
def claimed(folders: Iterable[Path]) -> Iterator[Path | None]:
    """Hold all of the folders without waiting and give None; if another process holds one, give that one instead."""
    with contextlib.ExitStack() as held:
        taken = None
        for folder in folders:
            if not held.enter_context(_lock(folder, wait=False)):
                taken = folder
                break
        if taken is not None:
            held.close()  # what is not worked on is not held either
        yield taken


@contextlib.contextmanager
def _lock(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of a folder and give True; give False where another has it and nobody is to wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOCK
    with file.open("a", encoding="utf-8") as opened:  # Windows truncates no file that is locked
        try:
            mine = filelock.lock_descriptor(opened.fileno(), blocking=wait)
        except OSError as error:
            raise OSError(
                error.errno, f"{error.strerror}, so it cannot be locked", str(file)
            ) from error
        yield mine  # the system drops the lock when the process ends, however it ends
