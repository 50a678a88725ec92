"""RandAugment and AugMix: random sequences of image operations, drawn and applied on the device."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bdjax.data import operations
from bdjax.types import HParam


class Scale(NamedTuple):
    """How strong an operation is at a level s in [0, 1]: start + s · span, or start ± s · span with a random sign."""

    start: float = 0.0
    span: float = 0.0
    signed: bool = False


RANDAUGMENT = {
    "identity": Scale(),
    "autocontrast": Scale(),
    "equalize": Scale(),
    "posterize": Scale(8, -4),
    "solarize": Scale(256, -256),
    "color": Scale(1, 0.9, signed=True),
    "contrast": Scale(1, 0.9, signed=True),
    "brightness": Scale(1, 0.9, signed=True),
    "sharpness": Scale(1, 0.9, signed=True),
    "rotate": Scale(0, 30, signed=True),
    "shear_x": Scale(0, 0.3, signed=True),
    "shear_y": Scale(0, 0.3, signed=True),
    "translate_x": Scale(0, 150 / 331, signed=True),
    "translate_y": Scale(0, 150 / 331, signed=True),
}
AUGMIX = {
    "identity": Scale(),  # never drawn: it fills up the shorter chains
    "autocontrast": Scale(),
    "equalize": Scale(),
    "posterize": Scale(4, -4),
    "solarize": Scale(256, -256),
    "rotate": Scale(0, 30, signed=True),
    "shear_x": Scale(0, 0.3, signed=True),
    "shear_y": Scale(0, 0.3, signed=True),
    "translate_x": Scale(0, 1 / 3, signed=True),
    "translate_y": Scale(0, 1 / 3, signed=True),
}
_DEPTH = 3  # AugMix: operations in the longest chain


def randaugment(
    key: Key[Array, ""], image: Float[Array, "h w c"], num_ops: int = 4, magnitude: HParam = 10.0
) -> Float[Array, "h w c"]:
    """Apply ``num_ops`` operations, each drawn uniformly and with replacement from `RANDAUGMENT`'s 14.

    Amounts follow from the level s = magnitude / 30: turns of ±30 s degrees, shears of ±0.3 s, shifts of ±150/331 s of
    the side, color, contrast, brightness and sharpness by the factor 1 ± 0.9 s, solarize from level 256 (1 − s) on,
    posterize to ⌈8 − 4 s⌉ bits. Signs are fair coins. With magnitude 0 all but autocontrast and equalize leave an 8-bit
    image as it is. The result has the image's shape and lies in [0, 1]; one channel works.

    Args:
      key: decides operations and signs.
      image: one image in [0, 1]; map over a batch with a key for each.
      num_ops: operations in sequence; static.
      magnitude: in [0, 30]; may be traced.

    References:
      Cubuk et al., RandAugment, CVPR Workshops 2020, section 3 and Figure 2. The paper leaves the scales to its code,
      and codes differ. Departures from the one that NFT names (ildoonet/pytorch-randaugment): the paper's 14 operations
      and not its 16; a larger magnitude is never weaker (there the factors run from 0.1 to 1.9, and posterize and
      solarize from strong to weak); shifts are shares of the side, where the code's are up to 100 pixels, which
      leaves nothing of a CIFAR image from magnitude 10 on; bilinear and not nearest warps; no rounding to 8 bits
      between operations.
    """
    which, side = jax.random.uniform(key, (2, num_ops))
    choice = _below(len(RANDAUGMENT), which)
    return _sequence(
        RANDAUGMENT, choice, _amounts(RANDAUGMENT, choice, magnitude / 30, side), image
    )


def augmix(
    key: Key[Array, ""], image: Float[Array, "h w c"], severity: HParam = 5.0, width: int = 3
) -> Float[Array, "h w c"]:
    """Mix the image with a mixture of chains of operations: m Σᵢ wᵢ chainᵢ(x) + (1 − m) x.

    w ~ Dirichlet(1, …, 1) over ``width`` chains and m ~ Beta(1, 1). A chain has one to three operations of `AUGMIX`,
    each drawn uniformly with a level u / 10, u ~ U(0.1, severity): turns of ±3 u degrees, shears of ±0.03 u, shifts of
    ±u/30 of the side, solarize from level 256 − 25.6 u on, posterize to ⌈4 − 0.4 u⌉ bits (it is never the identity);
    signs are fair coins. AugMix leaves out color, contrast, brightness and sharpness, which its benchmark tests.

    Args:
      key: decides all of this.
      image: one image in [0, 1]; map over a batch with a key for each.
      severity: in [0.1, 10]; may be traced.
      width: chains; static.

    References:
      Hendrycks et al., AugMix, ICLR 2020, Algorithm 1 and its code; severity 5 and three chains are NFT's. Without the
      consistency loss, as in NFT. Departures: turns and shifts are not cut to whole degrees and pixels, and images are
      not rounded to 8 bits between operations.
    """
    # One draw for everything: each call of the generator takes longer to compile than the operations.
    which, strength, side, rest = jax.random.uniform(key, (4, width, _DEPTH))
    depth = 1 + _below(_DEPTH, rest[:, :1])
    choice = jnp.where(jnp.arange(_DEPTH) < depth, 1 + _below(len(AUGMIX) - 1, which), 0)
    amount = _amounts(AUGMIX, choice, (0.1 + (severity - 0.1) * strength) / 10, side)
    chains = jax.vmap(lambda choice, amount: _sequence(AUGMIX, choice, amount, image))(
        choice, amount
    )
    # Exponential: Dirichlet(1, …, 1) once divided by their sum
    weight = jnp.maximum(-jnp.log1p(-rest[:, 1]), 1e-9)
    mixture = jnp.sum((weight / weight.sum())[:, None, None, None] * chains, axis=0)
    share = rest[0, 2]
    # The weights' sum is 1 but for rounding
    return jnp.clip(share * mixture + (1 - share) * image, 0, 1)


def _below(count: int, uniform: Float[Array, "*k"]) -> Int[Array, "*k"]:
    """Return a whole number in [0, count) from each uniform number in [0, 1)."""
    return jnp.floor(count * uniform).astype(jnp.int32)


def _amounts(
    scales: dict[str, Scale], choice: Int[Array, "*k"], level: HParam, side: Float[Array, "*k"]
) -> Float[Array, "*k"]:
    """Return what the chosen operations take at a level in [0, 1]; the sign is minus where ``side`` is below ½."""
    start, span, signed = (
        jnp.array(column, jnp.float32)[choice] for column in zip(*scales.values(), strict=True)
    )
    return start + jnp.where((signed > 0) & (side < 0.5), -1, 1) * span * level


def _sequence(
    scales: dict[str, Scale],
    choice: Int[Array, " k"],
    amount: Float[Array, " k"],
    image: Float[Array, "h w c"],
) -> Float[Array, "h w c"]:
    """Apply the chosen operations one after the other; a scan, so that they are compiled once."""

    def step(image: Array, operation: tuple[Array, Array]) -> tuple[Array, None]:
        return operations.apply(tuple(scales), *operation, image), None

    return jax.lax.scan(step, image, (choice, amount))[0]
