"""Images: uint8 [h, w, c] at rest, float32 in [0, 1] once they are worked on."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num

from bdjax.checks import one_of
from bdjax.data import augment, mixing
from bdjax.data.augment import as_float
from bdjax.data.mixing import Mixed
from bdjax.data.randaugment import augmix, randaugment
from bdjax.tasks.single_label import SingleLabel
from bdjax.types import HParam, Spec, Trigger

ROUNDINGS = ("nearest", "truncate")


@dataclasses.dataclass(frozen=True)
class Images:
    """How images are stored, normalized and augmented; hashable.

    Attributes:
      mean, std: one value per channel, of images in [0, 1].
      crop_padding, flip: the data set's standard augmentation: a random crop of the image with so many pixels of zeros
        around it (0 is none), and a horizontal flip of every other image.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int = 0
    flip: bool = False

    @property
    def unit(self) -> str:
        """What messages call an input."""
        return "image"

    def lift(self, trigger: Trigger) -> Trigger:
        """Return a trigger of one image, which it is."""
        return trigger

    def load(self, stored: Num[Array, "*n h w c"]) -> Float[Array, "*n h w c"]:
        """Return stored images as they are worked on; float images pass unchanged."""
        return as_float(stored)

    def store(
        self,
        image: Float[Array, "*n h w c"],
        stored: Num[Array, "*n h w c"],
        rounding: str = "nearest",
    ) -> Num[Array, "*n h w c"]:
        """Return images as the ``stored`` ones are: clipped to [0, 1] and, for 8 bits, rounded.

        Args:
          image: worked on.
          stored: whose type the result has.
          rounding: ``nearest``, or ``truncate`` as BackdoorBench does.

        Raises:
          InputError: an unknown rounding.
        """
        one_of(ROUNDINGS, rounding=rounding)
        image = jnp.clip(image, 0, 1)
        if stored.dtype != jnp.uint8:
            return image
        # k / 255 · 255 can fall just short of k in float32; a level that is whole up to rounding must stay whole.
        offset = 0.5 if rounding == "nearest" else 1e-3
        return jnp.floor(image * 255 + offset).astype(jnp.uint8)

    def picture(
        self, stored: Num[Array | np.ndarray, "n h w c"]
    ) -> Num[Array | np.ndarray, "n h w c"]:
        """Return the images."""
        return stored

    def normalize(self, image: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Return (x − mean) / std, what a network computes with, in the images' own type."""
        mean, std = (jnp.asarray(values, image.dtype) for values in (self.mean, self.std))
        return (image - mean) / std

    def standard(self, key: Key[Array, ""], image: Num[Array, "n h w c"]) -> Num[Array, "n h w c"]:
        """Apply the data set's standard augmentation to a batch, with a draw of its own for every image."""
        keys = jax.random.split(key, (image.shape[0], 2))
        if self.crop_padding:
            image = jax.vmap(augment.crop, (0, 0, None))(keys[:, 0], image, self.crop_padding)
        return jax.vmap(augment.flip)(keys[:, 1], image) if self.flip else image

    def augmented(
        self,
        key: Key[Array, ""],
        image: Num[Array, "n h w c"],
        augmentation: str,
        alpha: HParam = 1.0,
    ) -> Mixed:
        """Return a training batch as float32 in [0, 1], augmented in one of the ways that NFT compares.

        Every name but ``none`` starts with `standard` under the same key, and ``standard`` is nothing else, to the bit.
        ``mixup`` and ``cutmix`` then mix the batch's rows, so that each row has two labels (`Mixed`; for the other
        names the partner is the row itself, with weight 1). ``randaugment``, ``augmix`` and ``cutout`` change each row
        by a draw of its own, with NFT's settings; Cutout's hole has half the images' shorter side (16 pixels on
        CIFAR-10) and shows the data set's mean. ``adversarial`` needs the network: it is ``standard`` here, and the
        learner adds `bdjax.optim.pgd.pgd`.

        Args:
          key: decides everything.
          image: a batch, uint8 in [0, 255] or float32 in [0, 1].
          augmentation: one of `bdjax.data.augment.AUGMENTATIONS`; static.
          alpha: of Beta(α, α) in MixUp and CutMix, above 0; may be traced.

        Raises:
          InputError: unknown name.

        References:
          NFT's supplement, section 3.4 and Table 7.
        """
        one_of(augment.AUGMENTATIONS, name=augmentation)
        return self.mixed(key, self.moved(key, image, augmentation), augmentation, alpha)

    def moved(
        self, key: Key[Array, ""], image: Num[Array, "n h w c"], augmentation: str
    ) -> Num[Array, "n h w c"]:
        """Return what `augmented` starts with: pixels that were moved and keep their type, none computed."""
        return image if augmentation == "none" else self.standard(key, image)

    def own_key(self, key: Key[Array, ""]) -> Key[Array, ""]:
        """Return the key of all that an augmentation draws beside the standard one."""
        return jax.random.fold_in(key, augment.OWN)

    def mixed(
        self,
        key: Key[Array, ""],
        image: Num[Array, "n h w c"],
        augmentation: str,
        alpha: HParam = 1.0,
    ) -> Mixed:
        """Return what `augmented` makes of `moved` images, under the same key."""
        rows = image.shape[0]
        image = as_float(image)
        own_key = self.own_key(key)
        keys = jax.random.split(own_key, rows)
        match augmentation:
            case "mixup":
                return mixing.mixup(own_key, image, alpha)
            case "cutmix":
                return mixing.cutmix(own_key, image, alpha)
            case "randaugment":
                image = jax.vmap(randaugment)(keys, image)
            case "augmix":
                image = jax.vmap(augmix)(keys, image)
            case "cutout":
                size, mean = min(image.shape[1:3]) // 2, jnp.array(self.mean)
                image = jax.vmap(augment.cutout, (0, 0, None, None))(keys, image, size, mean)
        return Mixed(image, jnp.arange(rows), jnp.float32(1))


def image_spec(
    name: str,
    shape: tuple[int, int, int],
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    class_names: tuple[str, ...] = (),
    crop_padding: int = 0,
    flip: bool = False,
) -> Spec:
    """Return the specification of images with one class each.

    Args:
      name: of the data set.
      shape: (height, width, channels).
      num_classes, class_names: of `bdjax.tasks.single_label.SingleLabel`.
      mean, std, crop_padding, flip: of `Images`.
    """
    return Spec(
        name, shape, Images(mean, std, crop_padding, flip), SingleLabel(num_classes, class_names)
    )
