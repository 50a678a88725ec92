"""Fine-tuning with an L2 penalty: the ablation that sets FT-SAM apart from merely smaller weights."""

from __future__ import annotations

from bdjax.checks import non_negative
from bdjax.optim.sgd import Schedule
from bdjax.train.supervised import Supervised, supervised

STRENGTHS = {"gamma": (0.001, 0.005, 0.01, 0.05, 0.1)}  # what ``auto`` tries


def l2_ft(
    gamma: float = 0.01,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    label_smoothing: float = 0.0,
    schedule: Schedule = Schedule(),
    augment: str = "standard",
) -> Supervised:
    """Create fine-tuning of L_D(θ) + γ ‖θ‖₂² over all parameters on the clean holdout D.

    The penalty's gradient 2γθ is a coupled weight decay of 2γ, and that is how it is computed, on top of SGD's own.

    Args:
      gamma: γ ≥ 0. The paper tries 0.001 to 0.1: 0.01 removes all six tested backdoors for 2 to 4 points of accuracy,
        0.05 and more destroys the model.
      epochs: passes over the holdout.
      batch_size: images a step.
      learning_rate: SGD's base rate.
      momentum: in [0, 1).
      weight_decay: the optimizer's own, coupled, on every parameter.
      label_smoothing: share of the probability that goes to the other classes.
      schedule: how the rate moves; the paper names none.
      augment: ``standard`` (the data set's own), ``none``, or another of `bdjax.data.augment.AUGMENTATIONS`.

    Raises:
      InputError: a value out of range.

    References:
      Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization, ICCV 2023, supplement, sec. E.
    """
    non_negative(gamma=gamma, weight_decay=weight_decay)
    return supervised(
        epochs, batch_size, learning_rate, momentum, weight_decay + 2 * gamma, schedule, label_smoothing, augment,
        drop_last=False,
    )  # fmt: skip
