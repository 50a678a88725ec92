"""Supervised learning as a learner: loss, parametrization, gradient rule and SGD; of victims and of fine-tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from bdjax import pytree
from bdjax.checks import EPOCHS, InputError, integer, non_negative, one_of, unit_interval
from bdjax.data import augment
from bdjax.data.augment import AUGMENTATIONS
from bdjax.optim.pgd import pgd
from bdjax.optim.sgd import Schedule, Sgd
from bdjax.parametrizations import FrozenConvolutions, Identity
from bdjax.train import batches
from bdjax.train.gradients import Context, FisherTrace, GradientRule, Perturbed, PlainGradient
from bdjax.types import BatchStats, HParam, Info, Model, Parametrization, Split, Task, Variables

ATTACK_STEPS = 2  # of ``adversarial``, each a gradient evaluation
STARTS = ("scratch", "clean")


class TrainState(NamedTuple):
    """Arrays only: checkpoint, vmap and shard it as it is."""

    step: Int[Array, ""]
    steps_per_epoch: Int[Array, ""]
    tuned: Any
    frozen: Any
    batch_stats: BatchStats
    rule: Any
    optimizer: optax.OptState
    unreported: Int[Array, ""]  # gradient evaluations before the first step, which reports them


@pytree.dataclass
class Supervised:
    """Minimize the mean cross-entropy over the batches of a split.

    Attributes:
      sgd: the optimizer.
      gradient: what is done to the gradient first (SAM, penalties, …).
      parametrization: what is tuned.
      label_smoothing: ε in `cross_entropy`.
      augment: of the modality's ``augmented``, drawn anew for every image and epoch.
      epochs, batch_size: whole numbers. drop_last: leave out what the batches of an epoch leave over.
      start: what an attacker gives it to start from, a new network (``scratch``) or a ``clean`` one.
    """

    sgd: Sgd
    gradient: Any = PlainGradient()
    parametrization: Any = Identity()
    label_smoothing: HParam = 0.0
    augment: str = pytree.static(default="standard")
    epochs: int = pytree.static(default=100)
    batch_size: int = pytree.static(default=128)
    drop_last: bool = pytree.static(default=False)
    start: str = pytree.static(default="scratch")

    def init(self, key: Key[Array, ""], model: Model, variables: Variables, split: Split) -> TrainState:
        """Return the state before the first step."""
        del key
        rows = split.label.shape[0]
        steps_per_epoch = jnp.int32(batches.of_learner(self, rows).steps)
        tuned, frozen = self.parametrization.init(model, variables)
        loss_fn = self._example_loss_fn(model, frozen, variables["batch_stats"])
        rule, passes = self.gradient.init(tuned, loss_fn, split, model.spec.num_classes)
        optimizer = self._optimizer(frozen, steps_per_epoch).init(tuned)
        step, unreported = jnp.int32(0), jnp.int32(passes * -(-rows // self.batch_size))
        return TrainState(step, steps_per_epoch, tuned, frozen, variables["batch_stats"], rule, optimizer, unreported)

    def update(self, key: Key[Array, ""], model: Model, state: TrainState, batch: Split) -> tuple[TrainState, Info]:
        """Take one step."""
        return self.learn(key, model, state, self.prepare(key, model, batch))

    @property
    def prepares(self) -> bool:
        """Whether the loop may prepare batches; where images are mixed, the compiler would round otherwise."""
        return self.augment in augment.MOVING

    def prepare(self, key: Key[Array, ""], model: Model, batch: Split) -> Split:
        """Crop and flip the images, which keep their type: the part of the augmentation that computes no pixel."""
        return batch._replace(input=model.spec.modality.moved(key, batch.input, self.augment))

    def learn(self, key: Key[Array, ""], model: Model, state: TrainState, batch: Split) -> tuple[TrainState, Info]:
        """Take the rest of a step. Running batch statistics come from the pass at the unperturbed parameters."""
        tuned, frozen, batch_stats = state.tuned, state.frozen, state.batch_stats
        task = model.spec.task
        mixed = model.spec.modality.mixed(key, batch.input, self.augment)
        batch = batch._replace(input=mixed.input)
        attacked = self.augment == "adversarial"
        if attacked:
            batch = self._attacked(jax.random.fold_in(key, augment.ATTACK), model, state, batch)

        def loss_fn(tuned: Any) -> tuple[Array, tuple[BatchStats, Array]]:
            variables = {"params": self.parametrization.apply(tuned, frozen), "batch_stats": batch_stats}
            logits, changed = model.apply(variables, batch.input, train=True, valid=batch.valid)
            loss = mean_loss(task, logits, batch, self.label_smoothing)
            if self.augment in augment.MIXING:
                partner = batch._replace(label=batch.label[mixed.partner])
                loss = mixed.weight * loss + (1 - mixed.weight) * mean_loss(task, logits, partner, self.label_smoothing)
            return loss, (changed, logits)

        (loss, (changed, logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(tuned)
        context = Context(
            key=jax.random.fold_in(key, augment.RULE),
            batch=batch,
            grad_fn=lambda at: jax.grad(loss_fn, has_aux=True)(at)[0],
            example_loss_fn=self._example_loss_fn(model, frozen, batch_stats),
            rate=lambda step: self._schedule(state.steps_per_epoch).scale(step, state.steps_per_epoch),
        )
        grads, rule, further = self.gradient.update(grads, state.rule, tuned, context)
        optimizer = self._optimizer(frozen, state.steps_per_epoch)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, tuned, value=loss)
        evaluations = 1 + further + state.unreported + (ATTACK_STEPS if attacked else 0)
        info = Info(loss, accuracy(task, logits, batch), jnp.int32(evaluations))
        state = state._replace(
            step=state.step + 1,
            tuned=optax.apply_updates(tuned, updates),
            batch_stats=changed,
            rule=rule,
            optimizer=optimizer_state,
            unreported=jnp.int32(0),
        )
        return state, info

    def finalize(self, model: Model, state: TrainState) -> Variables:
        """Return the variables of the last step, what was tuned baked into the network's own parameters."""
        del model
        return {"params": self.parametrization.apply(state.tuned, state.frozen), "batch_stats": state.batch_stats}

    def kept(self, state: TrainState) -> TrainState:
        """Return the state without what is frozen."""
        return state._replace(frozen=())

    def restored(self, kept: TrainState, model: Model, variables: Variables) -> TrainState:
        """Return the state with what is frozen, made again from the variables of the start."""
        _, frozen = self.parametrization.init(model, variables)
        return kept._replace(frozen=frozen)

    def _example_loss_fn(self, model: Model, frozen: Any, batch_stats: BatchStats) -> Callable[[Any, Any], Array]:
        def loss_fn(tuned: Any, example: Any) -> Array:
            input, label = example
            variables = {"params": self.parametrization.factored(tuned, frozen), "batch_stats": batch_stats}
            output, _ = model.apply(variables, model.spec.modality.load(input)[None], train=False)
            return model.spec.task.negative_log_likelihood(output, label[None])[0]

        return loss_fn

    def _attacked(self, key: Key[Array, ""], model: Model, state: TrainState, batch: Split) -> Split:
        """Replace the images by adversarial ones; the attack sees batch norm in evaluation mode, and so each alone."""
        variables = self.finalize(model, state)

        def loss_fn(image: Array) -> Array:
            return model.spec.task.loss(model.apply(variables, image)[0], batch.label).sum()

        return batch._replace(input=pgd(key, loss_fn, batch.input, steps=ATTACK_STEPS))

    def _optimizer(self, frozen: Any, steps_per_epoch: Int[Array, ""]) -> optax.GradientTransformationExtraArgs:
        sgd = dataclasses.replace(self.sgd, schedule=self._schedule(steps_per_epoch))
        return optax.chain(sgd.transformation(steps_per_epoch), self.parametrization.constraint(frozen))

    def _schedule(self, steps_per_epoch: Int[Array, ""]) -> Schedule:
        """Return the schedule with its period: the run's length, unless it was given."""
        schedule = self.sgd.schedule
        if schedule.period is not None:
            return schedule
        length = max(self.epochs, 1) * (1 if schedule.per == "epoch" else steps_per_epoch)
        return dataclasses.replace(schedule, period=length)


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
    parametrization: Parametrization | None = None,
    start: str = "scratch",
    frozen_convolutions: int = 0,
    rho: float | None = None,
    eta_f: float | None = None,
) -> Supervised:
    """Create a learner that minimizes the cross-entropy with SGD; the defaults are the papers' victim training.

    Args:
      epochs: passes over the split.
      batch_size: most images a step; all images where there are fewer.
      learning_rate: SGD's base rate.
      momentum: in [0, 1).
      weight_decay: coupled, on everything that is tuned.
      schedule: how the rate moves; a cosine over the run unless said otherwise.
      label_smoothing: share ε of the probability that goes to the other classes.
      augment: ``standard`` (the data set's own), ``none``, ``mixup``, ``cutmix``, ``randaugment``, ``augmix``,
        ``cutout`` or ``adversarial``.
      drop_last: leave out the images that would not fill a batch, others in each epoch; without it all batches are
        as even as can be.
      gradient: what is done to the gradient before SGD; nothing by default.
      parametrization: what is tuned; the weights by default.
      start: ``clean`` is for an attacker who first trains a network like this on clean images, with none of these four
        options, and goes on from there with poisoned ones; ``scratch`` is a new network.
      frozen_convolutions: the kernels of so many of the last convolutions stay as they are at the start, so that a
        backdoor has to hide in earlier layers (5 in NFT's table 13, with a clean start).
      rho: radius ρ ≥ 0 of FT-SAM's adaptive sharpness-aware minimization: an attacker who plants a backdoor where the
        loss is flat, and a defense that flattens it finds little to do.
      eta_f: weight η_F ≥ 0 of SFT's trace of the Fisher information, on every tenth step, to the same end; instead of
        ``rho``.

    Raises:
      InputError: a value out of range, or options that exclude each other.
    """
    integer(maximum=EPOCHS, epochs=epochs)
    integer(1, batch_size=batch_size)
    unit_interval(label_smoothing=label_smoothing)
    one_of(AUGMENTATIONS, augment=augment)
    one_of(STARTS, start=start)
    integer(frozen_convolutions=frozen_convolutions)
    if rho is not None:
        non_negative(rho=rho)
        gradient = _only(gradient, Perturbed(rho), "rho")
    if eta_f is not None:
        non_negative(eta_f=eta_f)
        gradient = _only(gradient, FisherTrace(eta_f), "eta_f")
    if frozen_convolutions:
        parametrization = _only(parametrization, FrozenConvolutions(frozen_convolutions), "frozen_convolutions")
    sgd = Sgd(learning_rate, momentum, weight_decay, schedule)
    sgd.check()
    return Supervised(
        sgd, gradient or PlainGradient(), parametrization or Identity(), label_smoothing, augment,
        epochs, batch_size, drop_last, start,
    )  # fmt: skip


def _only(given: Any, made: Any, option: str) -> Any:
    if given is not None:
        raise InputError(f"{option} must be left out beside what else is done: {type(given).__name__}.")
    return made


def mean_loss(task: Task, output: Array, batch: Split, label_smoothing: HParam = 0.0) -> Float[Array, ""]:
    """Return the mean of a task's loss over the valid rows."""
    return _mean(task.loss(output, batch.label, label_smoothing), batch.valid)


def accuracy(task: Task, output: Array, batch: Split) -> Float[Array, ""]:
    """Return how right the answers of the valid rows are, on average."""
    return _mean(task.correct(task.answer(output), batch.label).astype(jnp.float32), batch.valid)


def _mean(values: Float[Array, " n"], valid: Bool[Array, " n"] | None) -> Float[Array, ""]:
    if valid is None:
        return values.mean()
    return jnp.sum(values * valid) / jnp.maximum(valid.sum(), 1)
