"""The inputs of an epoch that are read as they are needed: in which order, and how many at once."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key

from bdjax.data.streams import ReadAhead
from bdjax.devices import compilation, sharding
from bdjax.train import batches
from bdjax.types import Learner, Split

CHUNK_BYTES = 2**23
# Steps of a chunk: of one alone the compiler makes another program, whose last bits differ.
_LEAST = 2


class Reading(NamedTuple):
    """An epoch whose inputs are being read."""

    step_key: Key[Array, ""]
    index: Int[np.ndarray, "chunks steps share"]  # of each batch this host's share
    filled: Bool[np.ndarray, "chunks steps share"] | None  # as in `bdjax.train.batches.Batches`
    steps: int  # that are taken
    size: int  # rows of a batch, all hosts' together; those beyond them only make the shares equal
    ahead: ReadAhead


def begin(
    key: Key[Array, ""],
    learner: Learner,
    split: Split,
    mesh: Mesh | None = None,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Reading:
    """Begin to read the inputs of an epoch, in the order of its key; of several hosts, each reads its share.

    Args:
      key: of the epoch.
      learner: who is fed.
      split: whose input is a `bdjax.data.streams.Stream`.
      mesh: devices over which each batch is split.
      chunk_bytes: inputs that go to the device at once; more if two batches are more.
    """
    rows = np.flatnonzero(np.asarray(split.valid))
    drawn = _draw(key, learner, len(rows))
    index, filled = jax.device_get((drawn.index, drawn.filled))
    steps, size = index.shape
    even = sharding.even(mesh, size)
    in_chunk = max(_LEAST, chunk_bytes // max(1, size * _row_bytes(split)))
    chunks = -(-steps // in_chunk)
    in_chunk = -(-steps // max(1, chunks))  # about as many in each

    def chunked(array: np.ndarray) -> np.ndarray:
        equal = np.pad(array, ((0, 0), (0, even - size)), mode="edge")
        share = equal[:, sharding.rows_here(mesh, even)]
        # steps that are not taken
        more = np.zeros((chunks * in_chunk - steps, share.shape[1]), array.dtype)
        return np.concatenate([share, more]).reshape(chunks, in_chunk, -1)

    index = chunked(rows[index])
    ahead = ReadAhead(split.input.images, index.reshape(chunks, -1))  # type: ignore[attr-defined]
    filled = None if filled is None else chunked(filled)
    return Reading(drawn.step_key, index, filled, steps, size, ahead)


def _row_bytes(split: Split) -> int:
    return int(np.prod(split.input.shape[1:])) * np.dtype(split.input.dtype).itemsize


_draw = compilation.jit(batches.draw, static_argnames="rows")
