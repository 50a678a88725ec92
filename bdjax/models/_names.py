"""The names and layouts that a network's variables have in a PyTorch state dict, by the leaf's name and rank alone."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Array, Shaped

from bdjax.structure import Path

Laid: TypeAlias = Shaped[Array | np.ndarray, "..."]

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_FUSED = ("self_attention", "in_proj")  # which PyTorch keeps as two leaves of the attention itself


def key_of(path: Path) -> str:
    """Return the key of a leaf of ``params`` or ``batch_stats``: of ("conv1", "kernel") it is "conv1.weight"."""
    *module, leaf = path
    name = _LEAVES.get(leaf, leaf)
    if tuple(module[-2:]) == _FUSED:
        return ".".join((*module[:-1], f"{_FUSED[-1]}_{name}"))
    return ".".join((*module, name))


def to_torch(array: Laid, path: Path) -> Laid:
    """Return a leaf's array as PyTorch lays it out: kernels [h, w, i, o] as [o, i, h, w], and [i, o] as [o, i]."""
    if path[-1] != "kernel":
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def from_torch(array: Laid, path: Path) -> Laid:
    """Return the array of a state dict as the leaf of this path has it; the inverse of `to_torch`."""
    if path[-1] != "kernel":
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
