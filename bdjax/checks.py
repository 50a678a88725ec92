"""Checks of a caller's values, made before anything is compiled. The keyword names the culprit in the message."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
import numbers
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

# The most of what is counted. What has no bound of its own is at most what a 32-bit integer holds, as positions and
# steps on a device are; a number beyond is a slip of the hand.
LARGEST = 2**31 - 1
EPOCHS = 1_000_000
RUNS = 100_000  # of a sweep, before its control rows
DRAWS = 1_000_000  # random vectors, steps of an iteration
_LONGEST_WORD = 100  # letters in which a spelling mistake is looked for


class InputError(ValueError):
    """A mistake in what the caller asked for: one sentence that says what is wrong and what would be right."""


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"{name} must be a number, got {value!r}.")
    if not math.isfinite(value):
        raise InputError(f"{name} must be finite, got {value!r}.")
    return float(value)


def non_negative(**values: object) -> None:
    """Refuse a number below zero."""
    for name, value in values.items():
        if _number(name, value) < 0:
            raise InputError(f"{name} must be 0 or more, got {value!r}.")


def positive(**values: object) -> None:
    """Refuse a number that is not above zero."""
    for name, value in values.items():
        if _number(name, value) <= 0:
            raise InputError(f"{name} must be above 0, got {value!r}.")


def unit_interval(**values: object) -> None:
    """Refuse a number outside [0, 1]."""
    for name, value in values.items():
        if not 0 <= _number(name, value) <= 1:
            raise InputError(f"{name} must lie between 0 and 1, got {value!r}.")


def below_one(**values: object) -> None:
    """Refuse a number outside [0, 1), such as a momentum that never forgets."""
    for name, value in values.items():
        if not 0 <= _number(name, value) < 1:
            raise InputError(f"{name} must be at least 0 and below 1, got {value!r}.")


def integer(minimum: int = 0, maximum: int = LARGEST, **values: object) -> None:
    """Refuse what is not a whole number from ``minimum`` to ``maximum``."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise InputError(f"{name} must be a whole number, got {value!r}.")
        if value < minimum:
            raise InputError(f"{name} must be {minimum} or more, got {value!r}.")
        if int(value) > maximum:
            raise InputError(f"{name} must be at most {maximum}, got {value!r}.")


def one_of(choices: Iterable[str], **values: object) -> None:
    """Refuse a word that is not among the choices; the message names the nearest one."""
    known = list(choices)
    for name, value in values.items():
        if value not in known:
            near = did_you_mean(value, known)
            raise InputError(f"{name} must be one of {', '.join(known)}; got {value!r}{near}.")


def is_a(kind: type, words: str, **values: object) -> None:
    """Refuse a value that is not of a class or a protocol.

    Args:
      kind: it; a protocol must be one that can be checked when a program runs.
      words: what it is called.
      values: what should be of it.
    """
    for name, value in values.items():
        if not isinstance(value, kind):
            public = sorted({*dir(kind), *vars(kind).get("__annotations__", {})})
            lacks = [part for part in public if part[0] != "_" and not hasattr(value, part)]
            near = f", which has no {', '.join(lacks)}" if lacks and value is not None else ""
            raise InputError(f"{name} must be {words}, got {value!r:.100}{near}.")


def takes(expected: inspect.Signature, **functions: Callable[..., Any]) -> None:
    """Refuse a function that cannot be called with as many values in order as the expected one."""
    for name, function in functions.items():
        own = inspect.signature(function)
        try:
            own.bind(*expected.parameters)
        except TypeError as error:
            wanted, got = ", ".join(expected.parameters), ", ".join(own.parameters)
            raise InputError(f"{name} must take ({wanted}), got ({got}).") from error


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return ``" (did you mean …?)"`` where a known word is near, else nothing."""
    near = difflib.get_close_matches(str(word)[:_LONGEST_WORD], list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


@contextlib.contextmanager
def in_section(path: str, options: Container[str]) -> Iterator[None]:
    """Put the section's name before the argument that an error names."""
    try:
        yield
    except InputError as error:
        first = str(error).split(" ", 1)[0]
        separator = "." if first.split(".")[0] in options else ": "
        raise InputError(f"{path}{separator}{error}") from error
