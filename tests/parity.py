"""A network and its twin in PyTorch, with the same weights, which a name decides and no generator of either."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import structure
from bdjax.models._names import key_of, to_torch
from bdjax.types import Model, Variables


def variables(model: Model) -> Variables:
    """Return variables that keep the signal's size through many layers, and statistics that are not the identity."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    found: Variables = {}
    for collection in ("params", "batch_stats"):
        leaves = structure.flat(shapes[collection])
        for path, leaf in leaves.items():
            leaves[path] = jnp.asarray(_drawn(key_of(path), path[-1], leaf.shape))
        found[collection] = structure.nested(leaves)
    return found


def image(model: Model, rows: int = 4) -> np.ndarray:
    """Return images in [0, 1]."""
    shape = (rows, *model.spec.shape)
    return np.random.default_rng(0).random(shape, np.float32)


def _drawn(key: str, leaf: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    bound = np.sqrt(6 / np.prod(shape[:-1])) if leaf == "kernel" else 0.3
    value = rng.uniform(-bound, bound, shape)
    middle = {"scale": 0.6, "var": 1.0}.get(leaf, 0.0)  # so that residual sums do not grow
    return np.float32(middle + value)


def state_dict(tree: Variables) -> dict[str, np.ndarray]:
    """Return the variables as a PyTorch network's state has them, but for the number of batches."""
    state: dict[str, np.ndarray] = {}
    for collection in tree.values():
        for path, leaf in structure.flat(collection).items():
            state[key_of(path)] = np.ascontiguousarray(to_torch(np.asarray(leaf), path))
    return state


def load(theirs: Any, tree: Variables) -> None:
    """Load the variables into the network of PyTorch, every key of both."""
    import torch

    state = {key: torch.from_numpy(value.copy()) for key, value in state_dict(tree).items()}
    counts = {key: n for key, n in theirs.state_dict().items() if key.endswith("batches_tracked")}
    theirs.load_state_dict({**counts, **state}, strict=True)


def torch_input(model: Model, image: np.ndarray) -> Any:
    """Return the normalized images, channels first."""
    import torch

    modality: Any = model.spec.modality
    mean, std = (np.asarray(part, image.dtype) for part in (modality.mean, modality.std))
    normalized = (image - mean) / std
    return torch.from_numpy(np.ascontiguousarray(normalized.transpose(0, 3, 1, 2)))
