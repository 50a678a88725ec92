"""Fine-tuning on the clean holdout: the baseline of every post-training defense."""

from __future__ import annotations

from bdjax.optim.sgd import Schedule
from bdjax.train.recipe import Recipe, with_recipe
from bdjax.train.supervised import Supervised

PRESETS = {
    "paper": {},
    # BackdoorBench: cosine per epoch to 0
    "reference_code": {"weight_decay": 5e-4, "schedule": Schedule(kind="cosine")},
}


@with_recipe(Recipe())
def ft(recipe: Recipe) -> Supervised:
    """Create fine-tuning of all weights: θ ← θ − η ∇(L_D(θ) + λ/2 ‖θ‖²) with momentum, on the clean holdout D.

    The defaults are FT-SAM's without the perturbation, so that the two rows differ in nothing else. The last, smaller
    batch of an epoch is kept.

    Args:
      epochs: passes over the holdout (FT-SAM paper: 100; 50 on GTSRB).

    Raises:
      InputError: a value out of range.
    """
    return Supervised.of(recipe)
