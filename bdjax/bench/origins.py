"""Where the operations of compiled programs come from, read from the copies of the programs that a trace holds.

A trace (``*.xplane.pb``) has each program as a serialized HloProto in its plane of metadata, which
`jax.profiler.ProfileData` does not show. So this reads the wire format of protocol buffers, and of the schemas (XSpace
in ``xplane.proto``, HloModuleProto in ``hlo.proto`` of XLA) the few fields whose numbers stand below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

_METADATA = b"/host:metadata"
_PLANES, _PLANE_NAME, _EVENT_METADATA = 1, 2, 4  # of XSpace, and of XPlane
# Of an entry of a map, of XEventMetadata, and of XStat
_VALUE, _EVENT_NAME, _EVENT_STATS, _BYTES = 2, 2, 5, 6
# Of HloProto, HloModuleProto, HloComputationProto
_MODULE, _COMPUTATIONS, _FRAMES, _INSTRUCTIONS = 1, 3, 17, 2
_NAME, _OPCODE, _OP_METADATA = 1, 2, 7  # of HloInstructionProto
_OP_NAME, _FRAME = 2, 15  # of OpMetadata
_FILES, _LOCATIONS, _STACK = 1, 3, 4  # of StackFrameIndexProto, whose numbers count from 1
_FILE, _LINE = 1, 3  # of a location
_LOCATION, _PARENT = 1, 2  # of a frame

_SHORT = "the message is cut short"
_Field: TypeAlias = "int | memoryview"


class Origin(NamedTuple):
    """Of an operation: what XLA calls its kind, JAX's path to it, and the line that asked for it; empty if unknown."""

    opcode: str
    path: str
    line: str


def read(trace: Path) -> dict[str, dict[str, Origin]]:
    """Return the operations' origins by their names, for each program in a trace.

    A program is known by name and number, such as ``jit_f(6)``. What cannot be read is left out.
    """
    found: dict[str, dict[str, Origin]] = {}
    for number, plane in _fields(memoryview(trace.read_bytes())):
        if number != _PLANES or not isinstance(plane, memoryview):
            continue
        if _first(plane, _PLANE_NAME) != _METADATA:
            continue
        for entry in _all(plane, _EVENT_METADATA):
            event = _first(entry, _VALUE)
            if not isinstance(event, memoryview):
                continue
            for stat in _all(event, _EVENT_STATS):
                program = _first(stat, _BYTES)
                if isinstance(program, memoryview):
                    found[_text(_first(event, _EVENT_NAME))] = _of_program(program)
    return found


def _of_program(program: memoryview) -> dict[str, Origin]:
    module = _first(program, _MODULE)
    if not isinstance(module, memoryview):
        return {}
    lines = _lines(_first(module, _FRAMES))
    found = {}
    for computation in _all(module, _COMPUTATIONS):
        for instruction in _all(computation, _INSTRUCTIONS):
            metadata = _first(instruction, _OP_METADATA)
            path, line = "", ""
            if isinstance(metadata, memoryview):
                path = _text(_first(metadata, _OP_NAME))
                line = lines.get(_first(metadata, _FRAME), "")
            name = _text(_first(instruction, _NAME))
            found[name] = Origin(_text(_first(instruction, _OPCODE)), path, line)
    return found


def _lines(frames: _Field | None) -> Mapping[object, str]:
    """Return the line of each stack frame: the innermost that is no installed library's, if there is one."""
    if not isinstance(frames, memoryview):
        return {}
    files = list(map(_text, _all(frames, _FILES)))
    locations = [(_first(each, _FILE), _first(each, _LINE)) for each in _all(frames, _LOCATIONS)]
    stack = [(_first(each, _LOCATION), _first(each, _PARENT)) for each in _all(frames, _STACK)]

    def line(number: _Field | None) -> str:
        innermost = ""
        while isinstance(number, int) and 0 < number <= len(stack):
            location, number = stack[number - 1]
            if not (isinstance(location, int) and 0 < location <= len(locations)):
                break
            file, at = locations[location - 1]
            name = files[file - 1] if isinstance(file, int) and 0 < file <= len(files) else ""
            innermost = innermost or f"{_shortened(name)}:{at}"
            if "site-packages" not in name:
                return f"{_shortened(name)}:{at}"
        return innermost

    return {number: line(number) for number in range(1, len(stack) + 1)}


def _shortened(file: str) -> str:
    """Return a path from its package on, or its last part."""
    for package in ("bdjax", "flax", "optax", "jax"):
        _, found, rest = file.rpartition(f"/{package}/")
        if found:
            return f"{package}/{rest}"
    return file.rpartition("/")[2]


# --- The wire format of protocol buffers -----------------------------------------------------------------------------


def _fields(message: memoryview) -> Iterator[tuple[int, _Field]]:
    """Yield the number of each field and its value: a whole number, or the bytes of anything else.

    Raises:
      ValueError: it is no message.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"field {number} is of the unknown kind {kind}")
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            size, at = _varint(message, at)
        if at + size > len(message):
            raise ValueError(_SHORT)
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message):
            raise ValueError(_SHORT)
        byte, at = message[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _all(message: memoryview, number: int) -> Iterator[memoryview]:
    for found, value in _fields(message):
        if found == number and isinstance(value, memoryview):
            yield value


def _first(message: memoryview, number: int) -> _Field | None:
    for found, value in _fields(message):
        if found == number:
            return value
    return None


def _text(value: _Field | None) -> str:
    return bytes(value).decode("utf-8", "replace") if isinstance(value, memoryview) else ""
