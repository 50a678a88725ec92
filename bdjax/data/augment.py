"""Augmentation on the device: pure functions of a key and an image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from bdjax.checks import one_of
from bdjax.data import mixing
from bdjax.data.mixing import Mixed
from bdjax.data.randaugment import augmix, randaugment
from bdjax.types import HParam, ImageSpec

AUGMENTATIONS = ("standard", "none", "mixup", "cutmix", "randaugment", "augmix", "cutout", "adversarial")
MOVING = ("standard", "none")  # those that compute no pixel
MIXING = ("mixup", "cutmix")  # those whose rows have two labels

# `standard` takes the first children of a step's key, one for each image and draw. Others fold in these.
OWN, ATTACK, RULE = (2**32 - number for number in (1, 2, 3))


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


def cutout(
    key: Key[Array, ""], image: Float[Array, "h w c"], size: int = 16, fill: HParam = 0.0
) -> Float[Array, "h w c"]:
    """Cover one square of ``size`` pixels a side; its middle is any pixel alike, and the border clips it.

    Args:
      key: decides the place.
      image: one image in [0, 1].
      size: static; 16 is the paper's on CIFAR-10.
      fill: what the hole shows, one number or one for each channel: 0 is black. The paper's code cuts zeros out of
        *normalized* images, so its hole shows the data set's mean (`ImageSpec.mean`) and is no dark object.

    References:
      DeVries & Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017, section 3.2.
    """
    height, width, _ = image.shape
    top, left = jax.random.randint(key, (2,), 0, jnp.array([height, width])) - size // 2
    y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
    hole = (y >= top) & (y < top + size) & (x >= left) & (x < left + size)
    return jnp.where(hole, jnp.asarray(fill, image.dtype), image)


def augmented(
    key: Key[Array, ""], image: Num[Array, "n h w c"], spec: ImageSpec, name: str, alpha: HParam = 1.0
) -> Mixed:
    """Return a training batch as float32 in [0, 1], augmented in one of the ways that NFT compares.

    Every name but ``none`` starts with `standard` under the same key, and ``standard`` is nothing else, to the bit.
    ``mixup`` and ``cutmix`` then mix the batch's rows, so that each row has two labels (`Mixed`; for the other names
    the partner is the row itself, with weight 1). ``randaugment``, ``augmix`` and ``cutout`` change each row by a draw
    of its own, with NFT's settings; Cutout's hole has half the images' shorter side (16 pixels on CIFAR-10) and shows
    the data set's mean. ``adversarial`` needs the network: it is ``standard`` here, and the learner adds
    `bdjax.optim.pgd.pgd`.

    Args:
      key: decides everything.
      image: a batch, uint8 in [0, 255] or float32 in [0, 1].
      spec: the images'.
      name: one of `AUGMENTATIONS`; static.
      alpha: of Beta(α, α) in MixUp and CutMix, above 0; may be traced.

    Raises:
      InputError: unknown name.

    References:
      NFT's supplement, section 3.4 and Table 7.
    """
    one_of(AUGMENTATIONS, name=name)
    return mixed(key, moved(key, image, spec, name), spec, name, alpha)


def moved(key: Key[Array, ""], image: Num[Array, "n h w c"], spec: ImageSpec, name: str) -> Num[Array, "n h w c"]:
    """Return what `augmented` starts with: pixels that were moved and keep their type, none computed."""
    return image if name == "none" else standard(key, image, spec)


def mixed(key: Key[Array, ""], image: Num[Array, "n h w c"], spec: ImageSpec, name: str, alpha: HParam = 1.0) -> Mixed:
    """Return what `augmented` makes of `moved` images, under the same key."""
    rows = image.shape[0]
    image = as_float(image)
    own_key = jax.random.fold_in(key, OWN)
    keys = jax.random.split(own_key, rows)
    match name:
        case "mixup":
            return mixing.mixup(own_key, image, alpha)
        case "cutmix":
            return mixing.cutmix(own_key, image, alpha)
        case "randaugment":
            image = jax.vmap(randaugment)(keys, image)
        case "augmix":
            image = jax.vmap(augmix)(keys, image)
        case "cutout":
            size, mean = min(spec.shape[:2]) // 2, jnp.array(spec.mean)
            image = jax.vmap(cutout, (0, 0, None, None))(keys, image, size, mean)
    return Mixed(image, jnp.arange(rows), jnp.float32(1))
