"""Fine-tuning on the clean holdout: the baseline of every post-training defense."""

from __future__ import annotations

from bdjax.optim.sgd import Schedule
from bdjax.train.supervised import Supervised, supervised

PRESETS = {
    "paper": {},
    "reference_code": {
        "weight_decay": 5e-4,
        "schedule": Schedule(kind="cosine"),
    },  # BackdoorBench: cosine per epoch to 0
}


def ft(
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    label_smoothing: float = 0.0,
    schedule: Schedule = Schedule(),
    augment: str = "standard",
) -> Supervised:
    """Create fine-tuning of all weights: θ ← θ − η ∇(L_D(θ) + λ/2 ‖θ‖²) with momentum, on the clean holdout D.

    The defaults are FT-SAM's without the perturbation, so that the two rows differ in nothing else. The last, smaller
    batch of an epoch is kept.

    Args:
      epochs: passes over the holdout (FT-SAM paper: 100; 50 on GTSRB).
      batch_size: images a step.
      learning_rate: SGD's base rate.
      momentum: in [0, 1).
      weight_decay: coupled, on every parameter.
      label_smoothing: share of the probability that goes to the other classes.
      schedule: how the rate moves; the paper names none.
      augment: ``standard`` (the data set's own), ``none``, or another of `bdjax.data.augment.AUGMENTATIONS`.

    Raises:
      InputError: a value out of range.
    """
    return supervised(
        epochs, batch_size, learning_rate, momentum, weight_decay, schedule, label_smoothing, augment, drop_last=False
    )
