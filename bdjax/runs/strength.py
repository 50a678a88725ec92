"""How strong should a defense be? Chosen by what it costs on clean images, without a look at trigger or test set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bdjax import evaluate
from bdjax.data.validation import ROUNDING
from bdjax.defenses import Defense, DefenseStage, Given, handed, of, stage_key
from bdjax.devices import compilation
from bdjax.train import programs
from bdjax.types import Learner, Model, Split, Variables


class Trial(NamedTuple):
    """What was tried, and the accuracy that it left on the validation part."""

    value: float
    accuracy: float
    gradient_evaluations: int


@dataclasses.dataclass(frozen=True)
class Selection:
    """What was chosen and why."""

    chosen: float
    within_budget: bool  # False: even the weakest setting costs more
    accuracy_before: float
    aside_count: int  # images of the validation part; the name stands in records
    trials: tuple[Trial, ...]


def choose(
    key: Key[Array, ""],
    make: Callable[[float], Defense | Learner],
    values: Sequence[float],
    model: Model,
    variables: Variables,
    given: Given,
    validation: Split,
    *,
    budget: float,
) -> Selection:
    """Choose the strongest setting whose accuracy falls by no more than ``budget`` on images kept for that.

    The defense runs with every value on what it sees, one after another inside one compiled program. A suspect network
    that was trained on the validation part is right on nearly all of it, so the fall is rather over- than
    underestimated. Run with the chosen value and the same key and images, the defense ends at the network that was
    measured here; on more images it may end at a worse one.

    Args:
      key: the defense's; the same for every value.
      make: a value to the defense.
      values: from weak to strong.
      model: the suspect network.
      variables: its parameters and statistics.
      given: what there is to see; the holdout is the defender's clean images but for the validation part.
      validation: the others, all of them valid.
      budget: largest fall of the accuracy, absolute.
    """
    candidates = [of(make(value)).stages for value in values]
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *candidates
    )
    given, validation = jax.tree.map(jnp.asarray, (given, validation))
    before, accuracy, spent = jax.device_get(
        _try_all(key, stacked, model, variables, given, validation)
    )
    trials = tuple(map(Trial, values, accuracy.tolist(), spent.tolist()))
    bearable = [trial.value for trial in trials if before - trial.accuracy <= budget + ROUNDING]
    chosen = bearable[-1] if bearable else values[0]
    return Selection(chosen, bool(bearable), float(before), validation.label.shape[0], trials)


def _sweep(
    key: Key[Array, ""],
    stacked: tuple[DefenseStage, ...],
    model: Model,
    variables: Variables,
    given: Given,
    validation: Split,
) -> tuple[Float[Array, ""], Float[Array, " k"], Int[Array, " k"]]:
    def one(stages: tuple[DefenseStage, ...]) -> tuple[Array, Array]:
        current, spent = variables, jnp.int32(0)
        for number, stage in enumerate(stages):
            own_key = stage_key(key, number)
            learner, split = handed(stage, given)
            begin = stage.begin(own_key, model, current)
            current, more = programs.trained(own_key, learner, model, begin, split)
            spent += more
        return accuracy(current), spent

    def accuracy(variables: Variables) -> Array:
        batch_size = min(evaluate.BATCH_SIZE, validation.label.shape[0])
        answers = evaluate.predictions(model, variables, validation.input, batch_size)
        return model.spec.task.correct(answers, validation.label).mean()

    return accuracy(variables), *jax.lax.map(one, stacked)


_try_all = compilation.jit(_sweep, static_argnums=2)
