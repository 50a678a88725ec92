"""BadNets: a small patch in a corner (Gu et al., BadNets, 2017)."""

from __future__ import annotations

import os
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from bdjax import pytree
from bdjax.attacks import _pictures
from bdjax.attacks._label_maps import AllToOne, rate_counts
from bdjax.checks import InputError, integer, one_of, unit_interval
from bdjax.types import Attack, HParam, Image, LabelMap, Spec, Trigger

CORNERS = ("bottom_right", "bottom_left", "top_right", "top_left")
PATTERNS = ("white", "checkerboard", "sft")
FILES = {"pattern": PATTERNS}  # options that name a file, and the words that do not
PRESETS = {
    "sft": {"corner": "bottom_left", "pattern": "sft", "opacity": 0.6},
    "reference_code": {
        "corner": "bottom_right",
        "pattern": "sft",
        "opacity": 0.6,
        "candidates": "changed",
    },
}
_SFT = ((0, 0, 1), (0, 1, 0), (1, 0, 1))


class Placed(NamedTuple):
    """The patch at the image's size: as a whole image it is mixed in one pass, which a cut-out corner is not."""

    patch: Image
    inside: Bool[Array, "h w c"]


class Cutout(NamedTuple):
    """A patch with transparent parts, which leave the image as it is: at the image's size, as `Placed`."""

    patch: Image
    opacity: Image  # 0 outside


@pytree.dataclass
class Patch(Trigger):
    """A square T of s × s pixels in one corner: x'[p] = (1 − α) x[p] + α T[p] inside it.

    Of a picture with opacity m, x'[p] = (1 − α m[p]) x[p] + α m[p] T[p].
    """

    opacity: HParam
    size: int | None = pytree.static()
    corner: str = pytree.static()
    pattern: str = pytree.static()

    def init(self, key: Key[Array, ""], spec: Spec) -> Placed | Cutout:
        """Return T in its corner of an image, with values in [0, 1], and where that is.

        Raises:
          InputError: the patch is larger than the image, or it is a picture that cannot be read.
        """
        del key
        height, width, channels = spec.shape
        side = min(height, width)
        size = max(3, round(3 * side / 32)) if self.size is None else self.size
        if size > side:
            raise InputError(f"size must be at most {side}, the image's; got {size}.")
        above = height - size if self.corner.startswith("bottom") else 0
        left = width - size if self.corner.endswith("right") else 0
        room = ((above, height - size - above), (left, width - size - left), (0, 0))
        if self.pattern in PATTERNS:
            patch = jnp.repeat(self._drawn(size), channels, -1)
            return Placed(jnp.pad(patch, room), jnp.pad(jnp.ones_like(patch, bool), room))
        pixels, opacity = _pictures.read(self.pattern, (size, size, channels), "pattern")
        patch = jnp.pad(jnp.asarray(pixels), room)
        if opacity is None:
            return Placed(patch, jnp.pad(jnp.ones(pixels.shape, bool), room))
        return Cutout(patch, jnp.pad(jnp.repeat(jnp.asarray(opacity), channels, -1), room))

    def apply(self, key: Key[Array, ""], state: Placed | Cutout, image: Image) -> Image:
        """Put the patch on one image."""
        del key
        if isinstance(state, Cutout):
            weight = self.opacity * state.opacity
            return (1 - weight) * image + weight * state.patch
        mixed = (1 - self.opacity) * image + self.opacity * state.patch
        return jnp.where(state.inside, mixed, image)

    def _drawn(self, size: int) -> Float[Array, "s s 1"]:
        row, column = jnp.indices((size, size))
        match self.pattern:
            case "checkerboard":
                patch = (row + column) % 2 == 0
            case "sft":
                patch = jnp.array(_SFT)[3 * row // size, 3 * column // size]
            case _:
                patch = jnp.ones((size, size))
        return patch.astype(jnp.float32)[..., None]


def badnets(
    label_map: LabelMap = AllToOne(),
    poison_rate: float = 0.1,
    size: int | None = None,
    corner: str = "bottom_right",
    pattern: str = "white",
    opacity: float = 1.0,
    candidates: str = "all",
) -> Attack:
    """Create BadNets: x'[p] = (1 − α) x[p] + α T[p] inside an s × s corner, x[p] elsewhere.

    The defaults are FT-SAM's and Grad-Prune's: white pixels in the lower right corner, 3 × 3 at 32 × 32 and 6 × 6 on
    Tiny-ImageNet. SFT and NFT draw the pattern ``sft`` in the lower left corner (preset ``sft``).

    Args:
      label_map: the attacker's labels.
      poison_rate: share of the candidates, in [0, 1].
      size: s, side of the patch in pixels, at most the image's; by default 3 / 32 of the image's, and no less than 3.
      corner: ``bottom_right``, ``bottom_left``, ``top_right`` or ``top_left``.
      pattern: T: ``white``; ``checkerboard``, white where row + column is even; or ``sft``, whose rows are black black
        white, black white black and white black white, each cell as large as the patch needs. Or the path of a
        picture, with a ``/`` or a suffix in it, which is resized to s × s; its content is part of what a run is made
        of, and what is transparent in it leaves the image as it is.
      opacity: α, in [0, 1]: 1 replaces the pixels.
      candidates: who may be poisoned: ``all`` images, or those whose label the map changes (``changed``).

    Raises:
      InputError: a value out of range; a picture that cannot be read (when the trigger is initialized).

    Departures: below 32 pixels the patch stays 3 × 3, so on 8 × 8 digits it covers a seventh of the image.
    BackdoorBench resizes a 32 × 32 trigger image, which makes a 7 × 7 ramp at 64 × 64; here the patch is drawn at its
    size. SFT's papers say the lower left corner and no opacity; their code, the preset ``reference_code``, takes the
    lower right one, α = 0.6, and poisons a share of the images that are not of the target class. The preset ``sft``
    has the papers' corner and candidates and the code's α.

    References:
      Gu, Dolan-Gavitt & Garg, BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain, 2017.
    """
    unit_interval(poison_rate=poison_rate, opacity=opacity)
    if size is not None:
        integer(1, size=size)
    one_of(CORNERS, corner=corner)
    if not _is_path(pattern):
        one_of(PATTERNS, pattern=pattern)
    rate_of = rate_counts(candidates)
    trigger = Patch(opacity, size, corner, pattern)
    return Attack(trigger, label_map, poison_rate, rate_of=rate_of, candidates=candidates)


def _is_path(pattern: str) -> bool:
    """Return whether a pattern looks like a file's path; a misspelled word does not."""
    return bool(os.path.dirname(pattern) or os.path.splitext(pattern)[1])
