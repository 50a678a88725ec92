"""How visible a trigger is: what it changes on images, in the measures that papers print."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from bdjax.checks import InputError
from bdjax.data.augment import as_float
from bdjax.data.similarity import ssim

_BATCH = 250


class Stealth(NamedTuple):
    """Means over images of what a trigger changes; x and x' in [0, 1].

    ``psnr`` is −10 log₁₀ of the mean of (x' − x)² over images and pixels, in dB, infinite where nothing changed at all;
    ``ssim`` that of `bdjax.data.similarity`; ``linf`` and ``l2`` are max |x' − x| and ‖x' − x‖₂ of an image, and
    ``changed_share`` is the share of its pixels of which any channel changed.
    """

    psnr: float
    ssim: float
    linf: float
    l2: float
    changed_share: float

    def plain(self) -> dict[str, float | None]:
        """Return plain values for a record; None where there is no finite one."""
        plain: dict[str, float | None] = {}
        for name, value in self._asdict().items():
            plain[name] = value if math.isfinite(value) else None
        return plain


def measure(
    clean: Num[Array | np.ndarray, "n h w c"],
    triggered: Num[Array | np.ndarray, "n h w c"],
    valid: Bool[Array | np.ndarray, " n"],
) -> Stealth:
    """Compare images with and without the trigger, uint8 in [0, 255] or float in [0, 1]; only ``valid`` rows count.

    Raises:
      InputError: no row is valid.
    """
    rows = np.flatnonzero(np.asarray(valid))
    if not rows.size:
        raise InputError("valid must leave an image to compare; got none.")
    compared = _compare(jnp.asarray(clean)[rows], jnp.asarray(triggered)[rows])
    error, *others = [float(values.mean()) for values in jax.device_get(compared)]
    psnr = -10 * math.log10(error) if error else math.inf
    return Stealth(psnr, *others)


@jax.jit
def _compare(
    clean: Num[Array, "n h w c"], triggered: Num[Array, "n h w c"]
) -> tuple[Float[Array, " n"], ...]:
    def one(pair: tuple[Array, Array]) -> tuple[Array, ...]:
        image, other = map(as_float, pair)
        change = _difference(*pair)
        linf, l2 = jnp.abs(change).max(), jnp.sqrt((change**2).sum())
        share = (change != 0).any(-1).mean()
        return (change**2).mean(), ssim(image, other), linf, l2, share

    return jax.lax.map(one, (clean, triggered), batch_size=_BATCH)


def _difference(image: Num[Array, "h w c"], other: Num[Array, "h w c"]) -> Float[Array, "h w c"]:
    """Return x' − x in [−1, 1]; of 8 bits it is exactly zero where nothing changed."""
    if image.dtype == jnp.uint8:
        return (other.astype(jnp.int32) - image.astype(jnp.int32)) / 255
    return other - image
