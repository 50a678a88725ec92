"""The safetensors format: the length of a header, the header in JSON, and the arrays one after another.

Arrays are little-endian in C order, named with their type, shape and place; there are no holes and no overlap.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from bdjax.models.foreign._pickled import Refused

MOST_BYTES = (
    16 * 2**20
)  # of the header: 10,000 arrays take 1 MiB, and what JSON makes of it twenty times as much
_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"
_ALIGNMENT = 8
_MOST_AXES = 32
_TYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("<i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("<u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def is_one(content: np.ndarray) -> bool:
    """Return whether a file begins as this format does."""
    return content[_LENGTH.size : _LENGTH.size + 1].tobytes() == b"{"


def load(content: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays by name in the order of the header, none of them copied, and the metadata.

    Raises:
      Refused: the header is none, or does not fit the file.
    """
    header, start = _header(content)
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(map(_is_text, metadata.values())):
        raise Refused("is damaged: its metadata are no texts by name")
    arrays: dict[str, np.ndarray] = {}
    places: list[tuple[int, int]] = []
    for key, entry in header.items():
        dtype, shape, begin, end = _entry(key, entry)
        places.append((begin, end))
        if start + end > content.size:
            raise Refused(f"is cut off: {key[:80]} lies beyond its end")
        arrays[key] = content[start + begin : start + end].view(dtype).reshape(shape)
    _check_places(places, content.size - start)
    return arrays, metadata


def _header(content: np.ndarray) -> tuple[dict[str, object], int]:
    (length,) = _LENGTH.unpack(content[: _LENGTH.size].tobytes())
    start = _LENGTH.size + length
    if length > MOST_BYTES or start > content.size:
        raise Refused(f"is cut off or no safetensors file: its header would have {length} bytes")
    try:
        pairs = json.loads(content[_LENGTH.size : start].tobytes(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Refused(f"is damaged: its header is no JSON ({str(error)[:80]})") from error
    if not isinstance(pairs, dict):
        raise Refused("is damaged: its header is no mapping")
    return pairs, start


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name is there twice")
    return made


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _entry(key: str, entry: object) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Return an array's type, shape, first byte and the one after its last."""
    if not isinstance(entry, dict):
        raise Refused(f"is damaged: {key[:80]} has no description")
    kind, shape, place = entry.get("dtype"), _counts(entry, "shape"), _counts(entry, "data_offsets")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise Refused(f"holds {key[:80]} of type {str(kind)[:20]}, which is not read")
    if shape is None or len(shape) > _MOST_AXES:
        raise Refused(f"is damaged: the shape of {key[:80]} is no list of whole numbers")
    if place is None or len(place) != 2:
        raise Refused(f"is damaged: {key[:80]} has no place")
    begin, end = place
    if end - begin != math.prod(shape) * _TYPES[kind].itemsize:
        raise Refused(f"is damaged: {key[:80]} of shape {shape} has {end - begin} bytes")
    return _TYPES[kind], shape, begin, end


def _counts(entry: Mapping[str, object], name: str) -> tuple[int, ...] | None:
    """Return a list of whole numbers from 0 on; None if it is none."""
    values = entry.get(name)
    if not isinstance(values, list):
        return None
    counts = tuple(value for value in values if type(value) is int and 0 <= value < 2**48)
    return counts if len(counts) == len(values) else None


def _check_places(places: list[tuple[int, int]], length: int) -> None:
    position = 0
    for begin, end in sorted(places):
        if begin != position:
            raise Refused("is damaged: its arrays overlap, or leave holes")
        position = end
    if position != length:
        raise Refused(f"is damaged: {length - position} bytes follow its last array")


def header(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Return what a file begins with; the arrays follow in the same order."""
    described: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    position = 0
    for key, array in arrays.items():
        end = position + array.nbytes
        described[key] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return _LENGTH.pack(len(text)) + text
