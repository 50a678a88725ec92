"""FT-SAM: fine-tuning with adaptive sharpness-aware minimization (Zhu et al., ICCV 2023)."""

from __future__ import annotations

from bdjax.checks import InputError, non_negative
from bdjax.optim.sgd import Schedule
from bdjax.train.gradients import Perturbed
from bdjax.train.supervised import Supervised, supervised

PRESETS = {
    "paper": {},
    "reference_code": {  # BackdoorBench's CIFAR-10 run: the rate climbs back to its maximum every 200 steps
        "weight_decay": 5e-4,
        "label_smoothing": 0.1,
        "schedule": Schedule(kind="cosine", period=100.0, per="step"),
    },
}
STRENGTHS = {"rho": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)}  # what ``auto`` tries


def ft_sam(
    rho: float = 2.0,
    adaptive: bool = True,
    rho_min: float | None = None,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    label_smoothing: float = 0.0,
    schedule: Schedule = Schedule(),
    augment: str = "standard",
) -> Supervised:
    """Create FT-SAM: min_θ max_{‖T⁻¹ε‖₂ ≤ ρ} L_D(θ + ε) on the clean holdout D, T = diag(|θ|).

    Each step takes the gradient g at θ, ε = ρ T² g / ‖T g‖₂ over *all* parameters (the batch-norm scales get nearly
    all of it), and the gradient of the same batch at θ + ε; SGD applies that at θ, with weight decay at θ. Running
    batch statistics come from the pass at θ. With ρ = 0 this is `ft`.

    Args:
      rho: radius ρ ≥ 0. PreAct-ResNet18: 2 on CIFAR-10, 8 on Tiny-ImageNet and GTSRB; VGG19: 6. Without ``adaptive``
        the scale is another: the paper's ablation uses 0.5.
      adaptive: T = diag(|θ|); False is T = I, plain SAM.
      rho_min: lets the radius move with the learning rate, ρ_t = ρ_min + (ρ − ρ_min) η_t / η₀, as the released code
        can; None keeps it constant, as all published runs do.
      epochs: passes over the holdout (paper: 100; 50 on GTSRB).
      batch_size: images a step.
      learning_rate: SGD's base rate.
      momentum: in [0, 1).
      weight_decay: coupled, on every parameter (released code: 5e-4).
      label_smoothing: share of the probability that goes to the other classes (released code: 0.1 on CIFAR-10).
      schedule: how the rate moves; the paper names none.
      augment: ``standard`` (the data set's own), ``none``, or another of `bdjax.data.augment.AUGMENTATIONS`.

    Raises:
      InputError: a value out of range, or ``rho_min`` with a plateau schedule, whose rate is not known in advance.

    References:
      Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization, ICCV 2023, eq. 1–6, algorithm 1.
    """
    non_negative(rho=rho)
    if rho_min is not None:
        non_negative(rho_min=rho_min)
        if schedule.kind == "plateau":
            raise InputError(f"rho_min must be None with a plateau schedule; got {rho_min}.")
    return supervised(
        epochs, batch_size, learning_rate, momentum, weight_decay, schedule, label_smoothing, augment,
        drop_last=False, gradient=Perturbed(rho, rho_min, adaptive),
    )  # fmt: skip
