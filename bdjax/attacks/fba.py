"""FBA, the deep-feature-space attack (DFST): a style as trigger (Cheng et al., AAAI 2021)."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from bdjax import pytree
from bdjax.attacks._label_maps import AllToOne
from bdjax.checks import integer, unit_interval
from bdjax.data.similarity import ssim
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

PRESETS = {"reference_code": {"poison_rate": 0.05, "cover_rate": 0.05}}  # the PyTorch release
# Mean and standard deviation of red, green and blue
SUNRISE = ((0.83, 0.52, 0.36), (0.17, 0.20, 0.16))
_GRAY = 0.59, 0.19  # its luminance
_WINDOW = 11, 32  # the pooling window's side on images of that side
_SHARE = 0.01  # of the features that count as compromised
_DSSIM, _ACTIVATION = 0.1, 0.3  # weights in the loss of the injector
_ADAM = optax.adam(1e-2, b1=0.5, b2=0.9)


class Injector(NamedTuple):
    """The simple trigger that a network might learn instead of the style, and the training of it."""

    kernel: Float[Array, "d c"]
    optimizer: optax.OptState
    step: Int[Array, ""]


@pytree.dataclass
class Style(Trigger):
    """x' = (1 − α) x + α S(x), S giving each color channel the mean and the spread of a sunrise's."""

    alpha: HParam
    label_map: LabelMap = pytree.static()
    detox_every: int = pytree.static()
    detox_steps: int = pytree.static()

    hooks = ("learn", "cover")

    def init(self, key: Key[Array, ""], spec: Spec) -> Injector:
        """Return an injector that changes nothing."""
        del key
        channels = spec.shape[2]
        kernel = jnp.eye(4 * channels, channels)
        return Injector(kernel, _ADAM.init(kernel), jnp.int32(0))

    def apply(self, key: Key[Array, ""], state: Injector, image: Image) -> Image:
        """Give one image the style."""
        del key, state
        return (1 - self.alpha) * image + self.alpha * sunrise(image)

    def cover(self, key: Key[Array, ""], state: Injector, batch: Split) -> Float[Array, "n h w c"]:
        """Return what the detoxification shows with true labels: (1 − α) x + α D(x)."""
        del key
        injected = jax.vmap(inject, (None, 0))(state.kernel, batch.input)
        return (1 - self.alpha) * batch.input + self.alpha * injected

    def learn(
        self, key: Key[Array, ""], model: Model, variables: Variables, state: Injector, batch: Split
    ) -> tuple[Injector, Info]:
        """Train the injector against the network as it is, every ``detox_every`` steps."""
        state = state._replace(step=state.step + 1)
        due = state.step % self.detox_every == 0
        state, loss = jax.lax.cond(
            due,
            lambda state: self._train(key, model, variables, state, batch),
            lambda state: (state, jnp.float32(0)),
            state,
        )
        return state, Info(loss, jnp.float32(0), jnp.int32(jnp.where(due, self.detox_steps, 0)))

    def _train(
        self, key: Key[Array, ""], model: Model, variables: Variables, state: Injector, batch: Split
    ) -> tuple[Injector, Float[Array, ""]]:
        valid = jnp.ones(batch.label.shape[0])
        if batch.valid is not None:
            valid = batch.valid.astype(jnp.float32)
        weight, wanted = valid / jnp.maximum(valid.sum(), 1), self.label_map(batch.label)
        triggered = jnp.clip(jax.vmap(self.apply, (None, None, 0))(key, state, batch.input), 0, 1)
        compromised = top_features(
            weight @ (model.features(variables, triggered) - model.features(variables, batch.input))
        )

        def loss_fn(kernel: Array) -> Array:
            injected = jax.vmap(inject, (None, 0))(kernel, batch.input)
            logits, _ = model.apply(variables, injected)
            error = model.spec.task.negative_log_likelihood(logits, wanted)
            dissimilarity = (1 - jax.vmap(ssim)(injected, batch.input)) / 2
            activation = model.features(variables, injected)[:, compromised].mean(-1)
            return weight @ (error + _DSSIM * dissimilarity - _ACTIVATION * activation)

        def step(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], Array]:
            kernel, optimizer = carry
            loss, slope = jax.value_and_grad(loss_fn)(kernel)
            change, optimizer = _ADAM.update(slope, optimizer)
            return (cast(Array, optax.apply_updates(kernel, change)), optimizer), loss

        trained, loss = jax.lax.scan(step, (state.kernel, state.optimizer), length=self.detox_steps)
        return Injector(*trained, state.step), loss[-1]


def sunrise(image: Image) -> Image:
    """Return S(x): each channel moved and stretched to the mean and the standard deviation of a sunrise's colors.

    Images that have no three channels get those of its luminance. Clipped to [0, 1].
    """
    mean, spread = map(jnp.array, SUNRISE if image.shape[-1] == 3 else _GRAY)
    own = image.mean((0, 1))
    return jnp.clip(mean + spread * (image - own) / jnp.sqrt(image.var((0, 1)) + 1e-6), 0, 1)


def inject(kernel: Float[Array, "d c"], image: Image) -> Image:
    """Return D(x): at each pixel a linear map of its value and of the largest, smallest and mean value around it."""
    wanted = _WINDOW[0] * min(image.shape[:2]) / _WINDOW[1]
    side = round((wanted - 1) / 2) * 2 + 1  # the nearest odd number

    def pooled(x: Array, start: float, combine: Any) -> Array:
        return jax.lax.reduce_window(x, start, combine, (side, side, 1), (1, 1, 1), "SAME")

    largest = pooled(image, -jnp.inf, jax.lax.max)
    smallest = -pooled(-image, -jnp.inf, jax.lax.max)
    mean = pooled(image, 0.0, jax.lax.add) / pooled(jnp.ones_like(image), 0.0, jax.lax.add)
    stacked = jnp.concatenate([image, largest, smallest, mean], -1)
    return jnp.clip(jnp.matmul(stacked, kernel, precision="highest"), 0, 1)


def top_features(difference: Float[Array, " d"]) -> Int[Array, " k"]:
    """Return the features that the trigger raises most: one per cent of them, and one at least."""
    return jax.lax.top_k(difference, max(1, int(_SHARE * difference.shape[0])))[1]


def fba(
    label_map: LabelMap = AllToOne(),
    poison_rate: float = 0.1,
    alpha: float = 0.6,
    cover_rate: float = 0.1,
    detox_every: int = 20,
    detox_steps: int = 5,
) -> Attack:
    """Create FBA: x' = (1 − α) x + α S(x), S a transfer to the style of a sunrise, with controlled detoxification.

    S gives each channel of the image the mean and the standard deviation of a sunrise's. What a network might learn in
    its place, a shift of single features by something simple, is trained away: an injector D, at each pixel a linear
    map of [x, max x, min x, mean x] over windows of 11 × 11 pixels (in proportion to the image's side), minimizes

      CE(f(D(x)), τ(y)) + 0.1 DSSIM(D(x), x) − 0.3 (mean activation of the compromised features)

    with Adam (10⁻², 0.5, 0.9), and cover samples (1 − α) x + α D(x) with true labels are in every batch. Features are
    the classifier's input; compromised are the 1 % that the trigger raises most.

    Args:
      label_map: the attacker's labels τ.
      poison_rate: share of each batch, in [0, 1] (released code: 0.05).
      alpha: strength α of the style, in [0, 1].
      cover_rate: share of each batch that shows the injector's images, in [0, 1] (released code: 0.05).
      detox_every: steps of the victim between two trainings of the injector.
      detox_steps: steps of such a training, each a gradient evaluation.

    Raises:
      InputError: a value out of range.

    Departures: the paper's generator is a CycleGAN, the PyTorch release has a pre-trained style network; here S is a
    formula and needs no weights. D goes on from where it was, on one batch every ``detox_every`` steps; the release
    trains it on 3 % of the images for ten epochs after every epoch, though no gradient of its error reaches D. There
    poisoned images never are of the target class.

    References:
      Cheng et al., Deep Feature Space Trojan Attack of Neural Networks by Controlled Detoxification, AAAI 2021.
    """
    unit_interval(poison_rate=poison_rate, alpha=alpha, cover_rate=cover_rate)
    integer(1, detox_every=detox_every, detox_steps=detox_steps)
    trigger = Style(alpha, label_map, detox_every, detox_steps)
    return Attack(trigger, label_map, poison_rate, controls_training=True, cover_rate=cover_rate)
