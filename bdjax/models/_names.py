"""What a variable is called in a PyTorch state dict, and its layout there.

A network here has the module names of torchvision's network of that name, so a variable's path says its key.
"""

from __future__ import annotations

import numpy as np

from bdjax.structure import Path
from bdjax.types import Leaf

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_TO_TORCH = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1), 5: (4, 3, 0, 1, 2)}  # by the kernel's rank
_FUSED = "in_proj"  # of attention: its weights have no module of their own in PyTorch


def key_of(path: Path, leaf: Leaf = None) -> str:
    """Return the key in a state dict of the variable at a path, which begins below its collection."""
    del leaf
    name = _LEAVES.get(path[-1], path[-1])
    if len(path) > 1 and path[-2] == _FUSED:
        return ".".join((*path[:-2], f"{_FUSED}_{name}"))
    return ".".join((*path[:-1], name))


def to_torch(array: np.ndarray, path: Path) -> np.ndarray:
    """Return a variable in PyTorch's layout: kernels [out, in, h, w] and [out, in], anything else as it is."""
    if path[-1] != "kernel" or array.ndim not in _TO_TORCH:
        return array
    return array.transpose(_TO_TORCH[array.ndim])


def from_torch(array: np.ndarray, path: Path) -> np.ndarray:
    """Return an array of a state dict in the layout here: kernels [h, w, in, out] and [in, out]."""
    if path[-1] != "kernel" or array.ndim not in _TO_TORCH:
        return array
    return array.transpose(np.argsort(_TO_TORCH[array.ndim]))
