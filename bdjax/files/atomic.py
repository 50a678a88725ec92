"""Files that are written whole or not at all, and read only as they were written.

A reader, or a process that comes after a kill, sees the old content or the new, never a part of either.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import sys
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeAlias

from bdjax.checks import InputError
from bdjax.files.shapes import misfit

Plain: TypeAlias = dict[str, Any]  # what a JSON file holds
Write: TypeAlias = Callable[[BinaryIO], None]
_DIGEST = "content_sha256"  # of everything else in a JSON file
_DIGITS = 19  # of a whole number, at most


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a process that comes after a kill, sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON as `write_text` does, with a digest that `read_json` looks at."""
    content = {key: value for key, value in content.items() if key != _DIGEST}
    write_text(
        path, json.dumps({**content, _DIGEST: digest(content)}, indent=1, allow_nan=False) + "\n"
    )


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


def is_left_over(name: str, names: Collection[str]) -> bool:
    """Say whether a file's name is that of one of these on its way, which a kill has left.

    >>> is_left_over(".model.pt.4711", ["model.pt"]), is_left_over(".model.pt.mine", ["model.pt"])
    (True, False)
    """
    stem, _, process = name.removeprefix(".").rpartition(".")
    return name.startswith(".") and process.isdecimal() and stem in names


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
        content = json.loads(
            text, parse_constant=_not_finite, parse_float=_finite, parse_int=_whole
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if "\\u" in text:
        # Half of a surrogate pair can be neither printed nor written
        json.dumps(content, ensure_ascii=False).encode()
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


def read_arrays(path: Path) -> dict[str, Any] | None:
    """Return the arrays in an .npz file, whose checksums must agree; None if there is no file.

    Raises:
      InputError: it is damaged, or holds what is no array.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(path) as file:
            contents = {
                name.removesuffix(".npy"): io.BytesIO(file.read(name)) for name in file.namelist()
            }
        return {name: np.lib.format.read_array(content) for name, content in contents.items()}
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile, zlib and NumPy raise whatever the damage leads them to
        raise damaged(path, error) from error


def damaged(path: Path, reason: object) -> InputError:
    """Return the exception of a file that is not what bdjax wrote."""
    return InputError(f"{path} is damaged ({str(reason)[:200]}); delete it to make it again.")


def write_with(path: Path, write: Write) -> None:
    """Have a function write a file of many bytes, piece by piece, as `write_text` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as temporary, temporary.open("wb") as file:
        write(file)


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
