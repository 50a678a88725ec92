"""Blended: a faint picture over the whole image (Chen et al., Targeted Backdoor Attacks, 2017)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from bdjax import pytree
from bdjax.attacks import _pictures
from bdjax.attacks._label_maps import AllToOne, rate_counts
from bdjax.checks import unit_interval
from bdjax.types import Attack, HParam, Image, LabelMap, Spec, Trigger

PRESETS = {"ft_sam": {"alpha": 0.1}, "reference_code": {"candidates": "changed"}}
FILES = {"trigger_image": ()}  # options that name a file, and the words that do not


class Cutout(NamedTuple):
    """A picture with transparent parts, which leave the image as it is."""

    picture: Image
    opacity: Float[Array, "h w 1"]


@pytree.dataclass
class Blend(Trigger):
    """Mix every pixel with a fixed picture: x' = (1 − α) x + α T; of opacity m, x' = (1 − α m) x + α m T."""

    alpha: HParam
    trigger_image: str | None = pytree.static(default=None)

    def init(self, key: Key[Array, ""], spec: Spec) -> Image | Cutout:
        """Return T in [0, 1]: uniform random pixels drawn from the key, or the image file at the images' size."""
        if self.trigger_image is None:
            return jax.random.uniform(key, spec.shape)
        pixels, opacity = _pictures.read(self.trigger_image, spec.shape, "trigger_image")
        picture = jnp.asarray(pixels)
        return picture if opacity is None else Cutout(picture, jnp.asarray(opacity))

    def apply(self, key: Key[Array, ""], state: Image | Cutout, image: Image) -> Image:
        """Put the trigger on one image."""
        del key
        if isinstance(state, Cutout):
            weight = self.alpha * state.opacity
            return (1 - weight) * image + weight * state.picture
        return (1 - self.alpha) * image + self.alpha * state


def blended(
    label_map: LabelMap = AllToOne(),
    poison_rate: float = 0.1,
    alpha: float = 0.2,
    test_alpha: float | None = None,
    trigger_image: str | None = None,
    candidates: str = "all",
) -> Attack:
    """Create Blended: x' = (1 − α) x + α T over the whole image.

    T is uniform random noise, one draw per run, as SFT and NFT use; FT-SAM and Grad-Prune blend a cartoon (bring one
    of your own as ``trigger_image``). α is 0.2 in the code of all of them; FT-SAM's supplement prints 0.1 (preset
    ``ft_sam``).

    Args:
      label_map: the attacker's labels.
      poison_rate: share of the candidates, in [0, 1].
      alpha: strength α of the trigger in training, in [0, 1].
      test_alpha: strength at test time; the same by default.
      trigger_image: path of a picture, resized to the images' size without regard to its proportions. Its content is
        part of what a run is made of; what is transparent in it leaves the image as it is.
      candidates: who may be poisoned: ``all`` images, or those whose label the map changes (``changed``).

    Raises:
      InputError: a value out of range; an unreadable picture (when the trigger is initialized).

    Departures: SFT's and NFT's code poisons a share of the images that are not of the target class (preset
    ``reference_code``), the paper says of all.

    References:
      Chen, Liu, Li, Lu & Song, Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning, 2017, 4.3.
    """
    unit_interval(poison_rate=poison_rate, alpha=alpha)
    rate_of = rate_counts(candidates)
    test_trigger = None
    if test_alpha is not None:
        unit_interval(test_alpha=test_alpha)
        test_trigger = Blend(test_alpha, trigger_image)
    trigger = Blend(alpha, trigger_image)
    return Attack(
        trigger,
        label_map,
        poison_rate,
        test_trigger=test_trigger,
        rate_of=rate_of,
        candidates=candidates,
    )
