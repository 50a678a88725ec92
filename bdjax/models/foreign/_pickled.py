"""What a pickle says, as plain values: a machine of its own for the opcodes, which calls nothing.

Python's unpickler is a program that runs what the file says. This one knows the opcodes that make plain values. A name
in the file (an opcode GLOBAL) becomes what the caller's table has for it, or the file is refused; nothing is imported,
and no attribute of anything is set. Numbers, sizes and the stack are bounded by the file's own length.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol, TypeAlias, cast

Value: TypeAlias = object  # of a pickle: a plain value, or what stands for another

MOST_BYTES = 64 * 2**20  # of one pickle: BackdoorBench's lists of 100,000 images take 15 MiB
_MOST_OPCODES = 10_000_000
_MOST_ON_THE_STACK = 100_000  # PyTorch and Python append a thousand at a time
_SCALARS = (str, int, float, bytes, type(None))


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


Find: TypeAlias = Callable[[str], StandIn]
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
    except (TypeError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise Refused(f"is damaged: its pickle makes no sense ({str(error)[:100]})") from error


class _Machine:
    def __init__(self, content: bytes, start: int, find: Find, persistent: Persistent) -> None:
        self.content = content
        self.position = start
        self.find = find
        self.persistent = persistent
        self.stack: list[Value] = []
        self.marked: list[list[Value]] = []  # the stacks below each mark
        self.memo: dict[int, Value] = {}

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

    def line(self) -> str:
        end = self.content.find(b"\n", self.position, self.position + 1000)
        if end < 0:
            raise Refused("is damaged: a name in its pickle has no end")
        return self.take(end + 1 - self.position)[:-1].decode()

    def since_mark(self) -> list[Value]:
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def push(self, value: Value) -> None:
        self.stack.append(value)

    def call(self, function: Value, arguments: Value) -> None:
        if not isinstance(arguments, tuple) or not hasattr(function, "call"):
            raise Refused("is damaged: its pickle calls what is no function")
        self.push(cast(StandIn, function).call(arguments))

    def set_items(self, target: Value, items: list[Value]) -> None:
        # An object of a class that stands for itself alone keeps nothing
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                # No file of weights has other keys, and the hash of a tuple of tuples has no bound
                if isinstance(key, _SCALARS):
                    target[key] = value

    def append(self, target: Value, items: list[Value]) -> None:
        if isinstance(target, list):
            target.extend(items)


def _bytes(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.take(machine.number(form)))


def _text(form: str) -> Callable[[_Machine], None]:
    def push(machine: _Machine) -> None:
        machine.push(machine.take(machine.number(form)).decode("utf-8", "surrogatepass"))

    return push


def _latin(form: str) -> Callable[[_Machine], None]:
    """Read a string of Python 2, which is bytes or text: text wherever it can be."""
    return lambda machine: machine.push(machine.take(machine.number(form)).decode("latin-1"))


def _number(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.number(form))


def _constant(value: Value) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(value)


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    def push(machine: _Machine) -> None:
        if len(machine.stack) < count:
            raise IndexError
        machine.stack[-count:] = [tuple(machine.stack[-count:])]

    return push


def _put(form: str) -> Callable[[_Machine], None]:
    def put(machine: _Machine) -> None:
        machine.memo[machine.number(form)] = machine.stack[-1]

    return put


def _get(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.memo[machine.number(form)])


def _memoize(machine: _Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _mark(machine: _Machine) -> None:
    machine.marked.append(machine.stack)
    machine.stack = []


def _append(machine: _Machine) -> None:
    item = machine.stack.pop()
    machine.append(machine.stack[-1], [item])


def _appends(machine: _Machine) -> None:
    items = machine.since_mark()
    machine.append(machine.stack[-1], items)


def _set_item(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items(machine.stack[-1], [key, value])


def _set_items(machine: _Machine) -> None:
    items = machine.since_mark()
    if len(items) % 2:
        raise IndexError
    machine.set_items(machine.stack[-1], items)


def _dict(machine: _Machine) -> None:
    items = machine.since_mark()
    machine.push({})
    machine.set_items(machine.stack[-1], items[: len(items) // 2 * 2])


def _long(machine: _Machine) -> None:
    machine.push(int.from_bytes(machine.take(machine.number("<B")), "little", signed=True))


def _global(machine: _Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.push(machine.find(f"{module}.{name}"))


def _stack_global(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not isinstance(module, str) or not isinstance(name, str):
        raise Refused("is damaged: its pickle has a name that is no text")
    machine.push(machine.find(f"{module}.{name}"))


def _reduce(machine: _Machine) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    machine.call(function, arguments)


def _new_object_with_keywords(machine: _Machine) -> None:
    machine.stack.pop()
    _reduce(machine)


def _old_object(machine: _Machine) -> None:
    function, *arguments = machine.since_mark()
    machine.call(function, tuple(arguments))


def _instance(machine: _Machine) -> None:
    _global(machine)
    function = machine.stack.pop()
    machine.call(function, tuple(machine.since_mark()))


def _build(machine: _Machine) -> None:
    state, target = machine.stack.pop(), machine.stack[-1]
    # An ordered dict has a state of its own, which says nothing of the weights
    if hasattr(target, "set_state"):
        cast(Stateful, target).set_state(state)


def _persistent(machine: _Machine) -> None:
    machine.push(machine.persistent(machine.stack.pop()))


_STOP = ord(".")
_OPCODES: dict[int, Callable[[_Machine], None]] = {
    0x80: lambda machine: cast(None, machine.take(1)),  # PROTO
    0x95: lambda machine: cast(None, machine.take(8)),  # FRAME
    ord("("): _mark,
    ord("0"): lambda machine: cast(None, machine.stack.pop()),
    ord("1"): lambda machine: cast(None, machine.since_mark()),
    ord("2"): lambda machine: machine.push(machine.stack[-1]),
    ord("N"): _constant(None),
    0x88: _constant(True),
    0x89: _constant(False),
    ord("J"): _number("<i"),
    ord("K"): _number("<B"),
    ord("M"): _number("<H"),
    0x8A: _long,
    ord("G"): _number(">d"),
    ord("T"): _latin("<I"),
    ord("U"): _latin("<B"),
    ord("X"): _text("<I"),
    0x8C: _text("<B"),
    0x8D: _text("<Q"),
    ord("B"): _bytes("<I"),
    ord("C"): _bytes("<B"),
    0x8E: _bytes("<Q"),
    0x96: _bytes("<Q"),  # a bytearray
    ord(")"): _constant(()),
    ord("t"): lambda machine: machine.push(tuple(machine.since_mark())),
    0x85: _tuple_of(1),
    0x86: _tuple_of(2),
    0x87: _tuple_of(3),
    ord("]"): lambda machine: machine.push([]),
    ord("l"): lambda machine: machine.push(machine.since_mark()),
    ord("a"): _append,
    ord("e"): _appends,
    ord("}"): lambda machine: machine.push({}),
    ord("d"): _dict,
    ord("s"): _set_item,
    ord("u"): _set_items,
    0x8F: lambda machine: machine.push([]),  # a set, as a list
    0x90: _appends,
    0x91: lambda machine: machine.push(machine.since_mark()),
    ord("c"): _global,
    0x93: _stack_global,
    ord("R"): _reduce,
    0x81: _reduce,  # NEWOBJ: a class is called as a function is
    0x92: _new_object_with_keywords,
    ord("o"): _old_object,
    ord("i"): _instance,
    ord("b"): _build,
    ord("q"): _put("<B"),
    ord("r"): _put("<I"),
    0x94: _memoize,
    ord("h"): _get("<B"),
    ord("j"): _get("<I"),
    ord("Q"): _persistent,
}
