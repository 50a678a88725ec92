"""Files of weights made by hand, byte by byte: right ones, damaged ones and hostile ones."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
ORDERED = b"ccollections\nOrderedDict\n)R"
FLOATS = "FloatStorage"


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word.encode())) + word.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    key: str,
    count: int,
    size: Sequence[int],
    stride: Sequence[int],
    offset: int = 0,
    kind: str = FLOATS,
    legacy: bool = False,
) -> bytes:
    """Return the opcodes of a view of a storage, as torch.save writes them."""
    last = b"N" if legacy else b""
    place = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    storage = place + number(count) + last + b"tQ"
    view = number(offset) + numbers(size) + numbers(stride) + b"\x89" + ORDERED
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tR"


def state(entries: Mapping[str, bytes]) -> bytes:
    """Return the pickle of an ordered dict of names and opcodes."""
    items = b"".join(text(name) + value for name, value in entries.items())
    return b"\x80\x02" + ORDERED + b"(" + items + b"u."


def contiguous(array: np.ndarray) -> tuple[int, ...]:
    return tuple(step // array.itemsize for step in np.ascontiguousarray(array).strides)


def zipped(pickle: bytes, members: Mapping[str, bytes], **options: object) -> bytes:
    """Return an archive as torch.save makes it, with these members beside the pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a/data.pkl", pickle)
        for name, content in {"a/byteorder": b"little", **members, "a/version": b"3\n"}.items():
            archive.writestr(name, content, **options)  # type: ignore[arg-type]
    return file.getvalue()


def one(opcodes: bytes, data: bytes = bytes(24)) -> bytes:
    """Return an archive of one array, ``weight``, and one storage of six numbers."""
    return zipped(state({"weight": opcodes}), {"a/data/0": data})


def legacy_of(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return float arrays in PyTorch's format before version 1.6."""
    entries: dict[str, bytes] = {}
    data = b""
    for index, (name, array) in enumerate(arrays.items()):
        shape = array.shape
        entries[name] = tensor(str(index), array.size, shape, contiguous(array), legacy=True)
        data += struct.pack("<q", array.size) + array.tobytes()
    keys = b"](" + b"".join(text(str(index)) for index in range(len(arrays))) + b"e."
    return legacy_head(state(entries)) + b"\x80\x02" + keys + data


def legacy_head(pickle: bytes) -> bytes:
    system = b"\x80\x02}" + text("little_endian") + b"\x88s."
    return LEGACY + b"\x80\x02M\xe9\x03." + system + pickle


def safetensors(header: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header.encode())) + header.encode() + data


def calls(name: str, way: str) -> bytes:
    """Return the opcodes of a call of ``module name`` with one text, in one of the ways that pickle has."""
    module, word = name.rsplit(".", 1)
    named = f"c{module}\n{word}\n".encode()
    argument = text("echo executed > executed")
    ways = {
        "reduce": named + b"(" + argument + b"tR",
        "new": named + b"(" + argument + b"t\x81",
        "keywords": named + b"(" + argument + b"t}\x92",
        "object": b"(" + named + argument + b"o",
        "instance": b"(" + argument + f"i{module}\n{word}\n".encode(),
        "stack": text(module) + text(word) + b"\x93(" + argument + b"tR",
        "state": named + b")\x81}" + text("__class__") + argument + b"sb",
    }
    return ways[way]


WAYS = ("reduce", "new", "keywords", "object", "instance", "stack", "state")
