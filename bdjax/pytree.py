"""Frozen dataclasses that are pytrees: what attacks, defenses and their parts are configured with."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")
_STATIC = "static"


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
    names: dict[bool, tuple[str, ...]] = {
        kind: tuple(field.name for field in dataclasses.fields(made) if field.metadata.get(_STATIC, False) is kind)
        for kind in (False, True)
    }
    children, fixed = names[False], names[True]

    def flatten(value: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(value, name) for name in children), tuple(getattr(value, name) for name in fixed)

    def flatten_with_keys(value: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        leaves, aux = flatten(value)
        return tuple(zip(map(jax.tree_util.GetAttrKey, children), leaves, strict=True)), aux

    def unflatten(aux: tuple[Any, ...], leaves: Any) -> Any:
        # JAX puts tracers, axes and placeholders where leaves are: no value to check as a new instance's is.
        value = object.__new__(made)
        vars(value).update(zip(fixed, aux, strict=True))
        vars(value).update(zip(children, leaves, strict=True))
        return value

    jax.tree_util.register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
    return made
