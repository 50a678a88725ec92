"""Supervised learning as a learner: loss, parametrization and optax chain; of victims and of fine-tuning."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from bdjax import optim, pytree
from bdjax.data import augment
from bdjax.data.mixing import Mixed
from bdjax.optim.pgd import pgd
from bdjax.optim.sgd import Schedule, Sgd
from bdjax.parametrizations import Identity
from bdjax.train import batches
from bdjax.train.recipe import VICTIM_RECIPE, Recipe, with_recipe
from bdjax.train.transformations import ExampleLoss, PlainSgd, Setting, Transformation
from bdjax.types import BatchStats, HParam, Info, Model, Parametrization, Split, Task, Variables

ATTACK_STEPS = 2  # of ``adversarial``, each a gradient evaluation

_Loss: TypeAlias = Callable[[Any], tuple[Array, tuple[BatchStats, Array]]]


class TrainState(NamedTuple):
    """Arrays only: checkpoint, vmap and shard it as it is."""

    step: Int[Array, ""]
    rows: Int[Array, ""]
    steps_per_epoch: Int[Array, ""]
    tuned: Any
    frozen: Any
    batch_stats: BatchStats
    optimizer: optax.OptState
    reported: Int[Array, ""]  # those gradient evaluations of the chain that a step has told of


@pytree.dataclass
class Supervised:
    """Minimize the mean loss over the batches of a split.

    Attributes:
      sgd: the optimizer.
      transformation: how a gradient becomes a step; plain SGD by default.
      parametrization: what is tuned; the weights by default.
      label_smoothing: ε of the task's loss.
      augment: of the modality's ``augmented``, drawn anew for every image and epoch.
      epochs, batch_size: whole numbers. drop_last: leave out what the batches of an epoch leave over.
    """

    sgd: Sgd
    transformation: Any = PlainSgd()
    parametrization: Any = Identity()
    label_smoothing: HParam = 0.0
    augment: str = pytree.static(default="standard")
    epochs: int = pytree.static(default=100)
    batch_size: int = pytree.static(default=128)
    drop_last: bool = pytree.static(default=False)

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        *,
        transformation: Transformation = PlainSgd(),
        parametrization: Parametrization = Identity(),
        drop_last: bool = False,
    ) -> Supervised:
        """Return the learner that follows a recipe; the rest is as in the attributes."""
        return cls(
            sgd=recipe.sgd,
            transformation=transformation,
            parametrization=parametrization,
            label_smoothing=recipe.label_smoothing,
            augment=recipe.augment,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            drop_last=drop_last,
        )

    def init(
        self, key: Key[Array, ""], model: Model, variables: Variables, split: Split
    ) -> TrainState:
        """Return the state before the first step."""
        del key
        rows, batch_stats = split.valid.sum().astype(jnp.int32), variables["batch_stats"]
        steps_per_epoch = jnp.int32(batches.of_learner(self, split.label.shape[0]).steps)
        tuned, frozen = self.parametrization.init(model, variables)
        zero = jnp.int32(0)
        state = TrainState(zero, rows, steps_per_epoch, tuned, frozen, batch_stats, (), zero)
        return state._replace(optimizer=self._chain(model, state, split).init(tuned))

    def update(
        self, key: Key[Array, ""], model: Model, state: TrainState, batch: Split
    ) -> tuple[TrainState, Info]:
        """Take one step."""
        return self.learn(key, model, state, self.prepare(key, model, batch))

    @property
    def prepares(self) -> bool:
        """Whether the loop may prepare batches; where images are mixed, the compiler would round otherwise."""
        return self.augment in augment.MOVING

    def prepare(self, key: Key[Array, ""], model: Model, batch: Split) -> Split:
        """Crop and flip the images, which keep their type: the part of the augmentation that computes no pixel."""
        return batch._replace(input=model.spec.modality.moved(key, batch.input, self.augment))

    def learn(
        self, key: Key[Array, ""], model: Model, state: TrainState, batch: Split
    ) -> tuple[TrainState, Info]:
        """Take the rest of a step. Running batch statistics come from the pass at the unperturbed parameters."""
        mixed = model.spec.modality.mixed(key, batch.input, self.augment)
        batch = batch._replace(input=mixed.input)
        evaluations = jnp.int32(1)
        if self.augment == "adversarial":
            batch = self._attacked(jax.random.fold_in(key, augment.ATTACK), model, state, batch)
            evaluations += ATTACK_STEPS
        drawn = jax.random.fold_in(key, augment.DROPOUT)
        loss_fn = self._loss_fn(model, state, batch, mixed, drawn)
        (loss, (changed, output)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.tuned)
        chain = self._chain(model, state)
        updates, optimizer = chain.update(
            grads,
            state.optimizer,
            state.tuned,
            value=loss,
            grad_fn=lambda at: jax.grad(loss_fn, has_aux=True)(at)[0],
            key=jax.random.fold_in(key, augment.RULE),
            batch=batch,
            example_loss_fn=self._example_loss_fn(model, state),
        )
        spent = optim.gradient_evaluations(optimizer)
        info = Info(
            loss, accuracy(model.spec.task, output, batch), evaluations + spent - state.reported
        )
        state = state._replace(
            step=state.step + 1,
            tuned=optax.apply_updates(state.tuned, updates),
            batch_stats=changed,
            optimizer=optimizer,
            reported=spent,
        )
        return state, info

    def finalize(self, model: Model, state: TrainState) -> Variables:
        """Return the variables of the last step, what was tuned baked into the network's own parameters."""
        del model
        return {
            "params": self.parametrization.apply(state.tuned, state.frozen),
            "batch_stats": state.batch_stats,
        }

    def kept(self, state: TrainState) -> TrainState:
        """Return the state without what is frozen."""
        return state._replace(frozen=())

    def restored(self, kept: TrainState, model: Model, variables: Variables) -> TrainState:
        """Return the state with what is frozen, made again from the variables of the start."""
        _, frozen = self.parametrization.init(model, variables)
        return kept._replace(frozen=frozen)

    def _loss_fn(
        self, model: Model, state: TrainState, batch: Split, mixed: Mixed, key: Key[Array, ""]
    ) -> _Loss:
        """Return the batch's training loss of what is tuned, beside the new batch statistics and the outputs.

        It is one function: dropout draws the same in all passes of a step, where PyTorch's SAM draws again.
        """
        mean = functools.partial(mean_loss, model.spec.task, label_smoothing=self.label_smoothing)
        forward = functools.partial(model.apply, train=True, valid=batch.valid)
        if _takes_key(model):
            forward = functools.partial(forward, key=key)

        def loss_fn(tuned: Any) -> tuple[Array, tuple[BatchStats, Array]]:
            params = self.parametrization.apply(tuned, state.frozen)
            variables = {"params": params, "batch_stats": state.batch_stats}
            output, changed = forward(variables, batch.input)
            loss = mean(output, batch)
            if self.augment in augment.MIXING:
                partner = batch._replace(label=batch.label[mixed.partner])
                loss = mixed.weight * loss + (1 - mixed.weight) * mean(output, partner)
            return loss, (changed, output)

        return loss_fn

    def _example_loss_fn(self, model: Model, state: TrainState) -> ExampleLoss:
        def loss_fn(tuned: Any, example: tuple[Array, Array]) -> Float[Array, ""]:
            input, label = example
            params = self.parametrization.factored(tuned, state.frozen)
            variables = {"params": params, "batch_stats": state.batch_stats}
            output, _ = model.apply(variables, model.spec.modality.load(input)[None], train=False)
            return model.spec.task.negative_log_likelihood(output, label[None])[0]

        return loss_fn

    def _attacked(
        self, key: Key[Array, ""], model: Model, state: TrainState, batch: Split
    ) -> Split:
        """Replace the images by adversarial ones; the attack sees batch norm in evaluation mode, and so each alone."""
        variables = self.finalize(model, state)

        def loss_fn(image: Array) -> Array:
            return model.spec.task.loss(model.apply(variables, image)[0], batch.label).sum()

        return batch._replace(input=pgd(key, loss_fn, batch.input, steps=ATTACK_STEPS))

    def _chain(
        self, model: Model, state: TrainState, split: Split | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """Return what a step is made with; of a state that is being made, with the whole split."""
        schedule = self._schedule(state.steps_per_epoch)
        sgd = dataclasses.replace(self.sgd, schedule=schedule)
        setting = Setting(
            spec=model.spec,
            rows=state.rows,
            steps_per_epoch=state.steps_per_epoch,
            sgd=sgd.transformation(state.steps_per_epoch),
            rate=lambda step: schedule.scale(step, state.steps_per_epoch),
            example_loss_fn=self._example_loss_fn(model, state),
            split=split,
        )
        return optax.chain(
            self.transformation(setting), self.parametrization.constraint(state.frozen)
        )

    def _schedule(self, steps_per_epoch: Int[Array, ""]) -> Schedule:
        """Return the schedule with its period: the run's length, unless it was given."""
        schedule = self.sgd.schedule
        if schedule.period is not None:
            return schedule
        length = max(self.epochs, 1) * (1 if schedule.per == "epoch" else steps_per_epoch)
        return dataclasses.replace(schedule, period=length)


@with_recipe(VICTIM_RECIPE)
def supervised(
    recipe: Recipe,
    *,
    drop_last: bool = True,
    transformation: Transformation = PlainSgd(),
    parametrization: Parametrization = Identity(),
) -> Supervised:
    """Create a learner that minimizes the task's loss with SGD; the defaults are the papers' victim training.

    Args:
      drop_last: leave out the images that would not fill a batch, others in each epoch; without it all batches are
        as even as can be.
      transformation: how a gradient becomes a step; plain SGD by default.
      parametrization: what is tuned; the weights by default.

    Raises:
      InputError: a value out of range.
    """
    return Supervised.of(
        recipe, transformation=transformation, parametrization=parametrization, drop_last=drop_last
    )


def _takes_key(model: Model) -> bool:
    """Whether a network can be given a key; one that draws nothing may have been written without."""
    parameters = inspect.signature(model.apply).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    return "key" in parameters or inspect.Parameter.VAR_KEYWORD in kinds


def mean_loss(
    task: Task, output: Array, batch: Split, label_smoothing: HParam = 0.0
) -> Float[Array, ""]:
    """Return the mean of a task's loss over the valid rows."""
    return _mean(task.loss(output, batch.label, label_smoothing), batch.valid)


def accuracy(task: Task, output: Array, batch: Split) -> Float[Array, ""]:
    """Return how right the answers of the valid rows are, on average."""
    return _mean(task.correct(task.answer(output), batch.label).astype(jnp.float32), batch.valid)


def _mean(values: Float[Array, " n"], valid: Bool[Array, " n"] | None) -> Float[Array, ""]:
    if valid is None:
        return values.mean()
    return jnp.sum(values * valid) / jnp.maximum(valid.sum(), 1)
