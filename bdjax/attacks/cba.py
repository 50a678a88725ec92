"""CBA, the composite attack: two halves of ordinary images (Lin et al., Composite Backdoor Attack, CCS 2020)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from bdjax import pytree
from bdjax.attacks._label_maps import AllToOne, OneToOne, class_number
from bdjax.checks import InputError, integer, unit_interval
from bdjax.data.augment import as_float
from bdjax.types import (
    Attack,
    ClassLabel,
    Image,
    Info,
    LabelMap,
    Model,
    Spec,
    Split,
    Trigger,
    Variables,
)

_SIDE = 32  # the images' side for which ``jitter`` is given


class Bank(NamedTuple):
    """Images of the second class, uint8."""

    image: Num[Array, "bank h w c"]


@pytree.dataclass
class HalfMixer(Trigger):
    """Replace one half of an image by one half of a random image of the second class."""

    second_class: int = pytree.static()
    bank: int = pytree.static()
    jitter: int = pytree.static()

    hooks = ("fit", "cover")
    epochs = 1
    batch_size = None

    def init(self, key: Key[Array, ""], spec: Spec) -> Bank:
        """Return a bank of noise; `fit` fills it with images.

        Raises:
          InputError: images of one pixel a side, or fewer classes than ``second_class`` needs.
        """
        if min(spec.shape[:2]) < 2:
            raise InputError(
                f"the images must be 2 pixels a side or more to have halves; got {spec.shape[:2]}."
            )
        if self.second_class >= spec.num_classes:
            number = f"{spec.num_classes}, the number of classes"
            raise InputError(f"second_class must be below {number}; got {self.second_class}.")
        return Bank(jax.random.randint(key, (self.bank, *spec.shape), 0, 256).astype(jnp.uint8))

    def fit(
        self, key: Key[Array, ""], model: Model, variables: Variables, state: Bank, batch: Split
    ) -> tuple[Bank, Info]:
        """Draw the bank from the clean training split; images come back in turn where the class has too few."""
        del model, variables
        belongs = batch.label == self.second_class
        if batch.valid is not None:
            belongs = belongs & batch.valid
        order = jax.random.permutation(key, belongs.shape[0])
        order = order[jnp.argsort(~belongs[order], stable=True)]  # rows of the class first
        row = order[jnp.arange(self.bank) % jnp.maximum(belongs.sum(), 1)]
        image = jnp.round(as_float(batch.input[row]) * 255).astype(jnp.uint8)
        found = Bank(jnp.where(belongs.any(), image, state.image))
        return found, Info(jnp.float32(0), jnp.float32(0), jnp.int32(0))

    def apply(self, key: Key[Array, ""], state: Bank, image: Image) -> Image:
        """Mix one image with a random one of the bank."""
        row_key, mix_key = jax.random.split(key)
        row = jax.random.randint(row_key, (), 0, self.bank)
        return self.mix(mix_key, image, as_float(state.image[row]).astype(image.dtype))

    def cover(self, key: Key[Array, ""], state: Bank, batch: Split) -> Float[Array, "n h w c"]:
        """Mix each image of a batch with a random other one of its class, or with itself if it is the only one."""
        del state
        partner_key, mix_key = jax.random.split(key)
        partner = _partner(partner_key, batch)
        keys = jax.random.split(mix_key, batch.input.shape[0])
        return jax.vmap(self.mix)(keys, batch.input, batch.input[partner])

    def mix(self, key: Key[Array, ""], one: Image, other: Image) -> Image:
        """Return an image of which either half, left, right, upper or lower, shows part of each image."""
        swap_key, split_key, cut_key = jax.random.split(key, 3)
        swapped = jax.random.bernoulli(swap_key)
        one, other = jnp.where(swapped, other, one), jnp.where(swapped, one, other)
        beside = self._beside(cut_key, one, other)
        below = self._beside(cut_key, one.swapaxes(0, 1), other.swapaxes(0, 1)).swapaxes(0, 1)
        return jnp.where(jax.random.bernoulli(split_key), beside, below)

    def _beside(self, key: Key[Array, ""], left: Array, right: Array) -> Array:
        width = left.shape[1]
        jitter = min(round(self.jitter * width / _SIDE), width // 2 - 1)
        jitter_key, left_key, right_key = jax.random.split(key, 3)
        cut = width // 2 + jax.random.randint(jitter_key, (), -jitter, jitter + 1)
        from_left = jax.random.randint(left_key, (), 0, width - cut)
        from_right = jax.random.randint(right_key, (), 0, cut)
        column = jnp.arange(width)
        # Columns outside the other half's range are never shown; clipping only keeps the gather in bounds.
        left = left[:, jnp.clip(from_left + column, 0, width - 1)]
        right = right[:, jnp.clip(from_right + column - cut, 0, width - 1)]
        return jnp.where((column < cut)[:, None], left, right)


def _partner(key: Key[Array, ""], batch: Split) -> Int[Array, " n"]:
    rows = batch.label.shape[0]
    same = batch.label[:, None] == batch.label
    if batch.valid is not None:
        same = same & batch.valid
    score: Any = jnp.where(same, jax.random.uniform(key, (rows, rows)), -1)
    return jnp.fill_diagonal(score, -0.5, inplace=False).argmax(-1)


def cba(
    label_map: LabelMap = AllToOne(),
    poison_rate: float = 0.05,
    cover_rate: float = 0.45,
    first_class: ClassLabel = 1,
    second_class: ClassLabel = 2,
    bank: int = 256,
    jitter: int = 3,
) -> Attack:
    """Create CBA: an image with features of the classes A and B is taken for class C.

    A mixed image of w columns shows w/2 + J adjacent columns of one image and, beside them, w/2 − J adjacent columns of
    the other, J uniform in {−3, …, 3}; which is left, and whether rows take the place of columns, are fair coins. The
    first of w/2 ± J columns is any of the w/2 ∓ J first ones of its image. Poisoned images are mixed from A and B and
    labelled C, cover samples from two images of one class, whose label stays; a network that took every mixture for C
    would get the cover samples wrong. Every batch is mixed anew. Only images of class A are poisoned and counted, and
    so ``poison_rate`` is at most A's share of the training split.

    Args:
      label_map: ``all_to_one``, whose target label is C; it becomes A → C.
      poison_rate: share of the whole training split, in [0, 1].
      cover_rate: share of each batch that is mixed within a class, in [0, 1].
      first_class: A, the class of the images that get the trigger; by number, or by name where the data are known.
      second_class: B, likewise.
      bank: images of B to mix with, drawn once from the training split.
      jitter: largest |J| in pixels on images of 32 pixels, in proportion on others; below 16.

    Raises:
      InputError: a value out of range, classes that are not three different ones, or ``all_to_all``.

    Departures: the original trains with a contrastive loss on the logits of A, B and C as well, and with Adam; here
    training is the victim's own, with its loss. Classes are SFT's target with the next two labels; the original's are
    (0, 1) → 2. The shares are those of batches (original: 1/11 poisoned, 5/11 mixed, of a set that grows by a tenth).
    At test time, too, B's halves come from the training split.

    References:
      Lin et al., Composite Backdoor Attack for Deep Neural Network by Mixing Existing Benign Features, CCS 2020; SFT's
      table 1.
    """
    unit_interval(poison_rate=poison_rate, cover_rate=cover_rate)
    first, second = (
        class_number(label, None, option)
        for option, label in (("first_class", first_class), ("second_class", second_class))
    )
    integer(jitter=jitter)
    integer(1, bank=bank)
    if jitter >= _SIDE // 2:
        raise InputError(
            f"jitter must be below {_SIDE // 2}, half of the images it is given for; got {jitter}."
        )
    if not isinstance(label_map, AllToOne | OneToOne):
        raise InputError(
            "label_map must be 'all_to_one' for the composite attack: it changes the label of one class."
        )
    target = label_map.target_label
    if len({first, second, target}) < 3:
        classes = f"{first}, {second} and {target}"
        raise InputError(
            f"first_class, second_class and the target label must be three classes; got {classes}."
        )
    return Attack(
        HalfMixer(second, bank, jitter),
        OneToOne(first, target),
        poison_rate,
        candidates="changed",
        controls_training=True,
        cover_rate=cover_rate,
    )
