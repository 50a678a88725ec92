"""Images that are read when they are needed, by row and ahead of time. The only importer of grain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import Array, Int, Num

from bdjax.checks import InputError

THREADS = 2  # that read at once: what reads images lets go of the interpreter lock
AHEAD = 4  # chunks that are read before they are asked for

Rows = Int[np.ndarray, " k"]


@runtime_checkable
class ReadByRow(Protocol):
    """Images [n, h, w, c] that can be read by row: a NumPy array, a memory-mapped one, or what decodes a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def nbytes(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any:
        """Return the images of these rows, in that order, as a new array on the host."""
        ...


class Selection:
    """Some rows of other images, read when they are asked for."""

    def __init__(self, images: ReadByRow, rows: Rows):
        self._images, self._rows = images, rows
        self.shape, self.dtype = (len(rows), *images.shape[1:]), images.dtype
        self.nbytes = images.nbytes // max(len(images), 1) * len(rows)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Rows) -> np.ndarray:
        return self._images[self._rows[rows]]


@dataclasses.dataclass(frozen=True)
class Stream:
    """Images that stay where they are, and what is done on the device to those that were read.

    It stands in a ``Split`` for the array of images.

    Attributes:
      images: where they are.
      change: called inside compiled code with images [k, h, w, c] and their rows [k]; a pytree, so that an equal one
        compiles nothing. None leaves them as they are.
    """

    images: ReadByRow
    change: Callable[[Num[Array, "k h w c"], Int[Array, " k"]], Num[Array, "k h w c"]] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape [n, h, w, c] of all of them."""
        return self.images.shape

    @property
    def dtype(self) -> np.dtype:
        """Type of a value."""
        return self.images.dtype


class ReadAhead:
    """An iterator over chunks of images, in the order of ``chunks``: threads read before it is asked.

    Which images are next depends on the arguments alone. ``close`` ends the threads.
    """

    def __init__(self, images: ReadByRow, chunks: Int[np.ndarray, "chunks k"]):
        grain = require_grain()
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
        self._iterator = iter(
            grain.MapDataset.source(_Chunks(images, chunks)).to_iter_dataset(options)
        )
        self._iterator.start_prefetch()

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        return next(self._iterator)

    def close(self) -> None:
        """Read no further."""
        self._iterator.close()


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """A source for grain whose elements are chunks: one call reads many rows."""

    images: ReadByRow
    chunks: Int[np.ndarray, "chunks k"]

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: SupportsIndex) -> np.ndarray:
        return self.images[self.chunks[number]]


def require_grain() -> ModuleType:
    """Return grain.

    Raises:
      InputError: it is not installed.
    """
    try:
        import grain
    except ImportError as error:
        remedy = "run: pip install 'bdjax[data]'"
        raise InputError(f"streaming needs the extra 'data' ({error}); {remedy}.") from error
    return grain
