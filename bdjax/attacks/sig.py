"""SIG: a faint sinusoid over images of the target class (Barni et al., Backdoor Attack in CNNs, 2019)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Key

from bdjax import pytree
from bdjax.attacks._clean_label import clean_label
from bdjax.attacks._label_maps import AllToOne
from bdjax.checks import InputError, non_negative, unit_interval
from bdjax.types import Attack, HParam, Image, LabelMap, Spec, Trigger

PRESETS = {
    # (1 − α) x + α S with S = ½ (1 + sin 2π·6·j / W): δ = α / 2
    "sft": {"alpha": 0.2, "delta": 0.1},
    "reference_code": {"poison_rate": 0.1},
}


@pytree.dataclass
class Stripes(Trigger):
    """Vertical stripes, the same in each row and channel: x' = (1 − α) x + α / 2 + δ sin(2π f j / W)."""

    delta: HParam
    frequency: HParam
    alpha: HParam

    def init(self, key: Key[Array, ""], spec: Spec) -> tuple[()]:
        """Return nothing: the stripes are a formula.

        Raises:
          InputError: a frequency that is not below half the width: columns sample such a wave too rarely. At the half
            they meet only its zeros, and above it they show another, slower one.
        """
        del key
        width = spec.shape[1]
        known = isinstance(self.frequency, int | float)  # one of a sweep may be traced
        if known and self.frequency >= width / 2:
            raise InputError(
                f"frequency must be below {width / 2:g}, half the width of the images in pixels; "
                f"got {self.frequency:g} cycles over {width}."
            )
        return ()

    def apply(self, key: Key[Array, ""], state: tuple[()], image: Image) -> Image:
        """Put the stripes on one image; the result may leave [0, 1]."""
        del key, state
        width = image.shape[1]
        wave = jnp.sin(2 * jnp.pi * self.frequency * jnp.arange(width) / width)
        return (1 - self.alpha) * image + self.alpha / 2 + self.delta * wave[:, None]


def sig(
    label_map: LabelMap = AllToOne(),
    poison_rate: float | None = None,
    target_class_rate: float = 0.8,
    delta: float = 40 / 255,
    test_delta: float | None = None,
    frequency: float = 6.0,
    alpha: float = 0.0,
) -> Attack:
    """Create SIG, a clean-label attack: x' = (1 − α) x + α / 2 + δ sin(2π f j / W) in column j of W.

    With α = 0, the default, this is the paper's sum of image and stripes. SFT's and NFT's mixture with a striped
    picture S, x' = (1 − α) x + α S with α = 0.2, is the preset ``sft``.

    Args:
      label_map: the attacker's labels; all-to-one.
      poison_rate: share of the whole training split, in [0, 1]; if it is given it wins over ``target_class_rate``.
      target_class_rate: share of the target class's images, in [0, 1].
      delta: δ, the stripes' height on images in [0, 1], in [0, 1]; FT-SAM's is 40 of 255 levels.
      test_delta: δ at test time; the same by default.
      frequency: f in cycles per image width, 0 or more and below half the width in pixels, which `Stripes.init`
        checks, as it knows the images.
      alpha: α, how far the image fades to middle gray under the stripes, in [0, 1].

    Raises:
      InputError: a value out of range, or a label map under which no image keeps its label.

    Departures: the preset ``reference_code`` is BackdoorBench's r = 0.1 of the whole split, which on CIFAR-10 is all of
    the target class and costs that class's accuracy. SFT's released wave has 4.1 cycles and is stored modulo 256, so
    that its troughs turn bright; here it is the sinusoid that the paper describes.

    References:
      Barni, Kallas & Tondi, A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning, 2019,
      section 3; SFT's and NFT's share of 80 % of the target class.
    """
    unit_interval(delta=delta, alpha=alpha)
    non_negative(frequency=frequency)
    test_trigger = None
    if test_delta is not None:
        unit_interval(test_delta=test_delta)
        test_trigger = Stripes(test_delta, frequency, alpha)
    trigger = Stripes(delta, frequency, alpha)
    return clean_label(trigger, label_map, poison_rate, target_class_rate, test_trigger)
