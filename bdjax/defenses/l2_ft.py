"""Fine-tuning with an L2 penalty: the ablation that sets FT-SAM apart from merely smaller weights."""

from __future__ import annotations

import dataclasses

from bdjax.checks import non_negative
from bdjax.train.recipe import Recipe, with_recipe
from bdjax.train.supervised import Supervised

STRENGTHS = {"gamma": (0.001, 0.005, 0.01, 0.05, 0.1)}  # what ``auto`` tries


@with_recipe(Recipe())
def l2_ft(recipe: Recipe, gamma: float = 0.01) -> Supervised:
    """Create fine-tuning of L_D(θ) + γ ‖θ‖₂² over all parameters on the clean holdout D.

    The penalty's gradient 2γθ is a coupled weight decay of 2γ, and that is how it is computed, on top of SGD's own.

    Args:
      gamma: γ ≥ 0. The paper tries 0.001 to 0.1: 0.01 removes all six tested backdoors for 2 to 4 points of accuracy,
        0.05 and more destroys the model.

    Raises:
      InputError: a value out of range.

    References:
      Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization, ICCV 2023, supplement, sec. E.
    """
    non_negative(gamma=gamma)
    return Supervised.of(dataclasses.replace(recipe, weight_decay=recipe.weight_decay + 2 * gamma))
