"""Pooling as PyTorch does it, over the rows and columns of maps [n, h, w, c]."""

from __future__ import annotations

import math
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from bdjax.checks import InputError
from bdjax.models._conv import Size, pair

Maps: TypeAlias = Float[Array, "n h w c"]
Pooled: TypeAlias = Float[Array, "n p q c"]


def max_pool(
    x: Maps, size: Size, stride: Size | None = None, padding: Size = 0, *, ceil_mode: bool = False
) -> Pooled:
    """Return the largest value of each window; the gradient goes to the first that is as large, row by row.

    Args:
      size: of the window in pixels, as are ``stride`` (the window's size by default) and ``padding`` (of −∞).
      ceil_mode: keep a last window that begins inside the map and ends beyond it.
    """
    window, steps, pads = pair(size), pair(stride or size), pair(padding)
    out = _out(x, window, steps, pads, ceil_mode=ceil_mode)
    x = _padded(x, window, steps, pads, out, -math.inf)
    # XLA's own gradient of a maximum over windows runs on one core, value by value.
    for axis in (2, 1):
        x = _largest(x, axis, window[axis - 1], steps[axis - 1], out[axis - 1])
    return x


def avg_pool(
    x: Maps,
    size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Pooled:
    """Return the mean of each window, summed in float32.

    Args:
      size: of the window in pixels, as are ``stride`` (the window's size by default) and ``padding`` (of zeros).
      ceil_mode: keep a last window that begins inside the map and ends beyond it; what lies beyond never counts.
      count_include_pad: whether the zeros of the padding count.
    """
    window, steps, pads = pair(size), pair(stride or size), pair(padding)
    out = _out(x, window, steps, pads, ceil_mode=ceil_mode)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = _padded(wide, window, steps, pads, out, 0.0)
    sums = lax.reduce_window(wide, 0.0, lax.add, (1, *window, 1), (1, *steps, 1), "VALID")
    counts: list[np.ndarray] = []
    for axis in (0, 1):
        counted = pads[axis] if count_include_pad else 0
        first = steps[axis] * np.arange(out[axis]) - pads[axis]
        last = np.minimum(first + window[axis], x.shape[1 + axis] + counted)
        counts.append(last - np.maximum(first, -counted))
    rows, columns = counts
    return (sums / np.float32(rows[:, None, None] * columns[:, None])).astype(x.dtype)


def adaptive_avg_pool(x: Maps, size: Size) -> Pooled:
    """Return maps of that size, each value the mean over its share of the rows and columns, summed in float32.

    The shares of a map that the size does not divide overlap; a smaller map is repeated, as is one of 1×1.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis, parts in zip((1, 2), pair(size), strict=True):
        wide = _shares(wide, axis, parts)
    return wide.astype(x.dtype)


def _shares(x: Array, axis: int, parts: int) -> Array:
    """Return the means over [⌊i·n/parts⌋, ⌈(i + 1)·n/parts⌉) of an axis of n values."""
    length = x.shape[axis]
    if length == parts:
        return x
    if length == 1:
        return jnp.repeat(x, parts, axis)
    means: list[Array] = []
    for part in range(parts):
        first, last = part * length // parts, -(-(part + 1) * length // parts)
        means.append(lax.slice_in_dim(x, first, last, axis=axis).mean(axis))
    return jnp.stack(means, axis)


def _out(
    x: Array,
    window: tuple[int, int],
    steps: tuple[int, int],
    pads: tuple[int, int],
    *,
    ceil_mode: bool,
) -> tuple[int, int]:
    """Return the number of windows down and across."""
    sizes: list[int] = []
    for length, taken, step, pad in zip(x.shape[1:3], window, steps, pads, strict=True):
        spare = length + 2 * pad - taken
        count = (-(-spare // step) if ceil_mode else spare // step) + 1
        if ceil_mode and (count - 1) * step >= length + pad:
            count -= 1
        if spare < 0 or count < 1:
            left = f"a pooling window takes {taken} pixels, and {length + 2 * pad} are left"
            raise InputError(f"the images must be larger for this network: {left}.")
        sizes.append(count)
    return sizes[0], sizes[1]


def _padded(
    x: Array,
    window: tuple[int, int],
    steps: tuple[int, int],
    pads: tuple[int, int],
    out: tuple[int, int],
    value: float,
) -> Array:
    """Return the maps with the margin that exactly so many windows cover; what no window covers is cut off."""
    margins = [(0, 0, 0)]
    for axis in (0, 1):
        covered = (out[axis] - 1) * steps[axis] + window[axis]
        margins.append((pads[axis], covered - x.shape[1 + axis] - pads[axis], 0))
    return lax.pad(x, jnp.asarray(value, x.dtype), [*margins, (0, 0, 0)])


def _largest(x: Array, axis: int, window: int, step: int, out: int) -> Array:
    """Return the largest of each window along one axis; of equals the first, and of what is no number, that."""
    found = lax.slice_in_dim(x, 0, (out - 1) * step + 1, step, axis)
    for first in range(1, window):
        value = lax.slice_in_dim(x, first, first + (out - 1) * step + 1, step, axis)
        found = jnp.where((found >= value) | jnp.isnan(found), found, value)
    return found
