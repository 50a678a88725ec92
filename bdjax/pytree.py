"""Frozen dataclasses that are pytrees: what attacks, defenses and their parts are configured with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeAlias, TypeVar, dataclass_transform

import jax

T = TypeVar("T")
_STATIC = "static"
_Values: TypeAlias = tuple[object, ...]


def static(**options: Any) -> Any:
    """Return a dataclass field that is part of the structure: hashable, compared by value, compiled in."""
    return dataclasses.field(metadata={_STATIC: True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def dataclass(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and a pytree; its children are all fields but the `static` ones.

    jaxlib 0.10 and 0.11 compare the structures of classes registered with ``jax.tree_util.register_dataclass`` (and so
    of ``flax.struct``) without looking at the class, and only their hashes differ: once in a while a compiled function
    would run one class's program for an instance of another with the same fields. The older registration that is used
    here compares the class as well.
    """
    made: Any = dataclasses.dataclass(frozen=True)(cls)
    children: list[str] = []
    fixed: list[str] = []
    for field in dataclasses.fields(made):
        (fixed if field.metadata.get(_STATIC, False) else children).append(field.name)
    keys = list(map(jax.tree_util.GetAttrKey, children))

    def flatten(value: T) -> tuple[_Values, _Values]:
        return _attributes(value, children), _attributes(value, fixed)

    def flatten_with_keys(value: T) -> tuple[tuple[tuple[Any, object], ...], _Values]:
        leaves, aux = flatten(value)
        return tuple(zip(keys, leaves, strict=True)), aux

    def unflatten(aux: _Values, leaves: Iterable[object]) -> T:
        # JAX puts tracers, axes and placeholders where leaves are: no value to check as a new instance's is.
        value = object.__new__(made)
        vars(value).update(zip(fixed, aux, strict=True))
        vars(value).update(zip(children, leaves, strict=True))
        return value

    jax.tree_util.register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
    return made


def _attributes(value: object, names: Iterable[str]) -> _Values:
    return tuple(getattr(value, name) for name in names)
