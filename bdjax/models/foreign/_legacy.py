"""PyTorch's format before version 1.6: pickles in a row, then each storage's length and raw numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bdjax.models.foreign import _pickled, _stand_ins
from bdjax.models.foreign._pickled import Refused, Value
from bdjax.models.foreign._stand_ins import Storage

MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
_PROTOCOL = 1001
_COUNT = 8  # bytes of a storage's length


def load(content: np.ndarray) -> tuple[Value, Mapping[str, np.ndarray], list[str]]:
    """Return what the pickle says, the storages' bytes by key, and what the reader should know.

    Raises:
      Refused: it is damaged, or of another protocol or byte order.
    """
    # What comes before the numbers is all that the machine may see
    head = content[: _pickled.MOST_BYTES].tobytes()
    whole: dict[str, Storage] = {}

    def persistent(saved: Value) -> Storage:
        found = _stand_ins.storage(saved)
        size = saved[4] if isinstance(saved, tuple) else 0
        known = whole.setdefault(found.key, Storage(found.dtype, found.key, int(size)))
        if (known.dtype, known.count) != (found.dtype, size):
            raise Refused(f"is damaged: storage {found.key[:50]} has two sizes")
        return found

    position = len(MAGIC)
    values: list[Value] = []
    for _ in range(4):
        value, position = _pickled.load(head, _stand_ins.find, persistent, position)
        values.append(value)
    protocol, system, saved, keys = values
    if protocol != _PROTOCOL or not isinstance(system, dict):
        # Lists in lists, each twice in the next, are short in a file and without end as text
        shown = f"{protocol}" if isinstance(protocol, int) else "that is no number"
        raise Refused(f"is of a PyTorch protocol {shown[:20]}; {_PROTOCOL} is read")
    if system.get("little_endian") is not True:
        raise Refused("was written on a big-endian machine; save it again on another")
    return saved, _storages(content, position, keys, whole), []


def _storages(
    content: np.ndarray, position: int, keys: Value, whole: Mapping[str, Storage]
) -> dict[str, np.ndarray]:
    """Return the bytes of each storage, which lie in the order of the keys."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Refused("is damaged: it has no list of its storages")
    if len(set(keys)) != len(keys) or not set(whole) <= set(keys):
        raise Refused("is damaged: its list of storages is not that of its tensors")
    storages: dict[str, np.ndarray] = {}
    for key in keys:
        if key not in whole:
            raise Refused(f"is damaged: no tensor says what storage {str(key)[:50]} holds")
        raw = content[position : position + _COUNT]
        position += _COUNT
        size = whole[key].count * whole[key].dtype.itemsize
        if raw.size < _COUNT or position + size > content.size:
            raise Refused("is cut off: its numbers end too early")
        if int.from_bytes(raw.tobytes(), "little") != whole[key].count:
            raise Refused(f"is damaged: storage {str(key)[:50]} has two sizes")
        storages[key] = content[position : position + size]
        position += size
    if position != content.size:
        raise Refused(f"is damaged: {content.size - position} bytes follow its last number")
    return storages
