"""Defenses: one file per published defense, found by its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Key

from bdjax import registry
from bdjax.checks import InputError
from bdjax.defenses.chain import Chain, stages
from bdjax.train import batches, loop
from bdjax.types import Defense, Model, PoisonedSplit, Split, TriggerSource, Variables


def names() -> list[str]:
    """Return the names of all defenses."""
    return registry.names(__name__)


def create(name: str, *, preset: str = "paper", **options: Any) -> Defense | Chain:
    """Create a defense; ``options`` are the arguments of the function of that name.

    Args:
      name: the file's name.
      preset: ``paper``, or ``reference_code`` where the released code does something else.
      options: override the preset's.

    Raises:
      InputError: unknown name, preset or option, or a value out of range.
    """
    return registry.create(__name__, name, preset=preset, **options)


def run(key: Key[Array, ""], defense: Defense | Chain, model: Model, variables: Variables, holdout: Split) -> Variables:
    """Purify a network: variables in, variables out. `purify` also tells what it took.

    Args:
      key: decides everything that the defense draws.
      defense: of `create`.
      model: the suspect network.
      variables: its parameters and statistics; left as they are.
      holdout: the defender's clean images.

    Raises:
      InputError: the holdout is empty or not a `Split`; or the defense needs a trigger.
    """
    check(defense, holdout)
    for stage in stages(defense):
        batches.tell(stage, holdout)
    return purify(key, defense, model, variables, holdout).variables


def purify(
    key: Key[Array, ""],
    defense: Defense | Chain,
    model: Model,
    variables: Variables,
    holdout: Split,
    *,
    options: Callable[[int], dict[str, Any]] = lambda stage: {},
) -> loop.Result:
    """Run every stage of a defense and return the variables, the history and the cost.

    Args:
      options: keywords of `bdjax.train.loop.run` for each stage (its checkpoints, its progress).

    Otherwise as `run`.
    """
    check(defense, holdout)
    history: list[loop.Epoch] = []
    for number, stage in enumerate(stages(defense)):
        result = loop.run(stage_key(key, number), stage, model, variables, holdout, **options(number))
        variables = result.variables
        history += result.history
    return loop.Result(variables, history)


def check(defense: Defense | Chain, holdout: Split) -> None:
    """Refuse what no defender could do.

    Raises:
      InputError: the holdout is not a `Split`, or the defense needs a trigger that nobody has given it.
    """
    if isinstance(holdout, PoisonedSplit):
        raise InputError("holdout must be a Split: a defender cannot see which images are poisoned.")
    if any(getattr(stage, "trigger", None) == "true" for stage in stages(defense)):
        raise InputError("trigger must be given where no run fills it in: a function (key, images) → images.")


def with_trigger(defense: Defense | Chain, trigger: TriggerSource) -> Defense | Chain:
    """Return the defense with this trigger wherever it asks for the ``true`` one, which most defenses do not."""

    def filled_in(stage: Any) -> Any:
        return dataclasses.replace(stage, trigger=trigger) if getattr(stage, "trigger", None) == "true" else stage

    return Chain(tuple(map(filled_in, stages(defense)))) if isinstance(defense, Chain) else filled_in(defense)


def stage_key(key: Key[Array, ""], number: int) -> Key[Array, ""]:
    """Return the key of a defense's stage: its own for the first, and then one that no epoch of the first folds in."""
    return key if number == 0 else jax.random.fold_in(key, 2**31 + number)
