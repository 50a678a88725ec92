"""Where the training images are while a network is trained: on the device, on the host, or on the disk."""

from __future__ import annotations

import jax

from bdjax.devices import footprint
from bdjax.types import Split

PLACES = ("auto", "device", "host", "disk")
SHARE = 0.5  # of the device's memory that the images may take; the network and its activations have the rest
EPOCH_SHARE = 0.1  # that the batches of a whole epoch may take on their way
_COPIES = 4  # of the images: as they are gathered, padded by a border, cropped and flipped


def choose_place(asked: str, split: Split, *, memory: int | None = None) -> str:
    """Return ``device`` or ``host`` for ``auto``, by the images' size, and otherwise what was asked.

    On the device are the images and their poisoned copy. They stay on the host if that is more than half of the
    device's memory; of a CPU, of the machine's.

    Args:
      asked: one of ``PLACES``.
      split: the training images.
      memory: bytes of the device; None asks it.
    """
    if asked != "auto":
        return asked
    memory = device_bytes() if memory is None else memory
    return "host" if memory is not None and 2 * _input_bytes(split) > SHARE * memory else "device"


def holds_an_epoch(split: Split, points: int = 1, *, memory: int | None = None) -> bool:
    """Whether a device has room for all batches of an epoch over the split, of so many runs, at once.

    Args:
      split: what is fed.
      points: runs that are fed together.
      memory: bytes of the device; None asks it.
    """
    memory = device_bytes() if memory is None else memory
    return memory is None or points * _COPIES * _input_bytes(split) <= EPOCH_SHARE * memory


def _input_bytes(split: Split) -> int:
    return sum(array.nbytes for array in jax.tree.leaves(split.input))


def device_bytes() -> int | None:
    """Return the bytes of memory that one device has for arrays; None where nobody tells."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    return limit or host_bytes()


def host_bytes() -> int | None:
    """Return the bytes of memory of this machine; None on Windows, which does not tell."""
    return footprint.machine_bytes()
