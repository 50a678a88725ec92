"""Placement of one run over several devices: the batch is split, everything else is on each device."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bdjax.checks import InputError
from bdjax.types import Split

BATCH = "batch"


def batch_mesh(devices: int, batch_size: int | None) -> Mesh | None:
    """Return a mesh over the first devices, or None for a single one and for what takes the whole split at once.

    Raises:
      InputError: there are fewer devices, or they do not divide the batch.
    """
    if devices == 1 or batch_size is None:
        return None
    there = jax.devices()
    if devices > len(there):
        raise InputError(f"devices must be at most {len(there)}, the number of devices here; got {devices}.")
    if batch_size % devices:
        raise InputError(f"batch_size must be a multiple of devices = {devices}; got {batch_size}.")
    return jax.make_mesh((devices,), (BATCH,), axis_types=(AxisType.Auto,), devices=there[:devices])


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Put a tree of arrays on the device, or a copy on each device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()) if mesh is not None else None)


def split_batch(batch: Split, mesh: Mesh | None) -> Split:
    """Inside a compiled step: give each device its share of the rows. Sums over rows stay sums over the batch."""
    if mesh is None:
        return batch
    rows = NamedSharding(mesh, PartitionSpec(BATCH))
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, rows), batch)
