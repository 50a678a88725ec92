"""Blended: a faint picture over the whole image (Chen et al., Targeted Backdoor Attacks, 2017)."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from bdjax import pytree
from bdjax.attacks._label_maps import AllToOne
from bdjax.checks import InputError, one_of, unit_interval
from bdjax.types import Attack, HParam, ImageSpec, LabelMap

CANDIDATES = ("all", "changed")
FILES = ("trigger_image",)  # options that name a file
PRESETS = {"ft_sam": {"alpha": 0.1}, "reference_code": {"candidates": "changed"}}


@pytree.dataclass
class Blend:
    """Mix every pixel with a fixed picture: x' = (1 − α) x + α T."""

    alpha: HParam
    trigger_image: str | None = pytree.static(default=None)

    def init(self, key: Key[Array, ""], spec: ImageSpec) -> Float[Array, "h w c"]:
        """Return T in [0, 1]: uniform random pixels drawn from the key, or the image file at the images' size."""
        if self.trigger_image is None:
            return jax.random.uniform(key, spec.shape)
        return jnp.asarray(_read(self.trigger_image, spec.shape))

    def apply(
        self, key: Key[Array, ""], state: Float[Array, "h w c"], image: Float[Array, "h w c"]
    ) -> Float[Array, "h w c"]:
        """Put the trigger on one image."""
        del key
        return (1 - self.alpha) * image + self.alpha * state


def _read(path: str, shape: tuple[int, int, int]) -> np.ndarray:
    from PIL import Image

    height, width, channels = shape
    try:
        picture = Image.open(os.path.expanduser(path)).convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError) as error:
        raise InputError(f"trigger_image must be a readable image file; {path!r} is not ({error}).") from error
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
    return pixels.reshape(shape)


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
      trigger_image: path of a picture, resized to the images' size without regard to its proportions.
      candidates: who may be poisoned: ``all`` images, or those whose label the map changes (``changed``).

    Raises:
      InputError: a value out of range; an unreadable picture (when the trigger is initialized).

    References:
      Chen, Liu, Li, Lu & Song, Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning, 2017, 4.3.

    Departure: SFT's and NFT's code poisons a share of the images that are not of the target class (preset
    ``reference_code``), the paper says of all.
    """
    unit_interval(poison_rate=poison_rate, alpha=alpha)
    one_of(CANDIDATES, candidates=candidates)
    rate_of = "candidates" if candidates == "changed" else "all"
    test_trigger = None
    if test_alpha is not None:
        unit_interval(test_alpha=test_alpha)
        test_trigger = Blend(test_alpha, trigger_image)
    trigger = Blend(alpha, trigger_image)
    return Attack(trigger, label_map, poison_rate, test_trigger=test_trigger, rate_of=rate_of, candidates=candidates)
