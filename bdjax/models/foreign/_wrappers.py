"""What training programs put around a network's weights: dictionaries with other things, prefixes, a normalization."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias, TypeGuard, cast

import numpy as np

from bdjax.models.foreign._pickled import Refused, Value
from bdjax.models.foreign._stand_ins import NumpyArray, Tensor

Plain: TypeAlias = str | int | float | bool | tuple[str | int | float | bool, ...] | None
Found: TypeAlias = Tensor | np.ndarray  # an array of the file

# In this order. The averaged weights come last: what was trained is what is usually evaluated.
_HOLDERS = (
    "model",
    "state_dict",
    "net",
    "model_state_dict",
    "params",
    "network",
    "weights",
    "module",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "ema",
)
_PREFIXES = re.compile(r"(module|_orig_mod|model|net|network|_model|\d+)\.")
_NORMALIZATION = re.compile(r"(?P<module>(?:\w+\.)*)_?(?P<name>mean|std)")
OF_AVERAGING = "n_averaged"  # PyTorch's count of the steps that an averaged network saw
_DEEPEST = 4
_MOST_PREFIXES = 8
_LONGEST_TEXT = 1000
_LONGEST_LIST = 2000  # class names, say
_MOST_CHANNELS = 64


class Unwrapped(NamedTuple):
    """The weights by name, plain values that stood beside them, and what was taken off, outermost first."""

    weights: dict[str, Found]
    beside: dict[str, Plain]
    wrappers: tuple[str, ...]


def unwrap(value: Value, part: str | None = None) -> Unwrapped:
    """Take a file's weights out of the dictionaries around them.

    Args:
      value: of the file.
      part: the entry of the file in which they are; None is the usual one.

    Raises:
      Refused: there are none, or several sets of which none has a usual name.
    """
    beside: dict[str, Plain] = {}
    wrappers: list[str] = []
    for _ in range(_DEEPEST):
        if not isinstance(value, dict):
            raise Refused(f"holds {_kind(value)}, no state dict of names and arrays")
        content = cast(dict[object, Value], value)
        beside.update(_plain_entries(content))
        entry = part if part is not None and not wrappers else _entry(content)
        if entry is None:
            return Unwrapped(_arrays(content), beside, tuple(wrappers))
        if entry not in content:
            raise Refused(f"has no part {part!r}; it has {_listed(content)}")
        wrappers.append(entry)
        value = content[entry]
    raise Refused("holds dictionaries in dictionaries and no weights in them")


def _entry(content: Mapping[object, Value]) -> str | None:
    """Return the name of the entry with the weights; None if they are the content itself."""
    seen: dict[tuple[int, int], bool] = {}
    holding = [name for name, value in content.items() if _holds_arrays(value, _DEEPEST, seen)]
    for name in _HOLDERS:
        if name in holding:
            return name
    if any(_is_array(value) for value in content.values()):
        return None
    if len(holding) == 1:
        return str(holding[0])
    if holding:
        remedy = "name the one you mean as part"
        raise Refused(f"holds several sets of weights, {_listed(holding)}: {remedy}")
    raise Refused(f"holds no arrays; it has {_listed(content) or 'nothing'}")


def _holds_arrays(value: Value, depth: int, seen: dict[tuple[int, int], bool]) -> bool:
    """Say whether there are arrays in a dictionary; ``seen`` has the answers, as one may stand at many places."""
    if not isinstance(value, dict) or not depth:
        return False
    place = (id(value), depth)
    if place not in seen:
        seen[place] = _has_arrays(cast(dict[object, Value], value), depth, seen)
    return seen[place]


def _has_arrays(value: dict[object, Value], depth: int, seen: dict[tuple[int, int], bool]) -> bool:
    if any(_is_array(entry) and isinstance(name, str) for name, entry in value.items()):
        return True
    known = [value[name] for name in _HOLDERS if name in value]
    return any(_holds_arrays(entry, depth - 1, seen) for entry in known)


def _is_array(value: Value) -> TypeGuard[Tensor | NumpyArray | np.ndarray]:
    return isinstance(value, Tensor | NumpyArray | np.ndarray)


def _arrays(content: Mapping[object, Value]) -> dict[str, Found]:
    found: dict[str, Found] = {}
    for name, value in content.items():
        array = value.array if isinstance(value, NumpyArray) else value
        if isinstance(name, str) and isinstance(array, Tensor | np.ndarray):
            found[name] = array
    return found


def _plain_entries(content: Mapping[object, Value]) -> dict[str, Plain]:
    found: dict[str, Plain] = {}
    made: dict[int, Value] = {}  # of a list, which may stand under many names
    for name, value in content.items():
        if not isinstance(name, str) or len(name) >= _LONGEST_TEXT:
            continue
        if isinstance(value, list | tuple):
            if id(value) not in made:
                made[id(value)] = tuple(value) if _is_plain(value) else None
            if made[id(value)] is not None:
                found[name] = cast(Plain, made[id(value)])
        elif _is_plain(value):
            found[name] = cast(Plain, value)
    return found


def _is_plain(value: Value) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST_TEXT
    if isinstance(value, list | tuple):
        return len(value) <= _LONGEST_LIST and all(
            isinstance(item, int | float) or (isinstance(item, str) and _is_plain(item))
            for item in value
        )
    return value is None or isinstance(value, bool | int | float)


def prefixes(names: Iterable[str]) -> tuple[str, ...]:
    """Return what all names begin with, as far as it is what programs put before them, outermost first."""
    names = [name for name in names if name != OF_AVERAGING]
    taken: list[str] = []
    # Each takes as long as there are names, and a name may consist of nothing else
    while len(taken) < _MOST_PREFIXES and names and (found := _PREFIXES.match(names[0])):
        if not all(name.startswith(found[0]) for name in names):
            break
        names = [name.removeprefix(found[0]) for name in names]
        taken.append(found[0])
    return tuple(taken)


def normalization(weights: Mapping[str, Found]) -> dict[str, str]:
    """Return the names of a normalization's ``mean`` and ``std`` among the weights; empty if there is none.

    It is a module that has the two, of a number for each channel, and nothing else.
    """
    modules: dict[str, dict[str, str]] = {}
    for name, value in weights.items():
        found = _NORMALIZATION.fullmatch(name)
        shape = value.size if isinstance(value, Tensor) else value.shape
        if found is not None and np.prod(shape, dtype=object) <= _MOST_CHANNELS:
            modules.setdefault(found["module"], {})[found["name"]] = name
    complete = [names for names in modules.values() if len(names) == 2]
    return complete[0] if len(complete) == 1 else {}


def _kind(value: Value) -> str:
    if _is_array(value):
        return "a single array"
    kinds = {list: "a list", tuple: "a tuple", str: "a text", int: "a number", float: "a number"}
    return kinds.get(type(value), "something else")


def _listed(names: Iterable[object]) -> str:
    shown = [str(name)[:40] for name in list(names)]
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return ", ".join(shown[:5]) + more
