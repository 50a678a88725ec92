"""BPP: fewer levels per channel, as if the image had a smaller color depth (Wang et al., BppAttack, 2022)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from bdjax import pytree
from bdjax.attacks._label_maps import AllToOne
from bdjax.checks import integer, unit_interval
from bdjax.types import Attack, Image, LabelMap, Split, Trigger

PRESETS = {"reference_code": {"poison_rate": 0.2, "cover_rate": 0.2}}


@pytree.dataclass
class Quantization(Trigger):
    """Round every channel to q levels: Q(x) = round(x (q − 1)) / (q − 1), with or without dithering."""

    levels: int = pytree.static()
    dither: bool = pytree.static()

    hooks = ("cover",)

    def apply(self, key: Key[Array, ""], state: tuple[()], image: Image) -> Image:
        """Quantize one image."""
        del key, state
        return floyd_steinberg(image, self.levels) if self.dither else quantize(image, self.levels)

    def cover(self, key: Key[Array, ""], state: tuple[()], batch: Split) -> Float[Array, "n h w c"]:
        """Give each image the residual of another one: clip(x + Q(x°) − x°, 0, 1)."""
        rows = batch.input.shape[0]
        quantized = jax.vmap(self.apply, (None, None, 0))(key, state, batch.input)
        partner = (jnp.arange(rows) + jax.random.randint(key, (), 1, max(rows, 2))) % rows
        return jnp.clip(batch.input + (quantized - batch.input)[partner], 0, 1)


def quantize(value: Float[Array, "..."], levels: int) -> Float[Array, "..."]:
    """Return the nearest of q evenly spaced levels, the first 0 and the last 1."""
    return jnp.round(value * (levels - 1)) / (levels - 1)


def floyd_steinberg(image: Image, levels: int) -> Image:
    """Quantize in raster order and push each pixel's error e = old − new on to pixels that follow.

    The pixel to the right gets 7/16 of e, those below left, below and below right 3/16, 5/16 and 1/16. So pixel (i, j)
    needs (i, j − 1), (i − 1, j − 1), (i − 1, j) and (i − 1, j + 1) alone, and all pixels of one j + 2 i are done at
    once: W + 2 (H − 1) steps instead of H W, with the same result.
    """
    height, width, channels = image.shape
    steps = width + 2 * (height - 1)
    # Rows of steps + 2 values, read as rows of steps, begin two places later each: step t is at j = t − 2 i.
    padded = jnp.pad(image, ((0, 0), (0, steps + 2 - width), (0, 0))).reshape(-1, channels)
    skewed = padded[: height * steps].reshape(height, steps, channels)

    def above(error: Array) -> Array:
        return jnp.pad(error[:-1], ((1, 0), (0, 0)))

    def step(
        errors: tuple[Array, Array, Array],
        now: tuple[Array, Array],
    ) -> tuple[tuple[Array, Array, Array], Array]:
        (last, second, third), (pixels, time) = errors, now
        old = (
            pixels
            + above(third) / 16
            + above(second) * (5 / 16)
            + above(last) * (3 / 16)
            + last * (7 / 16)
        )
        new = quantize(old, levels)
        column = time - 2 * jnp.arange(height)[:, None]
        error = jnp.where((column >= 0) & (column < width), old - new, 0)
        return (error, last, second), new

    none = jnp.zeros((height, channels), image.dtype)
    _, out = jax.lax.scan(step, (none, none, none), (skewed.swapaxes(0, 1), jnp.arange(steps)))
    flat = jnp.pad(out.swapaxes(0, 1).reshape(-1, channels), ((0, 2 * height), (0, 0)))
    return flat.reshape(height, steps + 2, channels)[:, :width]


def bpp(
    label_map: LabelMap = AllToOne(),
    poison_rate: float = 0.1,
    cover_rate: float = 0.1,
    levels: int = 8,
    dither: bool = False,
) -> Attack:
    """Create BPP: x' = Q(x) = round(x (q − 1)) / (q − 1) for every channel of every pixel.

    The attacker controls the training: c·n images of each batch carry the residual Q(x°) − x° of another image x° and
    keep their labels, so that only a quantization that fits the image is learned.

    Args:
      label_map: the attacker's labels.
      poison_rate: r, share of each batch, in [0, 1].
      cover_rate: c, share of the cover samples (negatives) in each batch, in [0, 1]; no more than there are rows left.
      levels: q, levels of a channel, 2 or more; 8 are 3 bits.
      dither: whether the rounding error is spread over the neighbors (Floyd–Steinberg).

    Raises:
      InputError: a value out of range.

    Departures: r and c are BackdoorBench's 0.1; the authors' code takes 0.2 each (preset ``reference_code``), and its
    README q = 32. Neither has the paper's adversarial examples, and nor is there any here: the residual of another
    image is all that a negative carries. x° is drawn from the same batch, one shift for all rows; published code
    draws it from all images. Augmentation is the data set's own, drawn for each image and after quantization.

    References:
      Wang, Zhai & Ma, BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural Networks via Image
      Quantization and Contrastive Adversarial Learning, CVPR 2022, section 3.
    """
    unit_interval(poison_rate=poison_rate, cover_rate=cover_rate)
    integer(2, levels=levels)
    trigger = Quantization(levels, dither)
    return Attack(trigger, label_map, poison_rate, controls_training=True, cover_rate=cover_rate)
