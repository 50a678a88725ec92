"""The folder of a run: its record, written whole or not at all, and the lock that keeps it to one process."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import itertools
import json
import math
import os
import platform
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import filelock

from bdjax.checks import InputError

try:
    import resource
except ModuleNotFoundError:  # Windows has none
    resource = None

SCHEMA_VERSION = 1
DATA = "data.json"  # which data a run or a victim was begun with
SMOOTHNESS = "smoothness.json"  # beside the record, of the runs whose loss surface was measured
_FINISHED = {"run_id": str, "status": str, "data": {"fingerprint": {"train": str, "test": str, "files?": {str: str}}}}
_RECORD = (_FINISHED, {"run_id": str, "status": str, "reason": str})
_MEASURED = {str: {str: (float, bool, None)}}  # of each kind of images
_SMOOTHNESS = {
    "run?": str,
    "settings?": {str: float},
    "before?": _MEASURED,
    "after?": _MEASURED,
    "curve?": {"settings?": {str: float}, "rows?": [{"epoch": int}]},
}
_DIGEST = "content_sha256"  # of everything else in a JSON file
_DIGITS = 19  # of a whole number, at most
_KINDS = {int: "a whole number", float: "a number", str: "a text", list: "a list", dict: "a mapping", bool: "a bool"}
_PACKAGES = ("bdjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a process that comes after a kill, sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON as `write_text` does, with a digest that `read_json` looks at."""
    content = {key: value for key, value in content.items() if key != _DIGEST}
    write_text(path, json.dumps({**content, _DIGEST: digest(content)}, indent=1, allow_nan=False) + "\n")


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


def read_json(path: Path, shape: Any = dict) -> dict[str, Any] | None:
    """Return the mapping in a JSON file, None if there is no file.

    Args:
      path: of the file. One that `write_json` wrote must be as it was written; one by another hand has no digest.
      shape: as for `misfit`.

    Raises:
      InputError: it holds no JSON, or not what it should.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise damaged(path, error) from error
    if (wrong := misfit(content, dict) or misfit(content, shape)) is not None:
        raise damaged(path, wrong)
    return content


def parse_json(text: str) -> Any:
    """Return what JSON says, less the digest of a mapping that has one.

    Raises:
      ValueError: it is no JSON, the digest differs, a number is not finite or has over 64 bits, it is nested without
        end, or has half a character.
    """
    try:
        content = json.loads(text, parse_constant=_not_finite, parse_float=_finite, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if "\\u" in text:
        json.dumps(content, ensure_ascii=False).encode()  # half of a surrogate pair can be neither printed nor written
    seal = content.pop(_DIGEST, None) if isinstance(content, dict) else None
    if seal is not None and seal != digest(content):
        raise ValueError("its digest differs")
    return content


def digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain values, whatever their order, as a hexadecimal word."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _not_finite(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _finite(word: str) -> float:
    number = float(word)
    return number if math.isfinite(number) else _not_finite(word[:50])


def _whole(word: str) -> int:
    if len(word) > _DIGITS:
        raise ValueError(f"a number has {len(word)} digits")
    return int(word)


def misfit(value: Any, shape: Any, where: str = "it") -> str | None:
    """Say what of a plain value is not of a shape, None where all is.

    A shape is a type (of numbers, ``float`` takes whole ones too); a list of the one shape that all elements have; a
    tuple of shapes, any of which will do, None among them; a mapping of keys to shapes, of which those that end in a
    question mark may be missing and others may be there; or a mapping of ``str`` to the one shape that all have.

    >>> misfit({"form": "loop", "seconds": {"loop": "1"}}, {"form": str, "seconds": {str: float}})
    'seconds.loop must be a number'
    """
    if isinstance(shape, tuple):
        wrong = [misfit(value, one, where) for one in shape]
        return None if None in wrong else wrong[0]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} must be a list"
        return _first(misfit(part, shape[0], f"{where}[{number}]") for number, part in enumerate(value))
    if isinstance(shape, dict):
        return misfit(value, dict, where) or _first(_misfits(value, shape, "" if where == "it" else f"{where}."))
    if shape is None:
        return None if value is None else f"{where} must be null"
    kinds = (int, float) if shape is float else shape
    if isinstance(value, kinds) and (shape is bool or not isinstance(value, bool)):
        return None
    return f"{where} must be {_KINDS[shape]}"


def _misfits(value: Mapping[str, Any], shape: Mapping[Any, Any], prefix: str) -> Iterator[str | None]:
    if str in shape:
        shape = dict.fromkeys(value, shape[str])
    for key, part in shape.items():
        name = key.removesuffix("?")
        if name in value:
            yield misfit(value[name], part, prefix + name)
        elif name == key:
            yield f"{prefix}{name} is missing"


def _first(found: Iterable[str | None]) -> str | None:
    return next((wrong for wrong in found if wrong is not None), None)


def read_arrays(path: Path) -> dict[str, Any] | None:
    """Return the arrays in an .npz file, whose checksums must agree; None if there is no file.

    Raises:
      InputError: it is damaged, or holds what is no array.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(path) as file:
            contents = {name.removesuffix(".npy"): io.BytesIO(file.read(name)) for name in file.namelist()}
        return {name: np.lib.format.read_array(content) for name, content in contents.items()}
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile, zlib and NumPy raise whatever the damage leads them to
        raise damaged(path, error) from error


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record in a run's folder, of whatever status, None if there is none yet.

    Raises:
      InputError: it is damaged, or of another run than the folder is named after.
    """
    path = folder / "record.json"
    record = read_json(path, _RECORD)
    if record is not None and record["run_id"] != folder.name:
        raise damaged(path, f"it is the record of {record['run_id']}")
    return record


def read_smoothness(folder: Path, run_id: str | None = None) -> dict[str, Any] | None:
    """Return what was measured of the loss surface of the run in a folder, None where nothing was.

    Args:
      folder: of the run.
      run_id: of the run; None for the folder's name.

    Raises:
      InputError: the file is damaged, or of another run.
    """
    path = folder / SMOOTHNESS
    content = read_json(path, _SMOOTHNESS)
    own = run_id or folder.name
    if content and content.get("run", own) != own:
        raise damaged(path, f"it is of the run {content['run']}")
    return content


def set_aside(folder: Path, out: Path, name: str) -> None:
    """Move what is in a folder below ``out`` to the same place below ``out/name``, or ``name-2`` and so on.

    Its lock stays, as does, to the last, what says that there is something to be moved. So a call that was killed is
    gone on with by the next one, at the same place: one that has nothing of the same name, nor yet what is moved last.
    """
    place = folder.relative_to(out)
    entries = [entry for entry in folder.iterdir() if entry.name != ".lock"]
    number = itertools.count(2)
    target = out / name / place
    while (target / DATA).exists() or any((target / entry.name).exists() for entry in entries):
        target = out / f"{name}-{next(number)}" / place
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(entries, key=lambda entry: (entry.name == DATA, entry.suffix == ".json")):
        entry.rename(target / entry.name)


def damaged(path: Path, reason: object) -> InputError:
    """Return the exception of a file that is not what bdjax wrote."""
    return InputError(f"{path} is damaged ({str(reason)[:200]}); delete it to make it again.")


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
