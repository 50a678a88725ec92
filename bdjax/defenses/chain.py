"""One defense after another: pruning and then FT-SAM, say."""

from __future__ import annotations

import dataclasses

from bdjax.defenses._stages import Defense, DefenseStage, of
from bdjax.parametrizations import Identity, KeptZeros
from bdjax.train.supervised import Supervised
from bdjax.types import Learner


def chain(first: Defense | Learner, second: Defense | Learner, keep_pruned: bool = True) -> Defense:
    """Create the defense that runs ``first`` and then ``second`` on the result, each with what it sees.

    Args:
      first: a defense.
      second: a defense.
      keep_pruned: whether kernels and batch-norm scales that are exactly zero after ``first`` stay zero in ``second``
        (`bdjax.parametrizations.KeptZeros`). Defenses that tune masks or singular values keep them anyway.
    """
    later = of(second).stages
    if keep_pruned:
        later = tuple(map(_keeping_zeros, later))
    return Defense((*of(first).stages, *later))


def _keeping_zeros(stage: DefenseStage) -> DefenseStage:
    learner = stage.learner
    if not isinstance(learner, Supervised) or learner.parametrization != Identity():
        return stage
    keeping = dataclasses.replace(learner, parametrization=KeptZeros())
    return dataclasses.replace(stage, learner=keeping)
