"""Defenses: one file per published defense, found by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Key

from bdjax import checks, registry
from bdjax.defenses._seen import Given as Given
from bdjax.defenses._seen import check as check
from bdjax.defenses._seen import handed as handed
from bdjax.defenses._stages import SEES as SEES
from bdjax.defenses._stages import TRAINING as TRAINING
from bdjax.defenses._stages import TRIGGER as TRIGGER
from bdjax.defenses._stages import Defense as Defense
from bdjax.defenses._stages import DefenseStage as DefenseStage
from bdjax.defenses._stages import of as of
from bdjax.train import batches, loop
from bdjax.types import Learner, Model, Split, TriggerSource, Variables


def names() -> list[str]:
    """Return the names of all defenses."""
    return registry.names(__name__)


def create(name: str, *, preset: str = "paper", **options: Any) -> Defense:
    """Create a defense; ``options`` are the arguments of the function of that name.

    Args:
      name: the file's name.
      preset: ``paper``, or ``reference_code`` where the released code does something else.
      options: override the preset's.

    Raises:
      InputError: unknown name, preset or option, a value out of range, or a file whose function returns no defense.
    """
    return of(registry.create(__name__, name, preset=preset, **options))


def sees(name: str) -> tuple[str, ...]:
    """Return what a defense of that name sees, of `SEES`.

    >>> sees("ft_sam"), sees("grad_prune"), sees("none")
    (('holdout',), ('trigger',), ('nothing',))

    Raises:
      InputError: unknown name; or one of a defense that is made of others, as ``chain`` is, and sees what they see.
    """
    parameters = inspect.signature(registry.factory(__name__, name)).parameters.values()
    needed = [part.name for part in parameters if part.default is part.empty]
    if needed:
        others = f"a defense of its own; {name} sees what its {' and '.join(needed)} see"
        raise checks.InputError(f"name must be that of {others}.")
    return create(name).sees


def run(
    key: Key[Array, ""],
    defense: Defense | Learner,
    model: Model,
    variables: Variables,
    holdout: Split,
    *,
    trigger: TriggerSource | None = None,
    training: Split | None = None,
) -> Variables:
    """Purify a network: variables in, variables out. `purify` also tells what it took.

    Each stage is handed what it sees, and no more.

    Args:
      key: decides everything that the defense draws.
      defense: of `create`, or a learner of your own.
      model: the suspect network.
      variables: its parameters and statistics; left as they are.
      holdout: the defender's clean images.
      trigger: what puts the trigger on images, for a defense that sees it; such as `bdjax.poison.Stamp`.
      training: the images that the attacker delivered, for a defense that sees them.

    Raises:
      InputError: the holdout is empty or not a `Split`; or the defense sees what is not given.
    """
    defense, given = of(defense), Given(holdout, trigger, training)
    check(defense, given)
    for stage in defense.stages:
        batches.tell(stage.learner, handed(stage, given)[1])
    return purify(key, defense, model, variables, **given._asdict()).variables


def purify(
    key: Key[Array, ""],
    defense: Defense | Learner,
    model: Model,
    variables: Variables,
    holdout: Split,
    *,
    trigger: TriggerSource | None = None,
    training: Split | None = None,
    options: Callable[[int], dict[str, Any]] = lambda stage: {},
) -> loop.Result:
    """Run every stage of a defense and return the variables, the history and the cost.

    Args:
      options: keywords of `bdjax.train.loop.run` for each stage (its checkpoints, its progress).

    Otherwise as `run`.
    """
    defense, given = of(defense), Given(holdout, trigger, training)
    check(defense, given)
    history: list[loop.Epoch] = []
    for number, stage in enumerate(defense.stages):
        own_key = stage_key(key, number)
        learner, split = handed(stage, given)
        begin = stage.begin(own_key, model, variables)
        result = loop.run(own_key, learner, model, begin, split, **options(number))
        variables = result.variables
        history += result.history
    return loop.Result(variables, history)


def stage_key(key: Key[Array, ""], number: int) -> Key[Array, ""]:
    """Return the key of a defense's stage: its own for the first, and then one that no epoch of the first folds in."""
    return key if number == 0 else jax.random.fold_in(key, 2**31 + number)
