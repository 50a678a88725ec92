"""Parameters that a transformation leaves out, by optax's convention of a tree of booleans."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdjax.checks import InputError
from bdjax.types import Params, Tree

# A tree of booleans like the parameters, or a prefix of it, or a function from them to one; None is all of them.
Mask: TypeAlias = Tree | Callable[[Params], Tree] | None


def check_mask(mask: Mask, params: Params) -> None:
    """Refuse a mask that does not fit.

    Raises:
      InputError: it is not of booleans, does not fit the parameters, or leaves out all of them.
    """
    if mask is not None:
        _chosen(mask, params)


def zero_where_masked(mask: Mask, tree: Tree, params: Params) -> Tree:
    """Return a tree like the parameters with zeros where the mask is False.

    Raises:
      InputError: as for `check_mask`.
    """
    if mask is None:
        return tree
    return jax.tree.map(
        lambda keep, x: x if keep else jnp.zeros_like(x), _chosen(mask, params), tree
    )


def _chosen(mask: Tree | Callable[[Params], Tree], params: Params) -> Tree:
    """Return a boolean for each parameter."""
    chosen = mask(params) if callable(mask) else mask
    try:
        chosen = jax.tree.broadcast(chosen, params)
    except ValueError as error:
        raise InputError(
            f"mask must be a tree of booleans like the parameters, or its beginning: {_line(error)}"
        ) from error
    for leaf in (leaves := jax.tree.leaves(chosen)):
        if not isinstance(leaf, bool | np.bool_):
            raise InputError(f"mask must be of True and False, got {type(leaf).__name__}.")
    if not any(leaves):
        raise InputError("mask must be True for some of the parameters.")
    return chosen


def refuse_masked(name: str, params: Params) -> None:
    """Refuse parameters of which `optax.masked` or `optax.partition` hides some: the gradient needs all of them.

    Raises:
      InputError: some are hidden.
    """
    if any(map(is_masked, jax.tree.leaves(params, is_leaf=is_masked))):
        instead = f"use {name}(…, mask=…) before them in the chain"
        raise InputError(
            f"{name} needs all parameters, of which optax.masked and optax.partition hide some: {instead}."
        )


def is_masked(node: object) -> bool:
    """Return whether this stands for a parameter that is hidden."""
    return isinstance(node, optax.MaskedNode)


def _line(error: ValueError) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") + "."
