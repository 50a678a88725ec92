"""Read a file of weights as data, whoever wrote it: nothing in it is executed.

Arrays stay where they are in the file, which is mapped into memory, until somebody works with them.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from bdjax.checks import InputError
from bdjax.files.failures import blaming_the_path
from bdjax.files.printable import printable
from bdjax.models.foreign import _legacy, _pickled, _safetensors, _wrappers, _zipped
from bdjax.models.foreign._pickled import Refused, Value
from bdjax.models.foreign._wrappers import Found, Plain

_MOST_TEXT = 400  # of a message about a file
_DAMAGE = (ValueError, TypeError, KeyError, IndexError, struct.error, OverflowError)
_OTHERS = {
    b"PK\x05\x06": "is an empty zip archive",
    b"\x89HDF": "is an HDF5 file, as Keras writes",
    b"\x1f\x8b": "is a gzip archive: unpack it first",
    b"BZh": "is a bzip2 archive: unpack it first",
    b"7z\xbc\xaf": "is a 7z archive: unpack it first",
    b"\x93NUMPY": "is a single NumPy array, no file of weights",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: git lfs pull",
    b"<!DOCTYPE": "is a web page: the download went wrong",
    b"<html": "is a web page: the download went wrong",
    b"\x80": "is a bare pickle; write it with torch.save(model.state_dict(), …) or safetensors",
}


@dataclasses.dataclass(frozen=True)
class StateDict:
    """What a file of weights holds.

    Attributes:
      path: of the file.
      format: what it is, such as ``PyTorch zip`` or ``BackdoorBench attack_result (PyTorch zip)``.
      arrays: by name, in the order of the file and in its layout and types; they cannot be written to.
      beside: texts, numbers and lists of them that stood beside the weights: ``model_name``, ``num_classes``,
        ``img_size``, ``clean_data``; ``mean`` and ``std`` of a normalization that was wrapped around the network.
      wrappers: names of entries and prefixes that were taken off, outermost first.
      prefix: what was before each of the names.
      aside: arrays that are of no network, by their whole names: a normalization's, a counter of averaging.
      notes: sentences that a user should see.
    """

    path: Path
    format: str
    arrays: Mapping[str, np.ndarray]
    beside: Mapping[str, Plain]
    wrappers: tuple[str, ...]
    prefix: str
    aside: Mapping[str, np.ndarray]
    notes: tuple[str, ...]


def read(path: str | os.PathLike[str], part: str | None = None) -> StateDict:
    """Read a file of PyTorch's, BackdoorBench's or Lightning's, or a safetensors file.

    Args:
      path: of the file.
      part: the entry with the weights, in a file of several sets; None is the usual one, such as ``state_dict``.

    Raises:
      InputError: no such file, one that is damaged, or one that holds anything but data; the message says which.
    """
    file = Path(path)
    content = _mapped(file)
    try:
        return _read(file, content, part)
    except (*_DAMAGE, RecursionError) as error:
        reason = str(error) if isinstance(error, Refused) else f"is damaged ({error})"
        raise InputError(f"{file} {printable(reason)[:_MOST_TEXT].rstrip('.')}.") from error


def _mapped(file: Path) -> np.ndarray:
    with blaming_the_path(f"{file} cannot be read"):
        found = file.stat()
        if stat.S_ISDIR(found.st_mode):
            raise InputError(f"{file} is a folder; name the file of weights in it.")
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{file} is no ordinary file.")
        if not found.st_size:
            raise InputError(f"{file} is empty: the download or the copy went wrong.")
        return np.asarray(np.memmap(file, np.uint8, "r"))


def _read(file: Path, content: np.ndarray, part: str | None) -> StateDict:
    if content[:4].tobytes() == b"PK\x03\x04":
        value, storages, notes = _zipped.load(file, content)
        return _of_torch(file, "PyTorch zip", value, storages, notes, part)
    if content[: len(_legacy.MAGIC)].tobytes() == _legacy.MAGIC:
        value, storages, notes = _legacy.load(content)
        return _of_torch(file, "PyTorch legacy", value, storages, notes, part)
    if _safetensors.is_one(content):
        arrays, metadata = _safetensors.load(content)
        return _state(file, "safetensors", dict(arrays), dict(metadata), (), [])
    start = content[:30].tobytes().lstrip()
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            raise Refused(what)
    if content.size < len(_legacy.MAGIC):
        raise Refused(f"is cut off, or no file of weights: it has {content.size} bytes")
    raise Refused("is none of the files that are read: PyTorch's and safetensors")


def _of_torch(
    file: Path,
    container: str,
    value: Value,
    storages: Mapping[str, np.ndarray],
    notes: list[str],
    part: str | None,
) -> StateDict:
    found = _wrappers.unwrap(value, part)
    _check_swapped(found.weights.values())
    arrays = {name: _array(array, storages) for name, array in found.weights.items()}
    origin = _origin(value)
    name = f"{origin} ({container})" if origin else container
    return _state(file, name, arrays, found.beside, found.wrappers, notes)


def _state(
    file: Path,
    name: str,
    arrays: dict[str, np.ndarray],
    beside: Mapping[str, Plain],
    wrappers: tuple[str, ...],
    notes: list[str],
) -> StateDict:
    beside, aside = dict(beside), {}
    for statistic, key in _wrappers.normalization(arrays).items():
        aside[key] = arrays.pop(key)
        beside[statistic] = tuple(float(value) for value in aside[key].ravel())
        wrappers += (key,)
    prefixes = _wrappers.prefixes(arrays)
    prefix = "".join(prefixes)
    bare: dict[str, np.ndarray] = {}
    for key, array in arrays.items():
        held = aside if key == _wrappers.OF_AVERAGING and prefix else bare
        held[key if held is aside else key.removeprefix(prefix)] = array
    if not bare:
        raise Refused("holds no arrays")
    notes = [*notes, *_about_types(bare)]
    return StateDict(file, name, bare, beside, wrappers + prefixes, prefix, aside, tuple(notes))


def _check_swapped(arrays: Iterable[Found]) -> None:
    """Refuse a file that names the same numbers so often that the copies in this machine's byte order fill it."""
    swapped = [
        found.nbytes
        for found in arrays
        if isinstance(found, np.ndarray) and not found.dtype.isnative
    ]
    if sum(swapped) > 2 * _pickled.MOST_BYTES:
        raise Refused("is damaged: its pickle has more numbers than it can hold")


def _array(found: Found, storages: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return a tensor as a view of its storage, which was checked to hold it."""
    if isinstance(found, np.ndarray):
        return found.astype(found.dtype.newbyteorder("="), copy=False)
    memory = found.storage
    start, stop = memory.start, memory.start + memory.count
    raw = storages[memory.key][start * memory.dtype.itemsize : stop * memory.dtype.itemsize]
    numbers = raw.view(found.dtype)[found.offset :]
    strides = tuple(step * found.dtype.itemsize for step in found.stride)
    if 0 in found.size:
        return np.zeros(found.size, found.dtype)
    return np.lib.stride_tricks.as_strided(numbers, found.size, strides, writeable=False)


def _origin(value: Value) -> str:
    """Return whose file it is, as its entries say."""
    if not isinstance(value, dict):
        return ""
    if {"model_name", "num_classes", "model"} <= value.keys():
        return f"BackdoorBench {'attack' if 'bd_train' in value else 'defense'}_result"
    return "Lightning checkpoint" if "pytorch-lightning_version" in value else ""


def _about_types(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Say which arrays are of another precision than the networks'."""
    counts: dict[str, int] = {}
    for array in arrays.values():
        kind = array.dtype.name
        if kind in ("float16", "bfloat16", "float64"):
            counts[kind] = counts.get(kind, 0) + 1
    return [
        f"{count} of {len(arrays)} arrays are {kind} and become float32"
        for kind, count in counts.items()
    ]
