"""The folder of a run: its record, written whole or not at all, and the lock that keeps it to one process."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock

from bdjax.checks import InputError

try:
    import resource
except ModuleNotFoundError:  # Windows has none
    resource = None

SCHEMA_VERSION = 1
SMOOTHNESS = "smoothness.json"  # beside the record, of the runs whose loss surface was measured
_PACKAGES = ("bdjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a process that comes after a kill, sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any) -> None:
    """Write JSON as `write_text` does."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays as a compressed .npz as `write_text` does."""
    import numpy as np

    with _replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes, such as a picture's, as `write_text` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as temporary:
        temporary.write_bytes(content)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the mapping in a JSON file, None if there is no file.

    Raises:
      InputError: it holds no JSON, or no mapping.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); delete it to make it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged (it holds no mapping); delete it to make it again.")
    return content


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
    file = folder / ".lock"
    with file.open("a", encoding="utf-8") as opened:  # Windows truncates no file that is locked
        try:
            mine = filelock.lock_descriptor(opened.fileno(), blocking=wait)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}, so it cannot be locked", str(file)) from error
        yield mine  # the system drops the lock when the process ends, however it ends


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def device(count: int) -> dict[str, Any]:
    """Return what the run computes on, and the settings outside the config that decide how it rounds."""
    import jax

    first = jax.local_devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": count,
        "hosts": jax.process_count(),
        "matmul_precision": jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def memory() -> dict[str, int | None]:
    """Return the most bytes that this process has held so far, on a host and on a device that tell."""
    import jax

    unit = 1 if sys.platform == "darwin" else 1024
    statistics = jax.local_devices()[0].memory_stats() or {}
    return {
        "host_peak_bytes": resource and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "device_peak_bytes": statistics.get("peak_bytes_in_use"),
    }


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("r+b") as file:  # Windows syncs no file that is open for reading alone
            os.fsync(file.fileno())
        _replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _replace(temporary: Path, path: Path) -> None:
    for seconds in (0.05, 0.2, 1.0):
        try:
            temporary.replace(path)
            return
        except PermissionError:
            if sys.platform != "win32":
                raise
            time.sleep(seconds)  # Windows replaces no file that somebody is reading
    temporary.replace(path)
