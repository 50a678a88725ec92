"""LIRA: faint noise from a network that learns along with the victim (Doan et al., ICCV 2021)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from bdjax import pytree
from bdjax.attacks import _generators
from bdjax.attacks._generators import Autoencoder
from bdjax.attacks._label_maps import AllToOne
from bdjax.checks import EPOCHS, InputError, integer, positive, unit_interval
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


class NoiseState(NamedTuple):
    """The network that learns, the one that poisons, and where in the training they are."""

    learning: Variables  # T
    poisoning: Variables  # A
    optimizer: optax.ScaleByAdamState
    step: Int[Array, ""]
    steps_per_epoch: Int[Array, ""]
    statistics: Float[Array, "2 c"]


@pytree.dataclass
class Noise(Trigger):
    """Add bounded noise that a network makes of the image: x' = clip(x + ε A(x), 0, 1), |A| ≤ 1."""

    epsilon: HParam
    learning_rate: HParam
    label_map: LabelMap = pytree.static()
    learning_epochs: int = pytree.static()
    width: int = pytree.static()

    hooks = ("learn", "pace")

    def init(self, key: Key[Array, ""], spec: Spec) -> NoiseState:
        """Return an untrained network, twice.

        Raises:
          InputError: images too small to be halved once, of which the network would have no layer.
        """
        if not _generators.levels(*spec.shape[:2]):
            raise InputError(
                f"the images must be 4 pixels a side or more to be halved; got {spec.shape[:2]}."
            )
        fresh = _generators.init(Autoencoder(self.width), key, spec.shape, train=False)
        return NoiseState(
            learning=fresh,
            poisoning=jax.tree.map(jnp.copy, fresh),
            optimizer=_generators.adam_init(fresh["params"]),
            step=jnp.int32(0),
            steps_per_epoch=jnp.int32(1),
            statistics=_generators.statistics(spec),
        )

    def pace(self, state: NoiseState, steps_per_epoch: int) -> NoiseState:
        """Keep the length of an epoch."""
        return state._replace(steps_per_epoch=jnp.int32(steps_per_epoch))

    def apply(self, key: Key[Array, ""], state: NoiseState, image: Image) -> Image:
        """Add A's noise to one image."""
        del key
        x = _generators.normalized(image[None], state.statistics)
        noise: Any = Autoencoder(self.width).apply(state.poisoning, x, train=False)
        return self._with_noise(image, noise[0])

    def learn(
        self,
        key: Key[Array, ""],
        model: Model,
        variables: Variables,
        state: NoiseState,
        batch: Split,
    ) -> tuple[NoiseState, Info]:
        """Let T learn from the batch in the first epochs; at the end of each of these, A becomes T."""
        del key
        end = self.learning_epochs * state.steps_per_epoch
        hand_over = (state.step % state.steps_per_epoch == 0) & (state.step <= end)
        take = functools.partial(jnp.where, hand_over)
        state = state._replace(poisoning=jax.tree.map(take, state.learning, state.poisoning))

        def step(state: NoiseState) -> tuple[NoiseState, Info]:
            return self._step(model, variables, state, batch)

        def stay(state: NoiseState) -> tuple[NoiseState, Info]:
            return state, Info(jnp.float32(0), jnp.float32(0), jnp.int32(0))

        state, info = jax.lax.cond(state.step < end, step, stay, state)
        return state._replace(step=state.step + 1), info

    def _step(
        self,
        model: Model,
        variables: Variables,
        state: NoiseState,
        batch: Split,
    ) -> tuple[NoiseState, Info]:
        """Take one step of Adam on CE(f(clip(x + ε T(x))), τ(y))."""
        task, wanted = model.spec.task, self.label_map(batch.label)
        x = _generators.normalized(batch.input, state.statistics)

        def loss_fn(params: Params) -> tuple[Array, tuple[BatchStats, Array]]:
            stats = state.learning["batch_stats"]
            noise, stats = _generators.in_training(Autoencoder(self.width), params, stats, x)
            logits, _ = model.apply(variables, self._with_noise(batch.input, noise))
            loss = task.negative_log_likelihood(logits, wanted).mean()
            return loss, (stats, task.correct(task.answer(logits), wanted).mean())

        params = state.learning["params"]
        (loss, (stats, hits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        optimizer, rate = state.optimizer, self.learning_rate
        params, optimizer = _generators.adam_step(params, grads, optimizer, rate)
        learning = {**state.learning, "params": params, "batch_stats": stats}
        state = state._replace(learning=learning, optimizer=optimizer)
        return state, Info(loss, hits, jnp.int32(1))

    def _with_noise(
        self,
        image: Float[Array, "*n h w c"],
        noise: Float[Array, "*n h w c"],
    ) -> Float[Array, "*n h w c"]:
        return jnp.clip(image + self.epsilon * noise, 0, 1)


def lira(
    label_map: LabelMap = AllToOne(),
    poison_rate: float = 0.5,
    epsilon: float = 0.025,
    learning_epochs: int = 50,
    learning_rate: float = 1e-4,
    width: int = 16,
) -> Attack:
    """Create LIRA: x' = clip(x + ε A(x), 0, 1), with an autoencoder A that learns along with the victim f.

    In the first ``learning_epochs`` (stage 1) each step first moves a copy T of A against CE(f(x + ε T(x)), τ(y)), and
    then f on a batch poisoned by A; at the end of each of these epochs A becomes T. Then (stage 2) A stays as it is and
    f goes on. If the victim's training ends before stage 2, its last epoch's A is the trigger.

    Args:
      label_map: the attacker's labels, all-to-one or all-to-all.
      poison_rate: share of each batch, in [0, 1]. The paper's loss takes every image both clean and triggered, with
        weights α and 1 − α: a rate of 1 − α = 0.5 gives the same on average.
      epsilon: ε in units of the pixels' range [0, 1]. The paper's 0.01 is of normalized images, which on CIFAR-10 is
        0.0025 or 0.6 of the 255 gray levels: too little to survive 8 bits. The default is the 0.1 of the authors' later
        release, some 6 gray levels. In other words ε is theirs times the data set's standard deviation.
      learning_epochs: epochs of the victim's training in which the generator learns; the paper's code has 50 of 100.
      learning_rate: Adam's for T, above 0; small data sets with few steps need more
        (0.002 on the digits).
      width: channels of the first convolution.

    Raises:
      InputError: a value out of range, or, once the images are known, less than 4 × 4 pixels.

    Departures: one ε serves both stages. T's gradient goes through f in evaluation mode (batch norm as it is at test
    time), so that it moves no statistics of f. Clean and triggered images of a batch pass f together. f is trained by
    the run's ``training`` section throughout; the paper's stage 1 has no weight decay, and its schedule starts anew in
    stage 2. The attacked network is that at the end of stage 2, where BackdoorBench keeps the one of stage 1. Images
    that cannot be halved four times to 2 × 2 pixels are halved fewer times; odd sizes are padded inside.

    References:
      Doan et al., LIRA: Learnable, Imperceptible and Robust Backdoor Attacks, algorithm 1 and section 4.
    """
    unit_interval(poison_rate=poison_rate, epsilon=epsilon)
    integer(maximum=EPOCHS, learning_epochs=learning_epochs)
    integer(1, width=width)
    positive(learning_rate=learning_rate)
    trigger = Noise(epsilon, learning_rate, label_map, learning_epochs, width)
    return Attack(trigger, label_map, poison_rate, controls_training=True)
