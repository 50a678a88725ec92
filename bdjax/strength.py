"""How strong should a defense be? Chosen by what it costs on clean images, without a look at trigger or test set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from bdjax import evaluate
from bdjax.data.aside import ROUNDING, keep_aside
from bdjax.defenses import stage_key
from bdjax.defenses.chain import Chain, stages
from bdjax.train import compilation, loop
from bdjax.types import Defense, Model, Split, Variables


class Trial(NamedTuple):
    """What was tried, and the accuracy that it left on the images kept aside."""

    value: float
    accuracy: float
    gradient_evaluations: int


@dataclasses.dataclass(frozen=True)
class Selection:
    """What was chosen and why."""

    chosen: float
    within_budget: bool  # False: even the weakest setting costs more
    accuracy_before: float
    aside_count: int
    trials: tuple[Trial, ...]


def choose(
    key: Key[Array, ""],
    make: Callable[[float], Defense | Chain],
    values: Sequence[float],
    model: Model,
    variables: Variables,
    holdout: Split,
    *,
    budget: float,
    aside: float,
) -> Selection:
    """Choose the strongest setting whose accuracy falls by no more than ``budget`` on a part of the holdout.

    The defense runs with every value on the rest of the holdout, one after another inside one compiled program. A
    suspect network that was trained on the holdout is right on nearly all of it, so the fall is rather over- than
    underestimated.

    Args:
      key: decides everything that the defenses draw; the same for every value.
      make: a value to the defense.
      values: from weak to strong.
      model: the suspect network.
      variables: its parameters and statistics.
      holdout: the defender's clean images.
      budget: largest fall of the accuracy, absolute.
      aside: share of the holdout that is kept for measuring.

    Raises:
      InputError: the holdout is too small to keep any of it aside.
    """
    holdout = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[np.asarray(holdout.valid)]), holdout)
    rest, kept = keep_aside(holdout, holdout.label, aside, model.spec.num_classes)
    rows = rest.label.shape[0]
    candidates = [tuple(_fitting(stage, rows) for stage in stages(make(value))) for value in values]
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *candidates)
    before, accuracy, spent = jax.device_get(_try_all(key, stacked, model, variables, rest, kept))
    trials = tuple(map(Trial, values, accuracy.tolist(), spent.tolist()))
    bearable = [trial.value for trial in trials if before - trial.accuracy <= budget + ROUNDING]
    chosen = bearable[-1] if bearable else values[0]
    return Selection(chosen, bool(bearable), float(before), kept.label.shape[0], trials)


def _fitting(stage: Any, rows: int) -> Any:
    """Return the stage with a batch that the rest of the holdout can fill."""
    if stage.batch_size is None or stage.batch_size <= rows:
        return stage
    return dataclasses.replace(stage, batch_size=rows)


def _sweep(
    key: Key[Array, ""], stacked: tuple[Any, ...], model: Model, variables: Variables, rest: Split, aside: Split
) -> tuple[Float[Array, ""], Float[Array, " k"], Int[Array, " k"]]:
    def one(learners: tuple[Any, ...]) -> tuple[Array, Array]:
        current, spent = variables, jnp.int32(0)
        for number, learner in enumerate(learners):
            current, more = loop.trained(stage_key(key, number), learner, model, current, rest)
            spent += more
        return accuracy(current), spent

    def accuracy(variables: Variables) -> Array:
        batch_size = min(evaluate.BATCH, aside.label.shape[0])
        return (evaluate.predictions(model, variables, aside.image, batch_size) == aside.label).mean()

    return accuracy(variables), *jax.lax.map(one, stacked)


_try_all = compilation.jit(_sweep, static_argnums=2)
