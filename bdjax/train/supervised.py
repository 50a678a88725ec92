"""Supervised learning as a learner: a loss, a gradient transformation and SGD. Victims and fine-tuning share it."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import xlogy
from jaxtyping import Array, Bool, Float, Int, Key

from bdjax.checks import integer, one_of, unit_interval
from bdjax.data import augment
from bdjax.optim.sgd import Schedule, Sgd
from bdjax.types import BatchStats, HParam, Info, Model, Split, Variables

AUGMENTATIONS = ("standard", "none")


class TrainState(NamedTuple):
    """Arrays only: checkpoint, vmap and shard it as it is."""

    step: Int[Array, ""]
    steps_per_epoch: Int[Array, ""]
    variables: Variables
    opt_state: optax.OptState


@runtime_checkable
class GradientRule(Protocol):
    """What happens to the gradient before SGD sees it: a frozen dataclass whose floats are leaves."""

    @property
    def gradient_evaluations(self) -> int:
        """Gradients of one batch that a step takes, the first included."""
        ...

    def transformation(self) -> optax.GradientTransformation: ...


@flax.struct.dataclass
class PlainGradient:
    """The gradient as it is."""

    gradient_evaluations: int = flax.struct.field(pytree_node=False, default=1)

    def transformation(self) -> optax.GradientTransformation:
        """Return the identity."""
        return optax.identity()


@flax.struct.dataclass
class Supervised:
    """Minimize the mean cross-entropy over the batches of a split.

    Attributes:
      sgd: the optimizer.
      gradient: what is done to the gradient first (SAM, …).
      label_smoothing: ε in `cross_entropy`.
      augment: ``standard`` is the data set's own (`ImageSpec`), drawn anew for every image and epoch, or ``none``.
      epochs, batch_size: whole numbers. drop_last: leave out an epoch's last, smaller batch.
    """

    sgd: Sgd
    gradient: Any = PlainGradient()
    label_smoothing: HParam = 0.0
    augment: str = flax.struct.field(pytree_node=False, default="standard")
    epochs: int = flax.struct.field(pytree_node=False, default=100)
    batch_size: int = flax.struct.field(pytree_node=False, default=128)
    drop_last: bool = flax.struct.field(pytree_node=False, default=False)

    def init(self, key: Key[Array, ""], model: Model, variables: Variables, split: Split) -> TrainState:
        """Return the state before the first step."""
        del key, model
        rows = split.label.shape[0]
        steps = rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)
        steps_per_epoch = jnp.int32(max(steps, 1))
        opt_state = self._transformation(steps_per_epoch).init(variables["params"])
        return TrainState(jnp.int32(0), steps_per_epoch, variables, opt_state)

    def update(self, key: Key[Array, ""], model: Model, state: TrainState, batch: Split) -> tuple[TrainState, Info]:
        """Take one step. Running batch statistics come from the pass at the unperturbed parameters."""
        image = augment.standard(key, batch.image, model.spec) if self.augment == "standard" else batch.image
        batch = batch._replace(image=augment.as_float(image))
        params, batch_stats = state.variables["params"], state.variables["batch_stats"]

        def loss_fn(params: Any) -> tuple[Array, tuple[BatchStats, Array]]:
            variables = {"params": params, "batch_stats": batch_stats}
            logits, changed = model.apply(variables, batch.image, train=True, valid=batch.valid)
            return mean_loss(logits, batch, self.label_smoothing), (changed, logits)

        (loss, (changed, logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = self._transformation(state.steps_per_epoch).update(
            grads, state.opt_state, params, grad_fn=lambda at: jax.grad(loss_fn, has_aux=True)(at)[0], value=loss
        )
        variables = {"params": optax.apply_updates(params, updates), "batch_stats": changed}
        info = Info(loss, accuracy(logits, batch), jnp.int32(self.gradient.gradient_evaluations))
        return TrainState(state.step + 1, state.steps_per_epoch, variables, opt_state), info

    def finalize(self, model: Model, state: TrainState) -> Variables:
        """Return the variables of the last step."""
        del model
        return state.variables

    def _transformation(self, steps_per_epoch: Int[Array, ""]) -> optax.GradientTransformationExtraArgs:
        sgd, schedule = self.sgd, self.sgd.schedule
        if schedule.period is None:  # the run's length, which is known in steps only here
            length = self.epochs if schedule.per == "epoch" else self.epochs * steps_per_epoch
            sgd = dataclasses.replace(sgd, schedule=dataclasses.replace(schedule, period=length))
        return optax.chain(self.gradient.transformation(), sgd.transformation(steps_per_epoch))


def supervised(
    epochs: int = 100,
    batch_size: int = 128,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Schedule = Schedule(kind="cosine"),
    label_smoothing: float = 0.0,
    augment: str = "standard",
    drop_last: bool = True,
    gradient: GradientRule | None = None,
) -> Supervised:
    """Create a learner that minimizes the cross-entropy with SGD; the defaults are the papers' victim training.

    Args:
      epochs: passes over the split.
      batch_size: images a step.
      learning_rate: SGD's base rate.
      momentum: in [0, 1).
      weight_decay: coupled, on every parameter.
      schedule: how the rate moves; a cosine over the run unless said otherwise.
      label_smoothing: share ε of the probability that goes to the other classes.
      augment: ``standard`` (the data set's own) or ``none``.
      drop_last: leave out the last, smaller batch of an epoch.
      gradient: what is done to the gradient before SGD; nothing by default.

    Raises:
      InputError: a value out of range.
    """
    integer(epochs=epochs)
    integer(1, batch_size=batch_size)
    unit_interval(label_smoothing=label_smoothing)
    one_of(AUGMENTATIONS, augment=augment)
    sgd = Sgd(learning_rate, momentum, weight_decay, schedule)
    sgd.check()
    if schedule.period is None and schedule.per == "epoch":
        sgd = dataclasses.replace(sgd, schedule=dataclasses.replace(schedule, period=float(max(epochs, 1))))
    return Supervised(sgd, gradient or PlainGradient(), label_smoothing, augment, epochs, batch_size, drop_last)


def cross_entropy(
    logits: Float[Array, "n k"], label: Int[Array, " n"], label_smoothing: HParam = 0.0
) -> Float[Array, " n"]:
    """Return KL(q ‖ softmax(logits)) for each row, which is the cross-entropy for ε = 0.

    q puts 1 − ε on the label and ε / (C − 1) on each other class, ε = ``label_smoothing``. It equals the
    cross-entropy with uniform smoothing ε C / (C − 1) less the entropy of q (BackdoorBench's form of the loss).
    """
    classes = logits.shape[-1]
    is_label = jax.nn.one_hot(label, classes, dtype=logits.dtype)
    q = jnp.where(is_label > 0, 1 - label_smoothing, label_smoothing / (classes - 1))
    return jnp.sum(xlogy(q, q) - q * jax.nn.log_softmax(logits), axis=-1)


def mean_loss(logits: Float[Array, "n k"], batch: Split, label_smoothing: HParam = 0.0) -> Float[Array, ""]:
    """Return the mean cross-entropy over the valid rows."""
    return _mean(cross_entropy(logits, batch.label, label_smoothing), batch.valid)


def accuracy(logits: Float[Array, "n k"], batch: Split) -> Float[Array, ""]:
    """Return the share of valid rows whose largest logit is at the label."""
    return _mean((logits.argmax(-1) == batch.label).astype(jnp.float32), batch.valid)


def _mean(values: Float[Array, " n"], valid: Bool[Array, " n"] | None) -> Float[Array, ""]:
    if valid is None:
        return values.mean()
    return jnp.sum(values * valid) / jnp.maximum(valid.sum(), 1)
