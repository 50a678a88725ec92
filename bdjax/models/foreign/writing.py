"""Write a state dict so that PyTorch's users can load it: its zip format, made without PyTorch, and safetensors.

Files are written whole or not at all.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from bdjax.checks import InputError
from bdjax.files import atomic
from bdjax.files.failures import blaming_the_path
from bdjax.models.foreign import _safetensors

_STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
_ALIGNMENT = 64  # bytes to which PyTorch aligns numbers, so that they can be mapped into memory
_PADDING = struct.Struct("<2sH")  # of a member's header: "FB" and a length
_LOCAL_HEADER = 30  # bytes before a member's name
_ROOT = "archive"
_MOST = 2**31 - 1  # of one array, as the archive has sizes of 32 bits


def write_safetensors(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays, and texts by name, as a safetensors file.

    Raises:
      InputError: an array of a type that PyTorch has not, or a place that cannot be written to.
    """
    checked = _checked(arrays)

    def write(file: BinaryIO) -> None:
        file.write(_safetensors.header(checked, metadata or {}))
        for array in checked.values():
            file.write(array.reshape(-1).view(np.uint8).data)

    _write(Path(path), write)


def write_torch(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    beside: Mapping[str, object] | None = None,
) -> None:
    """Write arrays as ``torch.save`` writes a state dict; ``torch.load(…, weights_only=True)`` takes the file.

    Args:
      path: of the file.
      arrays: by name.
      beside: None writes the bare state dict. Otherwise a dict of these texts, numbers and lists of them, in which the
        state dict is the entry ``model``: BackdoorBench's form with ``model_name`` and ``num_classes``.

    Raises:
      InputError: an array of a type that PyTorch has not, an entry that is no plain value, or a place that cannot be
        written to.
    """
    checked = _checked(arrays)
    state = _ordered(checked)
    if beside is None:
        pickle = b"\x80\x02" + state + b"."
    else:
        entries = b"".join(_value(name) + _value(value) for name, value in beside.items())
        pickle = b"\x80\x02}(" + entries + _value("model") + state + b"u."

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            _member(archive, "data.pkl", pickle)
            _member(archive, "byteorder", b"little")
            for index, array in enumerate(checked.values()):
                _member(archive, f"data/{index}", array.reshape(-1).view(np.uint8).data)
            _member(archive, "version", b"3\n")

    _write(Path(path), write)


def write_backdoorbench(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    model_name: str,
    num_classes: int,
    **beside: object,
) -> None:
    """Write BackdoorBench's form, ``{"model_name", "num_classes", "model": state dict}``, and further plain entries.

    Its vision transformers stand behind a module that resizes the images, so that their names begin with ``1.``.

    Raises:
      InputError: as of `write_torch`.
    """
    prefix = "1." if model_name.startswith("vit_") else ""
    named = {prefix + name: array for name, array in arrays.items()}
    entries = {"model_name": model_name, "num_classes": num_classes, **beside}
    write_torch(path, named, entries)


def _write(path: Path, write: atomic.Write) -> None:
    with blaming_the_path(f"{path} cannot be written"):
        atomic.write_with(path, write)


def _checked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.dtype.name not in _STORAGES:
            raise InputError(f"arrays must be of PyTorch's types; {name} is {array.dtype.name}.")
        if array.nbytes > _MOST:
            raise InputError(f"arrays must have at most 2 GiB each; {name} has {array.nbytes}.")
        made[name] = np.ascontiguousarray(array).reshape(array.shape)
    if not made:
        raise InputError("arrays must hold at least one array.")
    return made


def _member(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    entry = zipfile.ZipInfo(f"{_ROOT}/{name}")
    archived = cast(BinaryIO, archive.fp)
    end = archived.tell() + _LOCAL_HEADER + len(entry.filename) + _PADDING.size
    entry.extra = _PADDING.pack(b"FB", -end % _ALIGNMENT) + b"Z" * (-end % _ALIGNMENT)
    archive.writestr(entry, cast(bytes, content))


def _ordered(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the opcodes of an OrderedDict of tensors."""
    items: list[bytes] = []
    for index, (name, array) in enumerate(arrays.items()):
        items.append(_value(name) + _tensor(str(index), array))
    return b"ccollections\nOrderedDict\n)R(" + b"".join(items) + b"u"


def _tensor(key: str, array: np.ndarray) -> bytes:
    """Return the opcodes of a call of torch._utils._rebuild_tensor_v2, as PyTorch writes it."""
    kind = f"ctorch\n{_STORAGES[array.dtype.name]}\n".encode()
    place = b"(" + _value("storage") + kind + _value(key) + _value("cpu")
    storage = place + _value(array.size) + b"tQ"
    stride = tuple(step // array.itemsize for step in array.strides)
    view = (
        _value(0)
        + _tuple(array.shape)
        + _tuple(stride)
        + b"\x89"
        + b"ccollections\nOrderedDict\n)R"
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tR"


def _tuple(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(_value(value) for value in values) + b"t"


def _value(value: object) -> bytes:
    """Return the opcodes of a plain value.

    Raises:
      InputError: it is none.
    """
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return b"\x8a\x08" + struct.pack("<q", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, list | tuple):
        return b"](" + b"".join(_value(item) for item in value) + b"e"
    raise InputError(f"beside must hold texts, numbers and lists of them; got {value!r:.80}.")
