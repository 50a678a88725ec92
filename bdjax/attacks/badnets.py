"""BadNets: a small patch in a corner (Gu et al., BadNets, 2017)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from bdjax import pytree
from bdjax.attacks._label_maps import AllToOne
from bdjax.checks import InputError, integer, one_of, unit_interval
from bdjax.types import Attack, ImageSpec, LabelMap

CORNERS = ("bottom_right", "bottom_left", "top_right", "top_left")
PATTERNS = ("white", "checkerboard")


@pytree.dataclass
class Patch:
    """A square of s × s pixels that replaces the image in one corner; white, or white where row + column is even."""

    size: int = pytree.static()
    corner: str = pytree.static()
    pattern: str = pytree.static()

    def init(self, key: Key[Array, ""], spec: ImageSpec) -> Float[Array, "s s 1"]:
        """Return the patch's pixels in [0, 1].

        Raises:
          InputError: the patch is larger than the image.
        """
        del key
        if self.size > min(spec.shape[:2]):
            raise InputError(f"size must be at most {min(spec.shape[:2])}, the image's; got {self.size}.")
        if self.pattern == "white":
            return jnp.ones((self.size, self.size, 1))
        row, column = jnp.indices((self.size, self.size))
        return ((row + column) % 2 == 0).astype(jnp.float32)[..., None]

    def apply(
        self, key: Key[Array, ""], state: Float[Array, "s s 1"], image: Float[Array, "h w c"]
    ) -> Float[Array, "h w c"]:
        """Put the patch on one image."""
        del key
        height, width, channels = image.shape
        top = height - self.size if self.corner.startswith("bottom") else 0
        left = width - self.size if self.corner.endswith("right") else 0
        patch = jnp.broadcast_to(state, (self.size, self.size, channels)).astype(image.dtype)
        return image.at[top : top + self.size, left : left + self.size].set(patch)


def badnets(
    label_map: LabelMap = AllToOne(),
    poison_rate: float = 0.1,
    size: int = 3,
    corner: str = "bottom_right",
    pattern: str = "white",
) -> Attack:
    """Create BadNets: x'[p] = patch[p] inside an s × s corner, x[p] elsewhere.

    The defaults are FT-SAM's and Grad-Prune's: 3 × 3 white pixels in the lower right corner (6 × 6 on Tiny-ImageNet).
    SFT and NFT draw a checkerboard in the lower left corner.

    Args:
      label_map: the attacker's labels.
      poison_rate: share of the whole training split, in [0, 1].
      size: side of the patch in pixels.
      corner: ``bottom_right``, ``bottom_left``, ``top_right`` or ``top_left``.
      pattern: ``white`` or ``checkerboard`` (white and black, white in its own top left pixel).

    Raises:
      InputError: a value out of range.

    Departure: BackdoorBench resizes a 32 × 32 trigger image, which makes a 7 × 7 ramp at 64 × 64; here the patch is
    drawn at its size.
    """
    unit_interval(poison_rate=poison_rate)
    integer(1, size=size)
    one_of(CORNERS, corner=corner)
    one_of(PATTERNS, pattern=pattern)
    return Attack(Patch(size, corner, pattern), label_map, poison_rate)
