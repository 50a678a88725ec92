"""What a defender sees: each stage of a defense is handed what it declares, and no more."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from bdjax import pytree
from bdjax.checks import InputError
from bdjax.defenses._stages import HOLDOUT, NOTHING, TRAINING, TRIGGER, Defense, DefenseStage
from bdjax.types import (
    Info,
    Learner,
    LearnerState,
    Model,
    PoisonedSplit,
    Split,
    SplitAndTrigger,
    TriggerSource,
    Variables,
)


class Given(NamedTuple):
    """What there is to see. The training set is the attacker's, as it was delivered."""

    holdout: Split
    trigger: TriggerSource | None = None
    training: Split | None = None


def check(defense: Defense, given: Given) -> None:
    """Refuse what no defender could do.

    Raises:
      InputError: a split that says which images are poisoned, or something that a stage sees is not given.
    """
    for name in ("holdout", "training"):
        if isinstance(getattr(given, name), PoisonedSplit):
            raise InputError(
                f"{name} must be a Split: a defender cannot see which images are poisoned."
            )
    if TRIGGER in defense.sees and not callable(given.trigger):
        what = "a function (key, images) → images"
        raise InputError(
            f"trigger must be given to a defense that sees it: {what}; got {given.trigger!r}."
        )
    if TRAINING in defense.sees and given.training is None:
        what = "the images that the attacker delivered, as a Split"
        raise InputError(f"training must be given to a defense that sees it: {what}; got None.")


def handed(stage: DefenseStage, given: Given) -> tuple[Learner, Split]:
    """Return a stage as the loop is to feed it, and with what.

    What the loop feeds are splits; a learner that sees something else is given that by an adapter.
    """
    if stage.sees == NOTHING:
        row = jax.tree.map(lambda rows: jnp.zeros_like(rows[:1]), given.holdout)
        return Blind(stage.learner), row._replace(valid=jnp.ones(1, bool))
    if stage.sees == TRIGGER:
        return WithTrigger(stage.learner, _as_tree(given.trigger)), given.holdout
    seen = given.holdout if stage.sees == HOLDOUT else given.training
    assert seen is not None, "as checked"
    return stage.learner, seen


def _as_tree(trigger: Any) -> Any:
    """Return a trigger as an argument of compiled code must be: a plain function is no tree."""
    return jax.tree_util.Partial(trigger) if jax.tree_util.all_leaves([trigger]) else trigger


class _Adapter:
    """A learner that is given something else where the loop feeds it splits."""

    learner: Any

    def see(self, split: Split) -> Any:
        raise NotImplementedError

    @property
    def epochs(self) -> int:
        return self.learner.epochs

    @property
    def batch_size(self) -> int | None:
        return self.learner.batch_size

    @property
    def drop_last(self) -> bool:
        return self.learner.drop_last

    def init(
        self,
        key: Key[Array, ""],
        model: Model,
        variables: Variables,
        split: Split,
    ) -> LearnerState:
        """Return the learner's state."""
        return self.learner.init(key, model, variables, self.see(split))

    def update(
        self,
        key: Key[Array, ""],
        model: Model,
        state: LearnerState,
        batch: Split,
    ) -> tuple[LearnerState, Info]:
        """Take the learner's step."""
        return self.learner.update(key, model, state, self.see(batch))

    def finalize(self, model: Model, state: LearnerState) -> Variables:
        """Return the learner's variables."""
        return self.learner.finalize(model, state)


@pytree.dataclass
class Blind(_Adapter):
    """A learner that sees nothing: it is given None."""

    learner: Any

    def see(self, split: Split) -> None:
        """Return nothing."""
        del split


@pytree.dataclass
class WithTrigger(_Adapter):
    """A learner that sees the trigger: it is given that beside each split."""

    learner: Any
    trigger: TriggerSource

    def see(self, split: Split) -> SplitAndTrigger:
        """Return the split and the trigger."""
        return SplitAndTrigger(split, self.trigger)
