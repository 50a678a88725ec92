"""Checks of what transformations are made with: numbers, or arrays of them. What is traced has no value to check."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import numpy as np

from bdjax.checks import InputError


def each(check: Callable[..., None], **values: Any) -> None:
    """Hold every number of the values to a check of `bdjax.checks`.

    Raises:
      InputError: as the check, or the value is neither a number nor an array of some.
    """
    for name, value in values.items():
        if isinstance(value, jax.core.Tracer):
            continue
        if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, numbers.Real):
            for number in np.ravel(np.asarray(value)).tolist():
                check(**{name: number})
        else:
            check(**{name: value})


def not_nan(**values: Any) -> None:
    """Refuse what is not a number; infinities, which bound nothing, are numbers."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != value:
            raise InputError(f"{name} must be a number, got {value!r}.")


def trees_alike(**trees: Any) -> None:
    """Refuse trees of which one has another structure or other shapes than the first."""
    (first, like), *others = trees.items()
    for name, tree in others:
        if jax.tree.structure(tree) != jax.tree.structure(like):
            raise InputError(
                f"{name} must be a tree like {first}; theirs are {_structure(tree)} and {_structure(like)}."
            )
        for (path, leaf), expected in zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(like), strict=True):
            if np.shape(leaf) != np.shape(expected):
                where = f"{name}{jax.tree_util.keystr(path)}"
                raise InputError(f"{where} must have the shape {np.shape(expected)}, as {first}; got {np.shape(leaf)}.")


def _structure(tree: Any) -> str:
    return str(jax.tree.structure(tree)).removeprefix("PyTreeDef")
