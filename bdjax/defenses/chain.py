"""One defense after another: pruning and then FT-SAM, say."""

from __future__ import annotations

import dataclasses

from bdjax import pytree
from bdjax.parametrizations import Identity, KeptZeros
from bdjax.train.supervised import Supervised
from bdjax.types import Defense


@pytree.dataclass
class Chain:
    """Stages that run in order, each from what the one before it made."""

    stages: tuple[Defense, ...]


def chain(first: Defense | Chain, second: Defense | Chain, keep_pruned: bool = True) -> Chain:
    """Create the defense that runs ``first`` and then ``second`` on the result; both see the same holdout.

    Args:
      first: a defense.
      second: a defense.
      keep_pruned: whether kernels and batch-norm scales that are exactly zero after ``first`` stay zero in ``second``
        (`bdjax.parametrizations.KeptZeros`). Defenses that tune masks or singular values keep them anyway.
    """
    later = tuple(map(_keeping_zeros, stages(second))) if keep_pruned else stages(second)
    return Chain((*stages(first), *later))


def stages(defense: Defense | Chain) -> tuple[Defense, ...]:
    """Return the learners that a defense is made of, in order."""
    return defense.stages if isinstance(defense, Chain) else (defense,)


def _keeping_zeros(stage: Defense) -> Defense:
    if isinstance(stage, Supervised) and stage.parametrization == Identity():
        return dataclasses.replace(stage, parametrization=KeptZeros())
    return stage
