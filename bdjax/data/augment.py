"""Augmentation on the device: pure functions of a key and an image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from bdjax.types import ImageSpec


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


def standard(key: Key[Array, ""], image: Num[Array, "n h w c"], spec: ImageSpec) -> Num[Array, "n h w c"]:
    """Apply the data set's standard augmentation to a batch, with a draw of its own for every image."""
    keys = jax.random.split(key, (image.shape[0], 2))
    if spec.crop_padding:
        image = jax.vmap(crop, (0, 0, None))(keys[:, 0], image, spec.crop_padding)
    return jax.vmap(flip)(keys[:, 1], image) if spec.flip else image
