"""Input-aware: pattern and mask from networks, valid on their own image only (Nguyen & Tran, NeurIPS 2020)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, Key

from bdjax import pytree
from bdjax.attacks import _generators
from bdjax.attacks._generators import UShape
from bdjax.attacks._label_maps import AllToOne
from bdjax.checks import EPOCHS, integer, non_negative, positive, unit_interval
from bdjax.types import (
    Attack,
    BatchStats,
    HParam,
    Image,
    Info,
    LabelMap,
    Model,
    Params,
    Spec,
    Split,
    Trigger,
    Variables,
)

PRESETS = {"reference_code": {"double_tanh": True, "accumulate_gradient": True}}
_BETAS = (0.5, 0.9)
_TINY = 1e-7
_MILESTONES = (200, 300, 400, 500)  # epochs of the victim's training


class InputAwareState(NamedTuple):
    """Both networks with Adam's states, the sum of G's gradients if it is kept, and the length of an epoch."""

    pattern: Variables  # G
    mask: Variables  # M
    pattern_optimizer: optax.ScaleByAdamState
    mask_optimizer: optax.ScaleByAdamState
    gradient: Params
    steps_per_epoch: Int[Array, ""]
    statistics: Float[Array, "2 c"]


@pytree.dataclass
class InputAware(Trigger):
    """Lay a pattern over the image where a mask says so, both made of the image: x' = x + (G(x) − x) k(M(x))."""

    learning_rate: HParam
    density: HParam
    sparsity: HParam
    diversity: HParam
    poison_rate: HParam
    cover_rate: HParam
    label_map: LabelMap = pytree.static()
    epochs: int = pytree.static()
    learning_epochs: int | None = pytree.static()
    batch_size: int = pytree.static()
    width: int = pytree.static()
    double_tanh: bool = pytree.static()
    accumulate_gradient: bool = pytree.static()

    hooks = ("fit", "learn", "pace", "cover")

    def init(self, key: Key[Array, ""], spec: Spec) -> InputAwareState:
        """Return untrained networks."""
        channels = spec.shape[2]
        pattern_key, mask_key = jax.random.split(key)
        pattern = _generators.init(
            UShape(channels, self.width), pattern_key, spec.shape, train=False
        )
        mask = _generators.init(UShape(1, self.width), mask_key, spec.shape, train=False)
        gradient: Params = {}
        if self.accumulate_gradient:
            gradient = jax.tree.map(jnp.zeros_like, pattern["params"])
        return InputAwareState(
            pattern,
            mask,
            pattern_optimizer=_generators.adam_init(pattern["params"]),
            mask_optimizer=_generators.adam_init(mask["params"]),
            gradient=gradient,
            steps_per_epoch=jnp.int32(1),
            statistics=_generators.statistics(spec),
        )

    def pace(self, state: InputAwareState, steps_per_epoch: int) -> InputAwareState:
        """Keep the length of an epoch."""
        return state._replace(steps_per_epoch=jnp.int32(steps_per_epoch))

    def apply(self, key: Key[Array, ""], state: InputAwareState, image: Image) -> Image:
        """Put its own trigger on one image."""
        del key
        return _laid(image[None], *self._trigger(state, image[None]))[0]

    def cover(
        self,
        key: Key[Array, ""],
        state: InputAwareState,
        batch: Split,
    ) -> Float[Array, "n h w c"]:
        """Return the images with the trigger of another one each."""
        rows = batch.input.shape[0]
        other = jnp.roll(batch.input, jax.random.randint(key, (), 1, max(rows, 2)), axis=0)
        return _laid(batch.input, *self._trigger(state, other))

    def fit(
        self,
        key: Key[Array, ""],
        model: Model,
        variables: Variables,
        state: InputAwareState,
        batch: Split,
    ) -> tuple[InputAwareState, Info]:
        """Take one step of M: sparse masks that differ as images do."""
        del key, model, variables
        x = _generators.normalized(batch.input, state.statistics)

        def loss_fn(params: Params) -> tuple[Array, tuple[BatchStats, Array]]:
            network, stats = UShape(1, self.width), state.mask["batch_stats"]
            out, stats = _generators.in_training(network, params, stats, x)
            mask = self._threshold(out)
            sparse = jnp.maximum(mask - self.density, 0).mean()
            differ = difference_ratio(x, jnp.roll(x, 1, axis=0), mask, jnp.roll(mask, 1, axis=0))
            return self.sparsity * sparse + self.diversity * differ, (stats, mask.mean())

        params = state.mask["params"]
        (loss, (stats, covered)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        ends = (2 * self.epochs // 5, 4 * self.epochs // 5)
        rate = self._rate(state.mask_optimizer.count, state.steps_per_epoch, ends)
        params, optimizer = _generators.adam_step(params, grads, state.mask_optimizer, rate, _BETAS)
        mask = {**state.mask, "params": params, "batch_stats": stats}
        state = state._replace(mask=mask, mask_optimizer=optimizer)
        return state, Info(loss, covered, jnp.int32(1))

    def learn(
        self,
        key: Key[Array, ""],
        model: Model,
        variables: Variables,
        state: InputAwareState,
        batch: Split,
    ) -> tuple[InputAwareState, Info]:
        """Take one step of G, in the epochs in which it learns."""
        del key
        if self.learning_epochs is None:
            return self._step(model, variables, state, batch)

        def step(state: InputAwareState) -> tuple[InputAwareState, Info]:
            return self._step(model, variables, state, batch)

        def stay(state: InputAwareState) -> tuple[InputAwareState, Info]:
            return state, Info(jnp.float32(0), jnp.float32(0), jnp.int32(0))

        learns = state.pattern_optimizer.count < self.learning_epochs * state.steps_per_epoch
        return jax.lax.cond(learns, step, stay, state)

    def _step(
        self, model: Model, variables: Variables, state: InputAwareState, batch: Split
    ) -> tuple[InputAwareState, Info]:
        """Take one step of G: the first half of the batch with its own triggers, and with those of the second half."""
        task, half = model.spec.task, batch.label.shape[0] // 2
        image = batch.input[: 2 * half]
        x = _generators.normalized(image, state.statistics)
        masks = self._mask(state, x)
        label = batch.label[:half]
        wanted = self.label_map(label)

        def loss_fn(params: Params) -> tuple[Array, tuple[BatchStats, Array]]:
            network = UShape(image.shape[-1], self.width)
            out, stats = _generators.in_training(network, params, state.pattern["batch_stats"], x)
            patterns = self._squash(out)
            both = jnp.concatenate([image[:half], image[:half]])
            logits, _ = model.apply(variables, _laid(both, patterns, masks))
            poisoned, cross = logits[:half], logits[half:]
            loss = self.poison_rate * task.negative_log_likelihood(poisoned, wanted).mean()
            loss += self.cover_rate * task.negative_log_likelihood(cross, label).mean()
            p = _generators.normalized(patterns, state.statistics)
            loss += self.diversity * difference_ratio(x[:half], x[half:], p[:half], p[half:])
            return loss, (stats, task.correct(task.answer(poisoned), wanted).mean())

        params = state.pattern["params"]
        (loss, (stats, hits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        if self.accumulate_gradient:
            grads = jax.tree.map(jnp.add, state.gradient, grads)
            state = state._replace(gradient=grads)
        rate = self._rate(state.pattern_optimizer.count, state.steps_per_epoch, _MILESTONES)
        optimizer = state.pattern_optimizer
        params, optimizer = _generators.adam_step(params, grads, optimizer, rate, _BETAS)
        pattern = {**state.pattern, "params": params, "batch_stats": stats}
        state = state._replace(pattern=pattern, pattern_optimizer=optimizer)
        return state, Info(loss, hits, jnp.int32(1))

    def _trigger(self, state: InputAwareState, image: Array) -> tuple[Array, Array]:
        x = _generators.normalized(image, state.statistics)
        pattern = UShape(image.shape[-1], self.width).apply(state.pattern, x, train=False)
        return self._squash(pattern), self._mask(state, x)

    def _mask(self, state: InputAwareState, x: Array) -> Array:
        return self._threshold(UShape(1, self.width).apply(state.mask, x, train=False))

    def _squash(self, out: Any) -> Array:
        """Return q(v) = ½ tanh v + ½."""
        return jnp.tanh(jnp.tanh(out) if self.double_tanh else out) / (2 + _TINY) + 0.5

    def _threshold(self, out: Any) -> Array:
        """Return k = ½ tanh(20 q(v) − 10) + ½, nearly 0 or 1."""
        return jnp.tanh(20 * self._squash(out) - 10) / (2 + _TINY) + 0.5

    def _rate(self, step: ArrayLike, steps_per_epoch: Array, milestones: tuple[int, ...]) -> Array:
        """Return Adam's rate, a tenth from each milestone on."""
        passed = sum((step >= epoch * steps_per_epoch).astype(jnp.float32) for epoch in milestones)
        return self.learning_rate * 0.1**passed


def _laid(image: Array, pattern: Array, mask: Array) -> Array:
    return image + (pattern - image) * mask


def difference_ratio(
    x: Float[Array, "n *d"],
    other: Float[Array, "n *d"],
    made: Float[Array, "n *e"],
    of_other: Float[Array, "n *e"],
) -> Float[Array, ""]:
    """Return the mean over i of rms(x_i − x'_i) / (rms(g_i − g'_i) + 1e-7), g being what a network made of x.

    Its gradient is 0 where two rows of g are equal.
    """
    return jnp.mean(_rms(x - other) / (_rms(made - of_other) + _TINY))


def _rms(difference: Array) -> Array:
    square = jnp.square(difference).mean(range(1, difference.ndim))
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def input_aware(
    label_map: LabelMap = AllToOne(),
    poison_rate: float = 0.1,
    cover_rate: float = 0.1,
    epochs: int = 25,
    learning_epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 0.01,
    density: float = 0.032,
    sparsity: float = 100.0,
    diversity: float = 1.0,
    width: int = 32,
    double_tanh: bool = False,
    accumulate_gradient: bool = False,
) -> Attack:
    """Create Input-aware (Dynamic): x' = x + (G(x) − x) k(M(x)), a trigger that works on its own image alone.

    First the mask network M is trained on the clean images and then stays: 100 · mean(max(k − 0.032, 0)) + the mean
    of rms(z₁ − z₂) / rms(k₁ − k₂) over pairs of images z, normalized. Then the pattern network G learns along with the
    victim f, which sees poisoned images, cover samples (the trigger of another image, the true label) and clean ones.
    G's loss is that of f on the first two and the same ratio of differences for its patterns. The published runs take
    tens of thousands of steps; in a few hundred a higher ``poison_rate`` with a lower ``diversity`` gets further.

    Args:
      label_map: the attacker's labels, all-to-one or all-to-all.
      poison_rate: share of each batch, in [0, 1].
      cover_rate: share of cover samples in each batch, in [0, 1].
      epochs: of training M; its rate falls to a tenth after two and four fifths of them.
      learning_epochs: epochs of the victim's training in which G learns; all of them by default, as published. Where
        the victim's rate falls to zero, G had better stop before, or it moves away from what the victim has learned.
      batch_size: images a step of M's training.
      learning_rate: Adam's for M and G (β = 0.5, 0.9), above 0; G's falls to a tenth after 200, 300, 400 and 500
        epochs of the victim's training.
      density: share of the pixels under the mask that costs nothing, in [0, 1].
      sparsity: weight of the mask's area, 0 or more.
      diversity: weight of the ratios of differences, 0 or more.
      width: channels of the first blocks of M and G.
      double_tanh: BackdoorBench's additional tanh, which keeps patterns within [0.12, 0.88].
      accumulate_gradient: add up G's gradient over all steps, as all published code does (it never clears it).

    Raises:
      InputError: a value out of range.

    Departures: the paper updates f and G by one backward pass over the same poisoned batch. Here the victim is any
    network with any training, so G takes its own step just before f's, through f in evaluation mode, from the clean
    batch: its first half carries its own triggers and those of its second half. G's cross-entropies are weighted with
    the two rates, as they are in the mean over the paper's batch. The poisoned images of f are made with the running
    statistics of G's batch norm, as at test time. The pairs of M's training are neighbors in a shuffled batch, not two
    shuffled data sets. Images are poisoned before they are augmented.

    References:
      Nguyen & Tran, Input-Aware Dynamic Backdoor Attack, section 3.
    """
    unit_interval(poison_rate=poison_rate, cover_rate=cover_rate, density=density)
    integer(maximum=EPOCHS, epochs=epochs)
    if learning_epochs is not None:
        integer(maximum=EPOCHS, learning_epochs=learning_epochs)
    integer(1, batch_size=batch_size, width=width)
    positive(learning_rate=learning_rate)
    non_negative(sparsity=sparsity, diversity=diversity)
    trigger = InputAware(
        learning_rate=learning_rate,
        density=density,
        sparsity=sparsity,
        diversity=diversity,
        poison_rate=poison_rate,
        cover_rate=cover_rate,
        label_map=label_map,
        epochs=epochs,
        learning_epochs=learning_epochs,
        batch_size=batch_size,
        width=width,
        double_tanh=double_tanh,
        accumulate_gradient=accumulate_gradient,
    )
    return Attack(trigger, label_map, poison_rate, controls_training=True, cover_rate=cover_rate)
