"""The folder is the registry: a method is the module of its name, and the function of that name inside it."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable
from typing import Any, TypeAlias

from bdjax.checks import InputError, did_you_mean, one_of

Factory: TypeAlias = Callable[..., Any]  # what it makes is for the package to say


def names(package: str) -> list[str]:
    """Return the names of the public modules in a package's folder, sorted, without importing them.

    A folder inside it is no method.
    """
    path = tuple(importlib.import_module(package).__path__)
    changed = tuple(os.stat(folder).st_mtime_ns for folder in path)
    return list(_modules(path, changed))


@functools.cache
def _modules(path: tuple[str, ...], changed: tuple[int, ...]) -> tuple[str, ...]:
    """Read the folders once for each time they changed: a sweep asks thousands of times."""
    del changed
    found = [module.name for module in pkgutil.iter_modules(path) if not module.ispkg]
    return tuple(sorted(name for name in found if not name.startswith("_")))


def factory(package: str, name: str) -> Factory:
    """Return the function ``name`` of the module ``name`` in the package.

    Raises:
      InputError: no such file, and the message lists the names and the nearest one; or one without the function.
    """
    known = names(package)
    if name not in known:
        kind = package.rpartition(".")[2]
        near, there = did_you_mean(name, known), ", ".join(known)
        raise InputError(f"no {name!r} in {kind}{near}; known: {there}.")
    module = importlib.import_module(f"{package}.{name}")
    found = getattr(module, name, None)
    if not callable(found):
        own = [word for word, value in vars(module).items() if inspect.isfunction(value)]
        near = did_you_mean(name, own)
        raise InputError(f"{module.__file__} must have the function of its name, {name}{near}.")
    return found


def presets(package: str, name: str) -> dict[str, dict[str, object]]:
    """Return the module's named sets of options; ``paper``, the function's own defaults, is always there."""
    return {"paper": {}, **_table(package, name, "PRESETS")}


def strengths(package: str, name: str) -> dict[str, tuple[float, ...]]:
    """Return the options of which a method may choose the value itself, and what it tries, from weak to strong."""
    return _table(package, name, "STRENGTHS")


def files(package: str, name: str) -> dict[str, tuple[str, ...]]:
    """Return the options that name a file, each with the words that it may be instead."""
    return _table(package, name, "FILES")


def create(
    package: str, name: str, /, *args: object, preset: str = "paper", **options: object
) -> Any:
    """Call the factory of that name with the preset's options and, over them, the given ones.

    Raises:
      InputError: unknown name, preset or option; the message says which is nearest.
    """
    make = factory(package, name)
    sets = presets(package, name)
    one_of(sets, preset=preset)
    known = list(inspect.signature(make).parameters)[len(args) :]
    for option in options:
        if option not in known:
            near, there = did_you_mean(option, known), ", ".join(known) or "none"
            raise InputError(f"{name} has no option {option!r}{near}; known: {there}.")
    return make(*args, **{**sets[preset], **options})


def _table(package: str, name: str, table: str) -> dict[str, Any]:
    """Return a table that a method's module may have beside its function, by options."""
    factory(package, name)  # refuses a name that is not there
    return dict(getattr(importlib.import_module(f"{package}.{name}"), table, {}))


def summary(package: str, name: str) -> str:
    """Return the first line of the factory's docstring."""
    return (inspect.getdoc(factory(package, name)) or "").partition("\n")[0]
