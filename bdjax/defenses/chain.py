"""One defense after another: pruning and then FT-SAM, say."""

from __future__ import annotations

import dataclasses

from bdjax.types import Defense


@dataclasses.dataclass(frozen=True)
class Chain:
    """Stages that run in order, each from what the one before it made."""

    stages: tuple[Defense, ...]


def chain(first: Defense | Chain, second: Defense | Chain) -> Chain:
    """Create the defense that runs ``first`` and then ``second`` on the result; both see the same holdout."""
    return Chain((*stages(first), *stages(second)))


def stages(defense: Defense | Chain) -> tuple[Defense, ...]:
    """Return the learners that a defense is made of, in order."""
    return defense.stages if isinstance(defense, Chain) else (defense,)
