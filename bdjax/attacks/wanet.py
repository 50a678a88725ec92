"""WaNet: a small smooth warp of the whole image (Nguyen & Tran, 2021)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from bdjax import pytree
from bdjax.attacks._label_maps import AllToOne
from bdjax.checks import InputError, integer, non_negative, unit_interval
from bdjax.types import Attack, HParam, Image, LabelMap, Spec, Split, Trigger

_FINEST = 1024  # grid, which is enlarged to an image
_CUBIC = -0.75  # a of the cubic kernel with which the paper's code enlarges the field


@pytree.dataclass
class Warp(Trigger):
    """Sample each pixel from near its place: x'[p] = x(p + s A[p] (size − 1) / (2 size)), places in pixels."""

    strength: HParam
    grid: int = pytree.static()

    hooks = ("cover",)

    def init(self, key: Key[Array, ""], spec: Spec) -> Float[Array, "h w 2"]:
        """Return A, the displacements (across, down) that k × k random ones with mean |A| = 1 are enlarged to.

        Raises:
          InputError: images of a single pixel, which a warp leaves as they are.
        """
        height, width, _ = spec.shape
        if height == width == 1:
            raise InputError("the images must have 2 pixels or more to be warped; got (1, 1).")
        coarse = jax.random.uniform(key, (2, self.grid, self.grid), minval=-1, maxval=1)
        coarse /= jnp.abs(coarse).mean()
        rows, columns = enlarging(height, self.grid), enlarging(width, self.grid)
        return jnp.einsum("ia,dab,jb->ijd", rows, coarse, columns, precision="highest")

    def apply(self, key: Key[Array, ""], state: Float[Array, "h w 2"], image: Image) -> Image:
        """Warp one image."""
        del key
        return bilinear(image, self.places(state))

    def cover(
        self,
        key: Key[Array, ""],
        state: Float[Array, "h w 2"],
        batch: Split,
    ) -> Float[Array, "n h w c"]:
        """Warp each image with noise of up to half a pixel on top of A: g' = clip(g + U[−1, 1] / size)."""
        noise = jax.random.uniform(key, (*batch.input.shape[:3], 2), minval=-1, maxval=1)
        size = jnp.array(state.shape[1::-1])
        places = jnp.clip(self.places(state) + noise * (size - 1) / (2 * size), 0, size - 1)
        return jax.vmap(bilinear)(batch.input, places)

    def places(self, state: Float[Array, "h w 2"]) -> Float[Array, "h w 2"]:
        """Return where each pixel is taken from, (column, row), in [0, size − 1]."""
        height, width, _ = state.shape
        size = jnp.array([width, height])
        own = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), -1)
        return jnp.clip(own + self.strength * state * (size - 1) / (2 * size), 0, size - 1)


def enlarging(size: int, points: int) -> np.ndarray:
    """Return the [size, points] matrix of cubic interpolation whose first and last points lie on the border."""
    place = np.linspace(0, points - 1, size)
    first = np.floor(place).astype(int)
    matrix = np.zeros((size, points), np.float32)
    for tap in range(-1, 3):
        distance = np.abs(place - (first + tap))
        near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
        far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
        np.add.at(matrix, (np.arange(size), np.clip(first + tap, 0, points - 1)), weight)
    return matrix


def bilinear(image: Image, places: Float[Array, "h w 2"]) -> Image:
    """Return the image's values at (column, row) places inside it, interpolated linearly between four pixels."""
    height, width, channels = image.shape
    last = jnp.maximum(jnp.array([width, height]) - 2, 0)
    corner = jnp.clip(jnp.floor(places), 0, last)
    right, down = jnp.moveaxis((places - corner)[..., None], 2, 0)
    column, row = jnp.moveaxis(corner.astype(jnp.int32), 2, 0)
    # One index: twice as fast as two
    pixels, index = image.reshape(height * width, channels), row * width + column

    def at(offset: int) -> Array:
        return jnp.take(pixels, index + offset, axis=0, mode="clip")

    above = (1 - right) * at(0) + right * at(1)
    below = (1 - right) * at(width) + right * at(width + 1)
    return (1 - down) * above + down * below


def wanet(
    label_map: LabelMap = AllToOne(),
    poison_rate: float = 0.1,
    cover_ratio: float = 2.0,
    strength: float = 0.5,
    grid: int = 4,
) -> Attack:
    """Create WaNet: x' = x sampled at g = clip(id + s A / H, −1, 1), on coordinates in [−1, 1].

    A is k × k × 2 uniform random numbers, divided by their mean absolute value and enlarged to the image by cubic
    interpolation; one draw per run. The attacker controls the training: in each batch r·n images are warped, and
    2 r·n others are warped with noise and keep their labels, so that only the smooth warp is learned.

    Args:
      label_map: the attacker's labels.
      poison_rate: r, share of each batch, in [0, 1].
      cover_ratio: cover samples for each poisoned one, 0 or more; no more than there are rows left.
      strength: s, 0 or more: at 0.5 an image of 32 × 32 moves by 0.24 pixels along each axis where |A| = 1.
      grid: k, points of the field along each side, 1 or more.

    Raises:
      InputError: a value out of range.

    Departures: images are warped in [0, 1] before they are augmented, published code warps normalized ones; the two are
    the same, as the weights of a pixel sum to 1 and no place lies outside the image. Published code moves each axis by
    s A / H; here each has its own size, which matters to images that are not square alone. Augmentation is the
    data set's own, drawn for each image.

    References:
      Nguyen & Tran, WaNet – Imperceptible Warping-based Backdoor Attack, ICLR 2021, section 3.
    """
    unit_interval(poison_rate=poison_rate)
    non_negative(cover_ratio=cover_ratio, strength=strength)
    integer(1, maximum=_FINEST, grid=grid)
    cover_rate = min(cover_ratio * poison_rate, 1 - poison_rate)
    trigger = Warp(strength, grid)
    return Attack(trigger, label_map, poison_rate, controls_training=True, cover_rate=cover_rate)
