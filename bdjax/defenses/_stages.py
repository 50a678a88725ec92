"""What a defense is: stages in a row, each with what it sees and what it starts from."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Key

from bdjax import pytree
from bdjax.checks import InputError, is_a, one_of
from bdjax.types import Learner, Model, Variables

NOTHING, HOLDOUT, TRIGGER, TRAINING = "nothing", "holdout", "trigger", "training"
SEES = (NOTHING, HOLDOUT, TRIGGER, TRAINING)
VICTIM, SCRATCH = "victim", "scratch"
STAGE_STARTS = (VICTIM, SCRATCH)
# A child of a stage's key that no epoch folds in, nor `bdjax.train.programs.init_key`
_FRESH = 2**32 - 2


@pytree.dataclass
class DefenseStage:
    """One thing that a defender does to a network.

    Attributes:
      learner: does it, fed by the loop that trains victims too.
      sees: what it is given: ``nothing``; the clean ``holdout``; the holdout and the ``trigger``
        (`bdjax.types.SplitAndTrigger`); or the ``training`` set as the attacker delivered it.
      starts: from the suspect network, or what the stage before made of it (``victim``), or from a
        new network (``scratch``).
    """

    learner: Any
    sees: str = pytree.static(default=HOLDOUT)
    starts: str = pytree.static(default=VICTIM)

    @property
    def epochs(self) -> int:
        """How many the learner takes."""
        return self.learner.epochs

    def begin(self, key: Key[Array, ""], model: Model, variables: Variables) -> Variables:
        """Return the network that the stage starts from. A pure function.

        Args:
          key: the stage's.
          model: the network.
          variables: those of the suspect network, or of the stage before.
        """
        if self.starts == VICTIM:
            return variables
        return model.init(jax.random.fold_in(key, _FRESH))


@pytree.dataclass
class Defense:
    """Stages that run in order, each from what the one before it made."""

    stages: tuple[DefenseStage, ...]

    @property
    def learner(self) -> Any:
        """What the only stage does.

        Raises:
          InputError: there are several.
        """
        if len(self.stages) != 1:
            raise InputError(
                f"defense must have one stage to have one learner; it has {len(self.stages)}."
            )
        return self.stages[0].learner

    @property
    def sees(self) -> tuple[str, ...]:
        """What its stages see, in the order of `SEES`; only a defense that sees nothing else sees ``nothing``."""
        seen = {stage.sees for stage in self.stages}
        found = tuple(word for word in SEES[1:] if word in seen)
        return found or (NOTHING,)


def of(defense: Defense | DefenseStage | Learner) -> Defense:
    """Return a defense. A learner of one's own is the only stage of one.

    Its attributes ``sees`` and ``starts``, where it has them, are those of `DefenseStage`.

    Raises:
      InputError: an unknown word in one of these, or what is neither a defense nor a learner.
    """
    if isinstance(defense, Defense):
        return defense
    stage = defense
    if not isinstance(stage, DefenseStage):
        sees, starts = getattr(defense, "sees", HOLDOUT), getattr(defense, "starts", VICTIM)
        stage = DefenseStage(defense, sees, starts)
    is_a(Learner, "a defense or a learner", defense=stage.learner)
    one_of(SEES, sees=stage.sees)
    one_of(STAGE_STARTS, starts=stage.starts)
    return Defense((stage,))
