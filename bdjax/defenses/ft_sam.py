"""FT-SAM: fine-tuning with adaptive sharpness-aware minimization (Zhu et al., ICCV 2023)."""

from __future__ import annotations

import optax
from jaxtyping import Array, Float, Int

from bdjax import optim, pytree
from bdjax.checks import InputError, non_negative
from bdjax.optim.sgd import Schedule
from bdjax.train.recipe import Recipe, with_recipe
from bdjax.train.supervised import Supervised
from bdjax.train.transformations import Setting
from bdjax.types import HParam

PRESETS = {
    "paper": {},
    "reference_code": {  # BackdoorBench's CIFAR-10 run: the rate climbs back to its maximum every 200 steps
        "weight_decay": 5e-4,
        "label_smoothing": 0.1,
        "schedule": Schedule(kind="cosine", period=100.0, per="step"),
    },
}
STRENGTHS = {"rho": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)}  # what ``auto`` tries


@pytree.dataclass
class SharpnessAware:
    """The gradient at θ + ε, ε the worst perturbation of radius ρ; then weight decay and SGD at θ."""

    rho: HParam
    rho_min: HParam | None = None
    adaptive: bool = pytree.static(default=True)

    def __call__(self, setting: Setting, /) -> optax.GradientTransformationExtraArgs:
        """Return the chain of a step."""

        def moving(step: Int[Array, ""]) -> Float[Array, ""]:
            return self.rho_min + (self.rho - self.rho_min) * setting.rate(step)

        radius = self.rho if self.rho_min is None else moving
        return optax.chain(optim.sam(radius, adaptive=self.adaptive), setting.sgd)


@with_recipe(Recipe())
def ft_sam(
    recipe: Recipe,
    rho: float = 2.0,
    adaptive: bool = True,
    rho_min: float | None = None,
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
      weight_decay: coupled, on every parameter (released code: 5e-4).
      label_smoothing: share of the probability that goes to the other classes (released code: 0.1 on CIFAR-10).

    Raises:
      InputError: a value out of range, or ``rho_min`` with a plateau schedule, whose rate is not known in advance.

    References:
      Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization, ICCV 2023, eq. 1–6, algorithm 1.
    """
    non_negative(rho=rho)
    if rho_min is not None:
        non_negative(rho_min=rho_min)
        if recipe.schedule.kind == "plateau":
            raise InputError(f"rho_min must be None with a plateau schedule; got {rho_min}.")
    return Supervised.of(recipe, transformation=SharpnessAware(rho, rho_min, adaptive))
