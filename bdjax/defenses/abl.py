"""ABL: anti-backdoor learning on the training set that the attacker delivered (Li et al., NeurIPS 2021)."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from bdjax import pytree
from bdjax.checks import EPOCHS, below_one, integer, non_negative, positive
from bdjax.defenses._operation import Operation
from bdjax.defenses._stages import SCRATCH, TRAINING, Defense, DefenseStage
from bdjax.optim.sgd import Schedule
from bdjax.train import programs
from bdjax.train.recipe import Recipe, with_recipe
from bdjax.train.supervised import Supervised
from bdjax.train.transformations import Setting
from bdjax.types import HParam, Info, Model, Split, Variables

PRESETS = {
    "paper": {},
    "reference_code": {  # the authors' script
        "isolation_epochs": 10,
        "unlearning_epochs": 4,
        "unlearning_rate": 5e-4,
        "batch_size": 128,
        "learning_rate": 0.1,
        "augment": "cutout",
    },
}
STRENGTHS = {"unlearning_rate": (1e-5, 1e-4, 5e-4, 2e-3)}  # what ``auto`` tries
_CHUNK = 100  # examples whose losses are computed at once


@pytree.dataclass
class AscentBelow:
    """The gradient of sign(L − γ) L, L the loss of a batch: local gradient ascent; then SGD."""

    gamma: HParam

    def __call__(self, setting: Setting, /) -> optax.GradientTransformationExtraArgs:
        """Return the chain of a step."""

        def update(
            updates: optax.Updates,
            state: optax.OptState,
            params: optax.Params | None = None,
            *,
            value: Float[Array, ""],
            **extra: Any,
        ) -> tuple[optax.Updates, optax.OptState]:
            del params, extra
            sign = jnp.sign(value - self.gamma)
            return jax.tree.map(lambda g: g * sign.astype(g.dtype), updates), state

        flip = optax.GradientTransformationExtraArgs(optax.identity().init, cast(Any, update))
        return optax.chain(flip, setting.sgd)


@pytree.dataclass
class Ascent:
    """The gradient upwards; then SGD."""

    def __call__(self, setting: Setting, /) -> optax.GradientTransformationExtraArgs:
        """Return the chain of a step."""
        return optax.chain(optax.scale(-1.0), setting.sgd)


@pytree.dataclass
class Unlearning(Operation):
    """Isolate the examples of the lowest loss, learn from the others, unlearn the isolated: one operation."""

    tuning: Supervised
    unlearning: Supervised
    isolate: float = pytree.static(default=0.01)

    def update(
        self,
        key: Key[Array, ""],
        model: Model,
        state: Variables,
        batch: Split,
    ) -> tuple[Variables, Info]:
        """Take all of it. What is reported is measured on the examples that were not isolated."""
        rows = batch.label.shape[0]
        count = max(1, int(self.isolate * rows + 1e-9))
        losses, _ = measured(model, state, batch)
        order = jnp.argsort(losses)
        isolated, rest = _rows(batch, order[:count]), _rows(batch, order[count:])
        tune_key, unlearn_key = jax.random.split(key)
        state, tuning = programs.trained(tune_key, self.tuning, model, state, rest)
        state, unlearning = programs.trained(unlearn_key, self.unlearning, model, state, isolated)
        losses, right = measured(model, state, rest)
        return state, Info(losses.mean(), right.mean(), tuning + unlearning)


def measured(
    model: Model,
    variables: Variables,
    split: Split,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Return the loss of each example, and how right its answer is, in evaluation mode."""
    load, task = model.spec.modality.load, model.spec.task

    def one(example: tuple[Array, Array]) -> tuple[Array, Array]:
        input, label = example
        output, _ = model.apply(variables, load(input)[None])
        right = task.correct(task.answer(output), label[None])[0]
        return task.loss(output, label[None])[0], right.astype(jnp.float32)

    return jax.lax.map(one, (split.input, split.label), batch_size=_CHUNK)


def _rows(split: Split, index: Int[Array, " k"]) -> Split:
    return Split(split.input[index], split.label[index], jnp.ones(index.shape[0], bool))


@with_recipe(
    Recipe(epochs=60, schedule=Schedule(kind="step", period=40.0, factor=0.1)),
    without=("label_smoothing",),
)
def abl(
    recipe: Recipe,
    gamma: float = 0.5,
    isolate: float = 0.01,
    isolation_epochs: int = 20,
    unlearning_epochs: int = 20,
    unlearning_rate: float = 1e-4,
) -> Defense:
    """Create ABL: train a new network on the delivered images, and let it unlearn those that it learned first.

    A backdoor is learned fast. The first stage trains a new network with local gradient ascent,
    sign(L − γ) L, which keeps the loss of what is not yet that low near γ. The second isolates the
    images of the lowest loss, trains on the others, and then climbs the loss of the isolated ones. It
    is one compiled call, so that its progress is not shown.

    Departures. SGD has no Nesterov momentum, and none is carried from stage to stage. The defaults are
    BackdoorBench's, whose numbers the papers print; the authors' are the preset ``reference_code``.

    Args:
      gamma: γ ≥ 0.
      isolate: share of the images, in (0, 1), that is isolated.
      isolation_epochs: passes over the images before that, at the base rate, without augmentation.
      epochs: passes over the images that are not isolated.
      unlearning_epochs: passes over the isolated ones, without augmentation.
      unlearning_rate: SGD's constant rate in these.

    Raises:
      InputError: a value out of range.

    References:
      Li et al., Anti-Backdoor Learning: Training Clean Models on Poisoned Data, NeurIPS 2021.
    """
    non_negative(gamma=gamma)
    positive(isolate=isolate, unlearning_rate=unlearning_rate)
    below_one(isolate=isolate)
    integer(maximum=EPOCHS, isolation_epochs=isolation_epochs, unlearning_epochs=unlearning_epochs)
    plain = dataclasses.replace(recipe, schedule=Schedule(), augment="none")
    first = dataclasses.replace(plain, epochs=isolation_epochs)
    last = dataclasses.replace(plain, epochs=unlearning_epochs, learning_rate=unlearning_rate)
    isolation = Supervised.of(first, transformation=AscentBelow(gamma))
    ascent = Supervised.of(last, transformation=Ascent())
    unlearning = Unlearning(Supervised.of(recipe), ascent, isolate)
    return Defense(
        (
            DefenseStage(isolation, sees=TRAINING, starts=SCRATCH),
            DefenseStage(unlearning, sees=TRAINING),
        )
    )
