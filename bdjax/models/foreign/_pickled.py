"""What a pickle says, as plain values: a machine of its own for the opcodes, which calls nothing.

Python's unpickler is a program that runs what the file says. This one knows the opcodes that make plain values. A name
in the file (an opcode GLOBAL) becomes what the caller's table has for it, or the file is refused; nothing is imported,
and no attribute of anything is set. Numbers, sizes and the stack are bounded by the file's own length.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol, TypeAlias, cast, no_type_check

Value: TypeAlias = object  # of a pickle: a plain value, or what stands for another

MOST_BYTES = 64 * 2**20  # of one pickle: BackdoorBench's lists of 100,000 images take 15 MiB
_MOST_OPCODES = 6_000_000  # those lists take 2.5 million; each may make an object of 64 bytes
_MOST_ON_THE_STACK = 100_000  # PyTorch and Python append a thousand at a time
_MOST_HANDED = 2 * MOST_BYTES  # to all calls, each of which may copy what it is given
_OF_TUPLE, _OF_LIST = 8, 100  # bytes of an item in a copy; what is a list may become a dict


class Refused(ValueError):
    """Why a file is not read: the rest of a sentence that begins with its name."""


class StandIn(Protocol):
    """What a name in a pickle stands for."""

    def call(self, arguments: tuple[Value, ...]) -> Value:
        """Return what a call of it stands for."""
        ...


class Stateful(Protocol):
    """What a call stands for, if the pickle says more of it afterwards."""

    def set_state(self, state: Value) -> None:
        """Take in the state."""
        ...


Find: TypeAlias = Callable[[str], Value]
Persistent: TypeAlias = Callable[[Value], Value]


def load(content: bytes, find: Find, persistent: Persistent, start: int = 0) -> tuple[Value, int]:
    """Return the value of the pickle that begins at ``start``, and where it ends.

    Args:
      content: of a file, or of a part.
      find: gives the stand-in for a dotted name, or raises `Refused`.
      persistent: gives what a persistent id stands for: in PyTorch's files, a storage.
      start: of the pickle in the content.

    Raises:
      Refused: it is cut off or damaged, or has what no file of weights needs.
    """
    machine = _Machine(content, start, find, persistent)
    try:
        return machine.run(), machine.position
    except (IndexError, struct.error) as error:
        raise Refused("is cut off or damaged: its pickle ends too early") from error
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"is damaged: its pickle makes no sense ({str(error)[:100]})") from error


@no_type_check  # at run time, as tests do it: it would take a hundred times as long as an opcode
class _Machine:
    """A stack, the stacks below each mark, and what was put aside to be used again."""

    def __init__(self, content: bytes, start: int, find: Find, persistent: Persistent) -> None:
        self.content = content
        self.position = start
        self.find = find
        self.persistent = persistent
        self.stack: list[Value] = []
        self.marked: list[list[Value]] = []
        self.memo: dict[int, Value] = {}
        self.handed = 0  # bytes

    def run(self) -> Value:
        content, table = self.content, _OPCODES
        for _ in range(_MOST_OPCODES):
            opcode = content[self.position]
            self.position += 1
            if opcode == _STOP:
                return self.stack.pop()
            if opcode not in table:
                raise Refused(f"has the opcode {bytes([opcode])!r}, which torch.save never writes")
            table[opcode](self)
            if len(self.stack) > _MOST_ON_THE_STACK or len(self.marked) > _MOST_ON_THE_STACK:
                break
        raise Refused("has a pickle that is larger than that of any network")

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.content):
            raise Refused("is cut off or damaged: its pickle ends too early")
        taken = self.content[self.position : end]
        self.position = end
        return taken

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def floating(self) -> float:
        return struct.unpack(">d", self.take(8))[0]

    def long(self) -> int:
        return int.from_bytes(self.take(self.number("<B")), "little", signed=True)

    def name(self) -> str:
        return f"{self.line()}.{self.line()}"

    def line(self) -> str:
        end = self.content.find(b"\n", self.position, self.position + 1000)
        if end < 0:
            raise Refused("is damaged: a name in its pickle has no end")
        return self.take(end + 1 - self.position)[:-1].decode()

    def push(self, value: Value) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Value]:
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def remember(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def append(self, items: list[Value]) -> None:
        # An object of a class that stands for itself alone keeps nothing
        if isinstance(target := self.stack[-1], list):
            target.extend(items)

    def set_items(self, items: list[Value]) -> None:
        if len(items) % 2:
            raise IndexError
        if isinstance(target := self.stack[-1], dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                # No other key names weights. Numbers can be chosen so that all have one hash, which takes the square of
                # their count, and the hash of a tuple of tuples has no bound
                if isinstance(key, str):
                    target[key] = value

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def make_dict(self) -> None:
        items = self.since_mark()
        self.push({})
        self.set_items(items)

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("is damaged: its pickle has a name that is no text")
        self.push(self.find(f"{module}.{name}"))

    def call(self, function: Value, arguments: Value) -> None:
        if not isinstance(arguments, tuple) or not hasattr(function, "call"):
            raise Refused("is damaged: its pickle calls what is no function")
        self.charge(arguments)
        self.push(cast(StandIn, function).call(arguments))

    def charge(self, arguments: tuple[Value, ...], *, inner: bool = False) -> None:
        """Count what a call may copy or look through, as the same value can be handed to any number of calls."""
        self.handed += _OF_TUPLE * len(arguments)
        for value in arguments if self.handed <= _MOST_HANDED else ():
            if isinstance(value, str | bytes):
                self.handed += len(value)
            elif isinstance(value, list):
                self.handed += _OF_LIST * len(value)
            elif isinstance(value, tuple) and not inner:
                self.charge(value, inner=True)
        if self.handed > _MOST_HANDED:
            raise Refused("has a pickle that makes more than that of any network")

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.call(function, arguments)

    def new_with_keywords(self) -> None:
        self.stack.pop()
        self.reduce()

    def old_object(self) -> None:
        function, *arguments = self.since_mark()
        self.call(function, tuple(arguments))

    def instance(self) -> None:
        function = self.find(self.name())
        self.call(function, tuple(self.since_mark()))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        # An ordered dict has a state of its own, which says nothing of the weights
        if hasattr(target, "set_state"):
            cast(Stateful, target).set_state(state)


_Opcode: TypeAlias = Callable[[_Machine], object]


def _bytes(form: str) -> _Opcode:
    return lambda machine: machine.push(machine.take(machine.number(form)))


def _text(form: str, coding: str = "utf-8", errors: str = "surrogatepass") -> _Opcode:
    return lambda machine: machine.push(machine.take(machine.number(form)).decode(coding, errors))


def _number(form: str) -> _Opcode:
    return lambda machine: machine.push(machine.number(form))


def _constant(value: Value) -> _Opcode:
    return lambda machine: machine.push(value)


def _put(form: str) -> _Opcode:
    return lambda machine: machine.remember(machine.number(form))


def _get(form: str) -> _Opcode:
    return lambda machine: machine.push(machine.memo[machine.number(form)])


_STOP = ord(".")
_OPCODES: dict[int, _Opcode] = {
    0x80: lambda machine: machine.take(1),  # PROTO
    0x95: lambda machine: machine.take(8),  # FRAME
    ord("("): _Machine.mark,
    ord("0"): lambda machine: machine.stack.pop(),
    ord("1"): _Machine.since_mark,
    ord("2"): lambda machine: machine.push(machine.stack[-1]),
    ord("N"): _constant(None),
    0x88: _constant(True),
    0x89: _constant(False),
    ord("J"): _number("<i"),
    ord("K"): _number("<B"),
    ord("M"): _number("<H"),
    0x8A: lambda machine: machine.push(machine.long()),
    ord("G"): lambda machine: machine.push(machine.floating()),
    ord("T"): _text("<I", "latin-1", "strict"),  # a string of Python 2: text, wherever it can be
    ord("U"): _text("<B", "latin-1", "strict"),
    ord("X"): _text("<I"),
    0x8C: _text("<B"),
    0x8D: _text("<Q"),
    ord("B"): _bytes("<I"),
    ord("C"): _bytes("<B"),
    0x8E: _bytes("<Q"),
    0x96: _bytes("<Q"),  # a bytearray
    ord(")"): _constant(()),
    ord("t"): lambda machine: machine.push(tuple(machine.since_mark())),
    0x85: lambda machine: machine.tuple_of(1),
    0x86: lambda machine: machine.tuple_of(2),
    0x87: lambda machine: machine.tuple_of(3),
    ord("]"): lambda machine: machine.push([]),
    ord("l"): lambda machine: machine.push(machine.since_mark()),
    ord("a"): lambda machine: machine.append([machine.stack.pop()]),
    ord("e"): lambda machine: machine.append(machine.since_mark()),
    ord("}"): lambda machine: machine.push({}),
    ord("d"): _Machine.make_dict,
    ord("s"): _Machine.set_item,
    ord("u"): lambda machine: machine.set_items(machine.since_mark()),
    0x8F: lambda machine: machine.push([]),  # a set, as a list
    0x90: lambda machine: machine.append(machine.since_mark()),
    0x91: lambda machine: machine.push(machine.since_mark()),
    ord("c"): lambda machine: machine.push(machine.find(machine.name())),
    0x93: _Machine.stack_global,
    ord("R"): _Machine.reduce,
    0x81: _Machine.reduce,  # NEWOBJ: a class is called as a function is
    0x92: _Machine.new_with_keywords,
    ord("o"): _Machine.old_object,
    ord("i"): _Machine.instance,
    ord("b"): _Machine.build,
    ord("q"): _put("<B"),
    ord("r"): _put("<I"),
    0x94: lambda machine: machine.remember(len(machine.memo)),
    ord("h"): _get("<B"),
    ord("j"): _get("<I"),
    ord("Q"): lambda machine: machine.push(machine.persistent(machine.stack.pop())),
}
