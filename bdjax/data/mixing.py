"""MixUp and CutMix: rows of a batch mixed in pairs, each with the labels of both."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bdjax.types import HParam


class Mixed(NamedTuple):
    """A batch each of whose rows has two labels: its own with weight λ, its partner's with 1 − λ.

    The loss of row i is λ CE(f(xᵢ), yᵢ) + (1 − λ) CE(f(xᵢ), y_π(i)), which is the cross-entropy against the soft label
    λ e_yᵢ + (1 − λ) e_y_π(i). Rows are mixed whether or not they are `valid`: one that fills up a batch is an image of
    the split with its own label, so as a partner it is as good as any.
    """

    input: Float[Array, "n ..."]
    partner: Int[Array, " n"]  # π(i), an index of the batch's rows
    weight: Float[Array, ""]  # λ in [0, 1], one for the batch


def mixup(key: Key[Array, ""], image: Float[Array, "n ..."], alpha: HParam = 1.0) -> Mixed:
    """Blend each image with another of the batch: x̃ᵢ = λ xᵢ + (1 − λ) x_π(i).

    One λ ~ Beta(α, α) and one uniformly random permutation π for the batch, as in the authors' code and NFT's; a row
    may be its own partner. Images stay in [0, 1].

    Args:
      key: decides λ and π.
      image: a batch in [0, 1].
      alpha: above 0; 1 is uniform, towards 0 images are hardly mixed; may be traced.

    References:
      Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018, eq. 2; NFT's supplement, section 3.4.
    """
    weight_key, partner_key = jax.random.split(key)
    weight = symmetric_beta(weight_key, alpha)
    partner = jax.random.permutation(partner_key, image.shape[0])
    return Mixed(weight * image + (1 - weight) * image[partner], partner, weight)


def cutmix(
    key: Key[Array, ""],
    image: Float[Array, "n h w c"],
    alpha: HParam = 1.0,
    probability: HParam = 0.5,
) -> Mixed:
    """Put a box of another image of the batch into each: the same box, and one partner, for each row.

    With λ₀ ~ Beta(α, α), the box has ⌊h √(1 − λ₀)⌋ × ⌊w √(1 − λ₀)⌋ pixels around a uniformly random pixel and is
    clipped at the border; λ is the share of pixels outside it, exactly. With probability 1 − ``probability`` nothing is
    mixed and λ = 1.

    Args:
      key: decides all draws.
      image: a batch in [0, 1].
      alpha: above 0; may be traced.
      probability: of mixing the batch, in [0, 1]; may be traced. ½ is what the authors' code takes for CIFAR.

    References:
      Yun et al., CutMix, ICCV 2019, eq. 1 and 2 and Algorithm A1. Departure: a box with an odd side keeps it, where the
      code rounds half the side down on both sides of the middle.
    """
    _, height, width, _ = image.shape
    weight_key, partner_key, place_key, coin_key = jax.random.split(key, 4)
    partner = jax.random.permutation(partner_key, image.shape[0])
    sides = jnp.array([height, width])
    size = jnp.floor(jnp.sqrt(1 - symmetric_beta(weight_key, alpha)) * sides).astype(jnp.int32)
    size = jnp.where(jax.random.bernoulli(coin_key, probability), size, 0)
    start = jax.random.randint(place_key, (2,), 0, sides) - size // 2
    y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
    inside = (y >= start[0]) & (y < start[0] + size[0]) & (x >= start[1]) & (x < start[1] + size[1])
    weight = 1 - inside.sum() / jnp.float32(height * width)
    return Mixed(jnp.where(inside, image[partner], image), partner, weight)


def symmetric_beta(key: Key[Array, ""], alpha: HParam) -> Float[Array, ""]:
    """Draw from Beta(α, α) without rejection, which compiles much faster than `jax.random.beta`.

    If T follows Student's t with 2α degrees of freedom, ½ + ½ T / √(2α + T²) follows Beta(α, α); and
    T² = 2α (U^(−1/α) − 1) cos²(2πV) with U, V uniform (Bailey, Polar Generation of Random Variates with the
    t-Distribution, 1994).
    """
    u, v = jax.random.uniform(key, (2,))
    cos = jnp.cos(2 * jnp.pi * v)
    ratio = jnp.expm1(-jnp.log1p(-u) / alpha) * cos**2  # T² / 2α, in [0, ∞]
    return 0.5 + 0.5 * jnp.sign(cos) / jnp.sqrt(1 + 1 / ratio)
