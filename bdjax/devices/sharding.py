"""Placement of one run over several devices, of one host or of several: the batch is split, all else is on each."""

from __future__ import annotations

from typing import TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from bdjax.checks import InputError
from bdjax.devices import hosts
from bdjax.types import Split

BATCH = "batch"
T = TypeVar("T")  # a tree of arrays


def batch_mesh(devices: int, batch_size: int | None) -> Mesh | None:
    """Return a mesh over the first devices, or None for a single one and for what takes the whole split at once.

    Of several hosts each brings as many; what takes the whole split at once is computed by each, on one device.

    Raises:
      InputError: there are fewer devices, they do not divide the batch, or the hosts do not divide them.
    """
    count = hosts.process_count()
    if devices % count:
        multiple = f"a multiple of hosts = {count}, as it counts those of all"
        raise InputError(f"devices must be {multiple}; got {devices}.")
    if devices == 1 or batch_size is None:
        return None
    there = jax.devices()
    if devices > len(there):
        most = f"{len(there)}, the number of devices here"
        raise InputError(f"devices must be at most {most}; got {devices}.")
    if batch_size % devices:
        raise InputError(f"batch_size must be a multiple of devices = {devices}; got {batch_size}.")
    chosen = []
    for host in range(count):
        own = [device for device in there if device.process_index == host]
        chosen += own[: devices // count]
    return jax.make_mesh((devices,), (BATCH,), axis_types=(AxisType.Auto,), devices=chosen)


def replicate(tree: T, mesh: Mesh | None) -> T:
    """Put a tree of arrays on the device, or a copy on each device of the mesh; of several hosts, all have the same."""
    if mesh is None:
        return jax.device_put(tree)
    whole = NamedSharding(mesh, PartitionSpec())
    if hosts.process_count() > 1:
        return hosts.replicate(tree, whole)
    return jax.device_put(tree, whole)


def rows_here(mesh: Mesh | None, batch_size: int) -> slice:
    """Return which rows of a batch the devices of this host work on: all of them where there is one host."""
    if mesh is None:
        return slice(0, batch_size)
    sharding = NamedSharding(mesh, PartitionSpec(BATCH))
    starts: list[int] = []
    stops: list[int] = []
    for place in sharding.addressable_devices_indices_map((batch_size,)).values():
        if place is not None:
            start, stop, _ = place[0].indices(batch_size)
            starts.append(start)
            stops.append(stop)
    return slice(min(starts), max(stops))


def even(mesh: Mesh | None, batch_size: int) -> int:
    """Return how many rows a batch must have at least to be put on the devices of the mesh in equal shares."""
    return batch_size if mesh is None else batch_size + -batch_size % mesh.shape[BATCH]


def keep_whole(tree: T, mesh: Mesh | None) -> T:
    """Inside a compiled step: let each device have all of a tree."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(_here(mesh), PartitionSpec()))


def split_batch(batch: Split, mesh: Mesh | None, axis: int = 0) -> Split:
    """Inside a compiled step: give each device its share of the rows. Sums over rows stay sums over the batch.

    The rows are along ``axis``: 1 for the batches of several steps.

    The shares need not be equal: the compiler pads the last ones, and leaves the padding out of every sum.
    """
    if mesh is None:
        return batch
    rows = NamedSharding(_here(mesh), PartitionSpec(*axis * (None,), BATCH))
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, rows), batch)


def _here(mesh: Mesh) -> Mesh | AbstractMesh:
    """Return the mesh as it is seen inside a `jax.shard_map` over another of its axes, if this is inside one."""
    inside = jax.sharding.get_abstract_mesh()
    return mesh if inside.empty else inside
