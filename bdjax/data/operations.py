"""The image operations that RandAugment and AugMix are made of: one image in, one image of the same shape out.

Images are float32 in [0, 1] with any number of channels. The operations are Pillow's, which the papers' code calls, but
nothing is rounded to 8 bits except where an operation is about the 8-bit levels (`equalize`, `posterize`): on an 8-bit
image one operation is within two levels of Pillow's. Every warp is bilinear.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bdjax.types import HParam

Image = Float[Array, "h w c"]
Matrix = tuple[HParam, HParam, HParam, HParam, HParam, HParam]

# --- values ----------------------------------------------------------------------------------------------------------


def autocontrast(image: Image) -> Image:
    """Stretch each channel linearly to [0, 1]; a channel of one value stays as it is."""
    low, high = image.min((0, 1)), image.max((0, 1))
    return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1), image)


def equalize(image: Image) -> Image:
    """Spread each channel's 256 levels so that its histogram is as flat as a map of the levels makes it.

    With B(v) pixels below level v, n pixels, and n_max of them on the highest level that occurs: v becomes
    min(⌊(⌊s/2⌋ + B(v)) / s⌋, 255) for the step s = ⌊(n − n_max) / 255⌋. With s = 0, as in every image of fewer than 256
    pixels, the channel stays as it is.
    """
    return jax.vmap(_equalize, in_axes=2, out_axes=2)(image)


def _equalize(channel: Float[Array, "h w"]) -> Float[Array, "h w"]:
    level = _levels(channel)
    count = jnp.zeros(256, jnp.int32).at[level].add(1)
    step = (channel.size - count[level.max()]) // 255
    below = jnp.cumsum(count) - count
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table[level] / 255, channel)


def posterize(image: Image, bits: HParam) -> Image:
    """Keep the leading ⌈bits⌉ of 8 bits of every value; ``bits`` in [0, 8]."""
    dropped = 8 - jnp.ceil(bits).astype(jnp.int32)
    return ((_levels(image) >> dropped) << dropped) / jnp.float32(255)


def solarize(image: Image, threshold: HParam) -> Image:
    """Invert, x → 1 − x, what is not below the threshold, a level in [0, 256]; 256 inverts nothing."""
    return jnp.where(255 * image < threshold, image, 1 - image)


def color(image: Image, factor: HParam) -> Image:
    """Move away from the gray image (ITU-R 601 luma): 0 is gray, 1 the image. One channel stays as it is."""
    return _extrapolated(_gray(image), image, factor)


def contrast(image: Image, factor: HParam) -> Image:
    """Move away from the mean of the gray image: 0 is flat, 1 the image."""
    return _extrapolated(_gray(image).mean(), image, factor)


def brightness(image: Image, factor: HParam) -> Image:
    """Move away from black: 0 is black, 1 the image."""
    return _extrapolated(0, image, factor)


def sharpness(image: Image, factor: HParam) -> Image:
    """Move away from a 3×3 blur (weight 5 in the middle, 1 around; the border is not blurred): 1 is the image."""
    height, width = image.shape[:2]
    near = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    places = itertools.product(range(3), range(3))
    sums = sum(near[y : y + height, x : x + width] for y, x in places)
    inner = np.zeros((height, width, 1), bool)
    inner[1:-1, 1:-1] = True
    return _extrapolated(jnp.where(inner, (sums + 4 * image) / 13, image), image, factor)


def _levels(image: Float[Array, "..."]) -> Int[Array, "..."]:
    return jnp.round(255 * image).astype(jnp.int32)


def _gray(image: Image) -> Float[Array, "h w 1"]:
    if image.shape[-1] != 3:
        return image.mean(-1, keepdims=True)
    red, green, blue = jnp.split(image, 3, axis=-1)
    return 0.299 * red + 0.587 * green + 0.114 * blue  # no matrix product, which some devices round


def _extrapolated(start: Array | int, image: Image, factor: HParam) -> Image:
    """Return start + factor (image − start) in [0, 1], exactly the image for factor 1."""
    return jnp.clip(factor * image + (1 - factor) * start, 0, 1)


# --- places ----------------------------------------------------------------------------------------------------------


def warp(image: Image, matrix: Matrix) -> Image:
    """Fill the pixel at (x, y) from (a x + b y + c, d x + e y + f), bilinearly; matrix = (a, b, c, d, e, f).

    Coordinates are in pixels from the upper left corner, so pixel centres lie at ½. What comes from outside the image
    is black; within half a pixel of the border the border's values count alone.
    """
    height, width = image.shape[:2]
    a, b, c, d, e, f = matrix
    y, x = jnp.arange(height)[:, None] + 0.5, jnp.arange(width)[None] + 0.5
    u, v = a * x + b * y + c, d * x + e * y + f
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    left, top = jnp.floor(u - 0.5), jnp.floor(v - 0.5)
    right_share, low_share = (u - 0.5 - left)[..., None], (v - 0.5 - top)[..., None]
    left, right = _beside(left, width)
    top, bottom = _beside(top, height)
    upper = (1 - right_share) * image[top, left] + right_share * image[top, right]
    lower = (1 - right_share) * image[bottom, left] + right_share * image[bottom, right]
    return jnp.where(inside[..., None], (1 - low_share) * upper + low_share * lower, 0)


def _beside(place: Float[Array, "h w"], side: int) -> tuple[Int[Array, "h w"], Int[Array, "h w"]]:
    """Return the two pixels that a place lies between, within the image."""
    first = place.astype(jnp.int32)
    return jnp.clip(first, 0, side - 1), jnp.clip(first + 1, 0, side - 1)


def rotate(image: Image, degrees: HParam) -> Image:
    """Turn counterclockwise about the middle; corners that come from outside are black."""
    return warp(image, _rotation(degrees, image.shape))


def shear_x(image: Image, slope: HParam) -> Image:
    """Fill (x, y) from (x + slope · y, y): the upper border stays."""
    return warp(image, _shear_x(slope, image.shape))


def shear_y(image: Image, slope: HParam) -> Image:
    """Fill (x, y) from (x, y + slope · x): the left border stays."""
    return warp(image, _shear_y(slope, image.shape))


def translate_x(image: Image, share: HParam) -> Image:
    """Fill (x, y) from (x + share · width, y): a positive share moves the image to the left."""
    return warp(image, _translation_x(share, image.shape))


def translate_y(image: Image, share: HParam) -> Image:
    """Fill (x, y) from (x, y + share · height): a positive share moves the image up."""
    return warp(image, _translation_y(share, image.shape))


def _rotation(degrees: HParam, shape: tuple[int, ...]) -> Matrix:
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    y, x = shape[0] / 2, shape[1] / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


def _shear_x(slope: HParam, shape: tuple[int, ...]) -> Matrix:
    del shape
    return 1, slope, 0, 0, 1, 0


def _shear_y(slope: HParam, shape: tuple[int, ...]) -> Matrix:
    del shape
    return 1, 0, 0, slope, 1, 0


def _translation_x(share: HParam, shape: tuple[int, ...]) -> Matrix:
    return 1, 0, share * shape[1], 0, 1, 0


def _translation_y(share: HParam, shape: tuple[int, ...]) -> Matrix:
    return 1, 0, 0, 0, 1, share * shape[0]


# --- one of several --------------------------------------------------------------------------------------------------

_VALUES: dict[str, Callable[[Array, Array], Array]] = {
    "identity": lambda image, amount: image,
    "autocontrast": lambda image, amount: autocontrast(image),
    "equalize": lambda image, amount: equalize(image),
    "posterize": posterize,
    "solarize": solarize,
    "color": color,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
}
_MATRICES: dict[str, Callable[[Array, tuple[int, ...]], Matrix]] = {
    "rotate": _rotation,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translation_x,
    "translate_y": _translation_y,
}
NAMES = (*_VALUES, *_MATRICES)


def apply(names: tuple[str, ...], choice: Int[Array, ""], amount: HParam, image: Image) -> Image:
    """Return ``names[choice]`` applied to the image with the amount that is its argument.

    Under ``vmap`` every branch is computed and one is kept, so the warps, the dearest, are one branch: what differs
    between them is six numbers.

    Args:
      names: static; of `NAMES`, and in that order (the warps last).
      choice: an index of ``names``; may be traced.
      amount: may be traced; what it means depends on the operation (`posterize`'s bits, `rotate`'s degrees, …).
      image: in [0, 1].
    """
    values = [_VALUES[name] for name in names if name in _VALUES]
    matrices = [_MATRICES[name] for name in names if name in _MATRICES]

    def warped(image: Array, amount: Array) -> Array:
        branches = [
            lambda amount, f=f: jnp.array(f(amount, image.shape), image.dtype) for f in matrices
        ]
        return warp(image, tuple(jax.lax.switch(choice - len(values), branches, amount)))

    branches = [*values, warped] if matrices else values
    return jax.lax.switch(
        jnp.minimum(choice, len(values)), branches, image, jnp.asarray(amount, image.dtype)
    )
