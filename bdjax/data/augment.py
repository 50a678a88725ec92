"""Augmentation on the device: pure functions of a key and an image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from bdjax.types import HParam

AUGMENTATIONS = (
    "standard",
    "none",
    "mixup",
    "cutmix",
    "randaugment",
    "augmix",
    "cutout",
    "adversarial",
)
MOVING = ("standard", "none")  # those that compute no pixel
MIXING = ("mixup", "cutmix")  # those whose rows have two labels

# `standard` takes the first children of a step's key, one for each image and draw. Others fold in these.
OWN, ATTACK, RULE, DROPOUT = (2**32 - number for number in (1, 2, 3, 4))


def as_float(image: Num[Array, "..."]) -> Float[Array, "..."]:
    """Return uint8 images as float32 in [0, 1]; float images pass unchanged."""
    return image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image


def crop(key: Key[Array, ""], image: Num[Array, "h w c"], padding: int) -> Num[Array, "h w c"]:
    """Pad with zeros (black) on all sides and cut a window of the old size at a uniformly random place."""
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def flip(key: Key[Array, ""], image: Num[Array, "h w c"]) -> Num[Array, "h w c"]:
    """Mirror left and right with probability ½."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def cutout(
    key: Key[Array, ""], image: Float[Array, "h w c"], size: int = 16, fill: HParam = 0.0
) -> Float[Array, "h w c"]:
    """Cover one square of ``size`` pixels a side; its middle is any pixel alike, and the border clips it.

    Args:
      key: decides the place.
      image: one image in [0, 1].
      size: static; 16 is the paper's on CIFAR-10.
      fill: what the hole shows, one number or one for each channel: 0 is black. The paper's code cuts zeros out of
        *normalized* images, so its hole shows the data set's mean and is no dark
        object.

    References:
      DeVries & Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017, section 3.2.
    """
    height, width, _ = image.shape
    top, left = jax.random.randint(key, (2,), 0, jnp.array([height, width])) - size // 2
    y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
    hole = (y >= top) & (y < top + size) & (x >= left) & (x < left + size)
    return jnp.where(hole, jnp.asarray(fill, image.dtype), image)
