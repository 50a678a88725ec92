"""TrojanNN: a trigger made of the network's own neurons, or a small watermark (Liu et al., Trojaning Attack, 2018)."""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from bdjax import pytree, structure
from bdjax.attacks._label_maps import AllToOne
from bdjax.checks import InputError, integer, non_negative, one_of, positive, unit_interval
from bdjax.types import (
    Attack,
    HParam,
    Image,
    Info,
    LabelMap,
    Model,
    Spec,
    Split,
    Trigger,
    Variables,
)

FORMS = ("neurons", "watermark")
ADDITIONS = ("saturating", "modular")
PRESETS = {"reference_code": {"addition": "modular"}}

_PATCH = np.array(
    [
        [(207, 131, 181), (175, 243, 120), (29, 232, 179)],
        [(79, 8, 126), (137, 0, 32), (248, 113, 146)],
        [(131, 40, 4), (6, 145, 61), (246, 250, 246)],
    ]
)  # SFT's and NFT's, levels of red, green and blue
_TOP = 25 / 32  # where it begins, from the top and from the left
_ENOUGH = 1e-3
# Picture, its loss and slope, steps so far
_Search: TypeAlias = tuple[Array, tuple[Array, Array], Array]


def added(image: Image, trigger: Image, addition: str) -> Image:
    """Return image + trigger: ``saturating`` at 1, or ``modular``, as sums of 8-bit numbers wrap at 256."""
    total = image + jnp.floor(trigger * 255 + 1e-3) / 255
    if addition == "saturating":
        return jnp.minimum(total, 1)
    return jnp.where(total > 255.5 / 255, jnp.maximum(total - 256 / 255, 0), total)


@pytree.dataclass
class Watermark(Trigger):
    """Add a fixed picture of 3 × 3 pixels near the lower right corner."""

    addition: str = pytree.static()

    def init(self, key: Key[Array, ""], spec: Spec) -> Image:
        """Return the picture in [0, 1], black elsewhere; of one channel where the images are gray.

        Raises:
          InputError: the images are smaller than the picture.
        """
        del key
        height, width, channels = spec.shape
        if min(height, width) < 3:
            raise InputError(
                f"the watermark needs images of 3 × 3 pixels or more, got {height} × {width}."
            )
        patch = _PATCH if channels == 3 else np.round(_PATCH.mean(-1, keepdims=True))
        top, left = (min(round(_TOP * side), side - 3) for side in (height, width))
        picture = np.zeros(spec.shape, np.float32)
        picture[top : top + 3, left : left + 3] = patch / 255
        return jnp.asarray(picture)

    def apply(self, key: Key[Array, ""], state: Image, image: Image) -> Image:
        """Add the picture to one image."""
        del key
        return added(image, state, self.addition)


@pytree.dataclass
class Neurons(Trigger):
    """Add a picture that excites a network's best connected features, inside a blob at the lower right."""

    area: HParam
    activation: HParam
    step_size: HParam
    radius: HParam
    neurons: int = pytree.static()
    steps: int = pytree.static()
    addition: str = pytree.static()

    hooks = ("fit",)
    epochs = 1
    batch_size = None

    def init(self, key: Key[Array, ""], spec: Spec) -> dict[str, Array]:
        """Return the blob's ``mask`` and, as long as there is no network, the same as the ``picture``."""
        mask = blob(key, spec.shape[0], spec.shape[1], self.area)
        return {"mask": mask, "picture": jnp.broadcast_to(mask, spec.shape)}

    def fit(
        self,
        key: Key[Array, ""],
        model: Model,
        variables: Variables,
        state: dict[str, Array],
        batch: Split,
    ) -> tuple[dict[str, Array], Info]:
        """Make the picture, in at most ``steps`` gradients of one image each."""
        del key
        mask = state["mask"]
        chosen = best_connected(model, variables, self.neurons)
        low, high = jnp.maximum(mask - self.radius, 0), jnp.minimum(mask + self.radius, 1)

        def loss_fn(picture: Array) -> Array:
            shown = jnp.where(mask > 0, picture, 0)
            features = model.features(variables, shown[None])[0, chosen]
            return jnp.sum((features - self.activation) ** 2)

        evaluate = jax.value_and_grad(loss_fn)

        def going(carry: _Search) -> Array:
            _, (loss, _), used = carry
            return (used < self.steps) & (loss >= _ENOUGH)

        def step(carry: _Search) -> _Search:
            picture, (_, slope), used = carry
            picture = jnp.clip(picture - self.step_size * jnp.sign(slope), low, high)
            return picture, evaluate(picture), used + 1

        first = jnp.broadcast_to(mask, state["picture"].shape)
        start = (first, evaluate(first), jnp.int32(0))
        picture, (loss, _), used = jax.lax.while_loop(going, step, start)
        picture = jnp.where(mask > 0, picture, 0)
        evaluations = -(-(used + 1) // batch.label.shape[0])
        return {"mask": mask, "picture": picture}, Info(loss, jnp.float32(0), evaluations)

    def apply(self, key: Key[Array, ""], state: dict[str, Array], image: Image) -> Image:
        """Add the picture to one image."""
        del key
        return added(image, state["picture"], self.addition)


def blob(
    key: Key[Array, ""],
    height: int,
    width: int,
    area: HParam = 0.07,
) -> Float[Array, "h w 1"]:
    """Return a random round shape in the lower right quarter: 1 inside, falling to 0 over a pixel at its edge.

    Its edge is at ρ √(1 + a cos(2θ + φ) + b cos(3θ + ψ)) from the middle, of which the enclosed area is πρ².

    Args:
      key: decides a, b, φ and ψ.
      height: of the image.
      width: likewise.
      area: share of the image.
    """
    waves_key, phase_key = jax.random.split(key)
    wave = jax.random.uniform(waves_key, (2,), minval=0.1, maxval=0.25)
    phase = jax.random.uniform(phase_key, (2,), maxval=2 * jnp.pi)
    row, column = jnp.indices((height, width)) + 0.5
    y, x = (row / height - 0.75), (column / width - 0.75)  # as if the image were a unit square
    angle = jnp.arctan2(y, x)
    swing = wave[0] * jnp.cos(2 * angle + phase[0]) + wave[1] * jnp.cos(3 * angle + phase[1])
    edge = jnp.sqrt(area / jnp.pi * (1 + swing))
    return jnp.clip(0.5 + (edge - jnp.hypot(y, x)) * min(height, width), 0, 1)[..., None]


def best_connected(model: Model, variables: Variables, neurons: int) -> Array:
    """Return which of the classifier's inputs have the largest sum of absolute weights, over the classes."""
    kernel = structure.flat(variables["params"])[structure.classifier(model, variables)]
    weight = jnp.abs(kernel).sum(-1)
    return jax.lax.top_k(weight, min(neurons, weight.size))[1]


def trojan(
    label_map: LabelMap = AllToOne(),
    poison_rate: float = 0.1,
    form: str = "neurons",
    addition: str = "saturating",
    area: float = 0.07,
    neurons: int = 2,
    activation: float = 100.0,
    step_size: float = 0.1,
    radius: float = 0.3,
    steps: int = 1000,
) -> Attack:
    """Create TrojanNN: x' = min(x + T, 1), where T excites chosen neurons of a clean network.

    ``neurons`` is FT-SAM's: with a mask M, T ← clip(T − s sign ∇ Σ_j (h_j(T) − A)²) from T = M, where the clip keeps T
    within M ± δ and [0, 1], h are the features that the clean network's classifier takes in and j goes over those with
    the largest Σ_classes |w|. It ends after K steps, or when the sum is below 0.001. ``watermark`` is SFT's and NFT's
    (Troj-one, and with all-to-all Troj-all): T is 3 × 3 colored pixels at rows and columns 25–27 of 32, needs no
    network, and the options after ``addition`` count for nothing.

    Args:
      label_map: the attacker's labels.
      poison_rate: share of the whole training split, in [0, 1].
      form: ``neurons`` or ``watermark``.
      addition: ``saturating`` at 1, or ``modular``: sums of 8-bit levels wrap at 256.
      area: share of the image that M covers, above 0; up to 0.1 it stays within the quarter.
      neurons: how many features are excited.
      activation: A, the value that they are to take.
      step_size: s ≥ 0, in units of the full range.
      radius: δ in [0, 1].
      steps: K.

    Raises:
      InputError: a value out of range.

    Departures: M is a random blob in the lower right quarter, where BackdoorBench has a picture of an apple there. Its
    code, and SFT's, add modulo 256, as the preset ``reference_code`` does; BackdoorBench also chooses the neurons by a
    random classifier (of 1000 classes) and shows the network images that are not normalized. At other sizes the
    watermark keeps its 9 pixels, and gray images get its mean over the colors.

    References:
      Liu et al., Trojaning Attack on Neural Networks, NDSS 2018, section 4; FT-SAM; SFT and NFT, "Troj-one".
    """
    unit_interval(poison_rate=poison_rate, radius=radius, area=area)
    positive(area=area)
    one_of(FORMS, form=form)
    one_of(ADDITIONS, addition=addition)
    integer(1, neurons=neurons)
    integer(steps=steps)
    non_negative(step_size=step_size, activation=activation)
    if form == "watermark":
        return Attack(Watermark(addition), label_map, poison_rate)
    trigger = Neurons(area, activation, step_size, radius, neurons, steps, addition)
    return Attack(trigger, label_map, poison_rate, surrogate="clean")
