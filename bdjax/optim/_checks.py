"""Checks of what transformations are made with: numbers, or arrays of them. What is traced has no value to check."""

from __future__ import annotations

import numbers
from collections.abc import Callable

import jax
import jax.core
import numpy as np

from bdjax.checks import InputError
from bdjax.types import Tree


def check_each(check: Callable[..., None], **values: object) -> None:
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


def not_nan(**values: object) -> None:
    """Refuse what is not a number; infinities, which bound nothing, are numbers."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != value:
            raise InputError(f"{name} must be a number, got {value!r}.")


def trees_alike(**trees: Tree) -> None:
    """Refuse trees of which one has another structure or other shapes than the first."""
    (first, like), *others = trees.items()
    for name, tree in others:
        if jax.tree.structure(tree) != jax.tree.structure(like):
            theirs = f"{_structure(tree)} and {_structure(like)}"
            raise InputError(f"{name} must be a tree like {first}; theirs are {theirs}.")
        leaves = jax.tree.leaves_with_path(tree)
        for (path, leaf), expected in zip(leaves, jax.tree.leaves(like), strict=True):
            shape, wanted = np.shape(leaf), np.shape(expected)
            if shape != wanted:
                where = f"{name}{jax.tree_util.keystr(path)}"
                raise InputError(f"{where} must have the shape {wanted}, as {first}; got {shape}.")


def _structure(tree: Tree) -> str:
    return str(jax.tree.structure(tree)).removeprefix("PyTreeDef")
