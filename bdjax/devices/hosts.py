"""The processes of one run: on several hosts, or several on one, they compute as one and agree on what they do.

Each takes its share of every batch, of data that it holds whole or streams. The first alone writes files, except
checkpoints, which all write together. All make the same calls here in the same order: one that makes a call alone waits
for the others for ever. With a single process every function is a plain call.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.typing import ArrayLike
from jaxtyping import Array

from bdjax.checks import InputError, integer
from bdjax.devices import compilation
from bdjax.types import Leaf

AUTO = "auto"
HEARTBEAT_SECONDS = 60
_START_SECONDS = 300  # for all hosts to come
_FINISH_SECONDS = 30  # for all hosts to end

T = TypeVar("T")


def check_options(
    hosts: str | None, host: int | None, coordinator: str | None, timeout: int = HEARTBEAT_SECONDS
) -> None:
    """Refuse options that do not belong together; see `start`.

    Raises:
      InputError: which one, and why.
    """
    integer(1, host_timeout=timeout)
    if hosts is None or hosts == AUTO:
        for name, value in (("host", host), ("coordinator", coordinator)):
            if value is not None:
                given = hosts or "not given"
                raise InputError(f"{name} goes with hosts, as a number; hosts is {given}.")
        return
    if not hosts.isdecimal() or int(hosts) < 1:
        raise InputError(f"hosts must be {AUTO}, or their number; got {hosts!r}.")
    if host is None or coordinator is None:
        needed = "host, which of them this is, and coordinator, the first one's address"
        raise InputError(f"hosts = {hosts} needs {needed}.")
    integer(host=host)
    if host >= int(hosts):
        raise InputError(f"host must be below hosts = {hosts}, as the first is 0; got {host}.")
    address, _, port = coordinator.rpartition(":")
    if not address or not port.isdecimal() or not 0 < int(port) < 2**16:
        right = "an address and a port, as in 10.0.0.1:1234"
        raise InputError(f"coordinator must be {right}; got {coordinator!r}.")


def start(
    hosts: str,
    host: int | None = None,
    coordinator: str | None = None,
    timeout: int = HEARTBEAT_SECONDS,
) -> None:
    """Join the processes of the run, before anything else uses JAX.

    Args:
      hosts: ``auto``, where JAX finds the others by itself (SLURM, Open MPI, TPU pods), or the number of processes.
      host: which of them this is, from 0.
      coordinator: address and port of process 0, which listens there.
      timeout: seconds after which a process that is not heard of is lost.

    Raises:
      InputError: the options do not belong together, ``auto`` finds nothing, the port is taken, or the processes differ
        in their number of devices.
    """
    check_options(hosts, host, coordinator, timeout)
    limits: dict[str, Any] = {
        "initialization_timeout": _START_SECONDS,
        "heartbeat_timeout_seconds": timeout,
        "shutdown_timeout_seconds": _FINISH_SECONDS,
    }
    if hosts == AUTO:
        try:
            jax.distributed.initialize(**limits)
        except ValueError as error:
            missing = "JAX finds no SLURM, Open MPI or TPU pod"
            raise InputError(f"hosts is auto, but {missing}; give their number.") from error
    else:
        if host == 0:
            _check_free(int(str(coordinator).rpartition(":")[2]))
        limits["cluster_detection_method"] = "deactivate"  # or SLURM would choose among the devices
        jax.distributed.initialize(coordinator, int(hosts), host, **limits)
    compilation.require_devices()
    devices = Counter(device.process_index for device in jax.devices())
    if len(set(devices.values())) > 1:
        there = [devices[host] for host in sorted(devices)]
        raise InputError(f"every host must have as many devices; they have {there}.")


def _check_free(port: int) -> None:
    """Refuse a port that something else listens on, which JAX would not survive."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        why = error.strerror
        raise InputError(
            f"coordinator: port {port} of this host cannot be used ({why})."
        ) from error


def finish(code: int) -> None:
    """Leave the run, if it was joined, with the others; after half a minute without them, end this process."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # A little before JAX's own limit, at which it aborts the process.
    timer = threading.Timer(_FINISH_SECONDS - 5, os._exit, (code,))
    timer.daemon = True
    timer.start()
    jax.distributed.shutdown()
    timer.cancel()


def process_count() -> int:
    """Return how many processes the run has."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def devices() -> int:
    """Return how many devices all processes have together."""
    return jax.device_count()


def is_loss(error: Exception) -> bool:
    """Say whether an error, in a run of several processes, tells that another one does not answer."""
    return process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError)


def is_first() -> bool:
    """Say whether this is the process that writes and prints."""
    return process_count() == 1 or jax.process_index() == 0


def from_first(function: Callable[[], T]) -> T:
    """Call a function on the first process alone and return what it returns, plain JSON, on all.

    Raises:
      InputError, OSError: raised there, raised everywhere.
    """
    if process_count() == 1:
        return function()
    answer: dict[str, Any] = {}
    if is_first():
        try:
            answer = {"value": function()}
        except (InputError, OSError) as error:
            answer = {"mistake" if isinstance(error, InputError) else "failure": str(error)}
    answer = json.loads(_broadcast(json.dumps(answer).encode()))
    if "mistake" in answer:
        raise InputError(answer["mistake"])
    if "failure" in answer:
        raise OSError(answer["failure"])
    return answer["value"]


def arrays_of_first(tree: T) -> T:
    """Return the arrays that the first process has, as NumPy arrays; the others bring shapes and types."""
    if process_count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, tree))


@contextlib.contextmanager
def held_by_first(context: contextlib.AbstractContextManager[object]) -> Iterator[None]:
    """Enter a context, a lock say, on the first process; the others wait until that is done."""
    with contextlib.ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(context)

        from_first(enter)
        yield


def any_says(value: bool) -> bool:
    """Say whether it is true on any process."""
    if process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(np.bool_(value)).any())


def check_same(**values: object) -> None:
    """Refuse plain values or trees of arrays that are not the same, to the bit, on every process.

    Raises:
      InputError: on every process; it names the first that differs.
    """
    if process_count() == 1:
        return
    own = [_checksum(value) for value in values.values()]
    sums = multihost_utils.process_allgather(np.array(own, np.uint32))
    for name, column in zip(values, sums.T, strict=True):
        if (column != column[0]).any():
            others = ", ".join(map(str, np.flatnonzero(column != column[0])))
            wrong = f"host {others} has another than the first"
            raise InputError(f"the hosts must have the same {name}; {wrong}.")


def replicate(tree: T, sharding: NamedSharding) -> T:
    """Put a tree of arrays on all devices of a mesh over several processes; each brings the same values."""

    def put(x: ArrayLike) -> Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        return jax.make_array_from_process_local_data(sharding, x, x.shape)

    return jax.tree.map(put, tree)


def local(tree: T) -> T:
    """Return this process's copy of arrays that each device of several processes has whole, on one of its own."""

    def take(x: Leaf) -> Leaf:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        assert x.is_fully_replicated, x.sharding
        return x.addressable_data(0)

    return jax.tree.map(take, tree)


def _broadcast(content: bytes) -> bytes:
    """Return the bytes that the first process has; those of the others do not matter."""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.frombuffer(content[:length].ljust(length, b"\0"), np.uint8)
    return multihost_utils.broadcast_one_to_all(padded).tobytes()


def _checksum(value: object) -> int:
    """Return the CRC-32 of a plain value, or of a tree of arrays with their shapes and types."""
    leaves = jax.tree.leaves(value)
    if not leaves or not all(isinstance(x, (jax.Array, np.ndarray)) for x in leaves):
        return zlib.crc32(json.dumps(value, sort_keys=True).encode())
    total = 0
    for x in map(np.ascontiguousarray, leaves):
        total = zlib.crc32(x.data, zlib.crc32(f"{x.shape} {x.dtype}".encode(), total))
    return total
