"""Whether plain values, as a JSON file has them, are of the shape that a reader expects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

# A type; or a list, tuple or mapping of shapes, as `misfit` says.
Shape: TypeAlias = Any

_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
    bool: "a bool",
}


def misfit(value: Any, shape: Any, where: str = "it") -> str | None:
    """Say what of a plain value is not of a shape, None where all is.

    A shape is a type (of numbers, ``float`` takes whole ones too); a list of the one shape that all elements have; a
    tuple of shapes, any of which will do, None among them; a mapping of keys to shapes, of which those that end in a
    question mark may be missing and others may be there; or a mapping of ``str`` to the one shape that all have.

    >>> misfit({"form": "loop", "seconds": {"loop": "1"}}, {"form": str, "seconds": {str: float}})
    'seconds.loop must be a number'
    """
    if isinstance(shape, tuple):
        wrong = [misfit(value, one, where) for one in shape]
        return None if None in wrong else wrong[0]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} must be a list"
        return _first(
            misfit(part, shape[0], f"{where}[{number}]") for number, part in enumerate(value)
        )
    if isinstance(shape, dict):
        return misfit(value, dict, where) or _first(
            _misfits(value, shape, "" if where == "it" else f"{where}.")
        )
    if shape is None:
        return None if value is None else f"{where} must be null"
    kinds = (int, float) if shape is float else shape
    if isinstance(value, kinds) and (shape is bool or not isinstance(value, bool)):
        return None
    return f"{where} must be {_KINDS[shape]}"


def _misfits(
    value: Mapping[str, Any], shape: Mapping[Any, Any], prefix: str
) -> Iterator[str | None]:
    if str in shape:
        shape = dict.fromkeys(value, shape[str])
    for key, part in shape.items():
        name = key.removesuffix("?")
        if name in value:
            yield misfit(value[name], part, prefix + name)
        elif name == key:
            yield f"{prefix}{name} is missing"


def _first(found: Iterable[str | None]) -> str | None:
    return next((wrong for wrong in found if wrong is not None), None)
