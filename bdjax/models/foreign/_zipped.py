"""PyTorch's zip format: an uncompressed archive of one pickle, and one member of raw numbers for each storage."""

from __future__ import annotations

import functools
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bdjax.models.foreign import _pickled, _stand_ins
from bdjax.models.foreign._pickled import Refused, Value
from bdjax.models.foreign._stand_ins import Storage

_LOCAL = struct.Struct("<4s5H3I2H")  # the header before a member's content
_MOST_MEMBERS = 200_000
_MOST_TABLE = (
    20 * 2**20
)  # bytes of the table of contents, of which each entry takes ten times as much in memory
_END, _LOCATOR, _LONGER_END = 22, 20, 56  # bytes of the records at the end of an archive
_NO_TABLE = "is cut off or damaged: its table of contents, at its end, is missing or damaged"


class Archive:
    """The members of an archive by name below its root, without a copy of any."""

    def __init__(self, path: Path, content: np.ndarray) -> None:
        self._content = content
        self._members = _members(path, content)
        roots = [name for name in self._members if name.count("/") == 1]
        pickles = [name for name in roots if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Refused(_no_pickle(self._members))
        self._root = pickles[0].removesuffix("data.pkl")
        if f"{self._root}constants.pkl" in self._members:
            remedy = "save its weights alone: torch.save(torch.jit.load(…).state_dict(), …)"
            raise Refused(f"is a TorchScript program, which is not run here; {remedy}")

    def member(self, name: str) -> np.ndarray | None:
        """Return the bytes of a member, None if there is none."""
        found = self._members.get(self._root + name)
        return None if found is None else _bytes_of(self._content, found)

    def has_checksums(self) -> bool:
        """Return whether the checksums were written: PyTorch can leave them out, of all members at once."""
        for name in ("data.pkl", "version", ".data/serialization_id", "byteorder"):
            found = self._members.get(self._root + name)
            if found is not None and zlib.crc32(_bytes_of(self._content, found).data) == found.CRC:
                return True
        return False

    def check(self, name: str) -> None:
        """Refuse a member that is not as it was written."""
        found = self._members[self._root + name]
        if zlib.crc32(_bytes_of(self._content, found).data) != found.CRC:
            raise Refused(f"is damaged: the checksum of {name} in it differs")


def load(path: Path, content: np.ndarray) -> tuple[Value, Mapping[str, np.ndarray], list[str]]:
    """Return what the pickle says, the storages' bytes by key, and what the reader should know.

    Raises:
      Refused: no such archive, or one that is damaged, compressed or larger than it is.
    """
    archive = Archive(path, content)
    order = archive.member("byteorder")
    if order is not None and order.tobytes().strip() != b"little":
        raise Refused("was written on a big-endian machine; save it again on another")
    raw = archive.member("data.pkl")
    if raw is None or raw.size > _pickled.MOST_BYTES:
        raise Refused("has a list of contents that is larger than that of any network")
    checked = archive.has_checksums()
    if checked:
        archive.check("data.pkl")
    storages: dict[str, np.ndarray] = {}
    persistent = functools.partial(_storage, archive, storages, checked)
    value, _ = _pickled.load(raw.tobytes(), _stand_ins.find, persistent)
    notes = [] if checked else ["it has no checksums, so damage to its numbers cannot be seen"]
    return value, storages, notes


def _storage(
    archive: Archive, storages: dict[str, np.ndarray], checked: bool, saved: Value
) -> Storage:
    """Find the member of a storage when the pickle first speaks of it, and see that it has the size."""
    found = _stand_ins.storage(saved)
    if found.key not in storages:
        raw = archive.member(f"data/{found.key}")
        if raw is None:
            raise Refused(f"is damaged: it lacks data/{found.key[:50]}")
        if checked:
            archive.check(f"data/{found.key}")
        storages[found.key] = raw
    if storages[found.key].size != found.count * found.dtype.itemsize:
        size, wanted = storages[found.key].size, found.count * found.dtype.itemsize
        raise Refused(
            f"is damaged: data/{found.key[:50]} has {size} bytes, {wanted} would be right"
        )
    return found


def _members(path: Path, content: np.ndarray) -> dict[str, zipfile.ZipInfo]:
    """Return the archive's entries by name; each lies in the file as it is, and all together fit in it."""
    _check_table(content)
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
    # zipfile answers damage with BadZipFile, ValueError, struct.error, NotImplementedError, IndexError, …
    except Exception as error:
        raise Refused(_NO_TABLE) from error
    if len(entries) > _MOST_MEMBERS:
        raise Refused(f"has {len(entries)} parts, more than any network")
    members = {entry.filename: entry for entry in entries}
    if len(members) != len(entries):
        raise Refused("is damaged: two parts of the archive have the same name")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise Refused("is a compressed or encrypted archive, which torch.save never writes")
        if entry.file_size != entry.compress_size:
            raise Refused(f"is damaged: {entry.filename[:50]} in it has two sizes")
    if sum(entry.file_size for entry in entries) > content.size:
        raise Refused("is damaged: its parts are larger than the file")
    return members


def _check_table(content: np.ndarray) -> None:
    """Refuse a table of contents that is too large to be read at all.

    Its size is looked up just where `zipfile` does: in the last record of the file, as torch.save writes no comment
    after it, or in the longer one that then lies right before.
    """
    end = content[-_END:].tobytes()
    if not end.startswith(b"PK\x05\x06") or end[-2:] != bytes(2):
        raise Refused(_NO_TABLE)
    (size,) = struct.unpack_from("<I", end, 12)
    locator = content[-_END - _LOCATOR : -_END].tobytes()
    if locator.startswith(b"PK\x06\x07"):
        place = content.size - _END - _LOCATOR - _LONGER_END
        record = content[max(place, 0) :][:_LONGER_END].tobytes()
        if struct.unpack_from("<Q", locator, 8) != (place,) or record[:4] != b"PK\x06\x06":
            raise Refused(_NO_TABLE)
        (size,) = struct.unpack_from("<Q", record, 40)
    if size > _MOST_TABLE:
        raise Refused("is damaged: its table of contents is larger than that of any network")


def _bytes_of(content: np.ndarray, entry: zipfile.ZipInfo) -> np.ndarray:
    start = entry.header_offset
    header = content[start : start + _LOCAL.size].tobytes()
    if len(header) < _LOCAL.size or start < 0:
        raise Refused(f"is cut off or damaged: {entry.filename[:50]} lies beyond its end")
    mark, *_, name, extra = _LOCAL.unpack(header)
    begin = start + _LOCAL.size + name + extra
    if mark != b"PK\x03\x04" or begin + entry.file_size > content.size:
        raise Refused(f"is damaged: {entry.filename[:50]} is not where the archive says")
    return content[begin : begin + entry.file_size]


def _no_pickle(names: Mapping[str, zipfile.ZipInfo]) -> str:
    if any(name.endswith(".npy") for name in names):
        return "is an .npz archive of arrays, no file of weights"
    if any("model.weights.h5" in name for name in names):
        return "is a Keras archive; PyTorch's and safetensors files are read"
    first = ", ".join(sorted(names)[:3])[:200] or "nothing"
    return f"is a zip archive without one data.pkl, so not what torch.save writes; it holds {first}"
