"""Fast SFT: smooth fine-tuning of nothing but the singular values (f-SFT, published as f-FIP; Karim et al., 2024)."""

from __future__ import annotations

from bdjax.defenses.sft import RECIPE, FisherPenalties
from bdjax.parametrizations import SingularValues
from bdjax.train.recipe import Recipe, with_recipe
from bdjax.train.supervised import Supervised

STRENGTHS = {"eta_f": (1e-3, 1e-2, 1e-1, 1.0)}  # what ``auto`` tries


@with_recipe(RECIPE, without=("weight_decay", "label_smoothing"))
def fast_sft(
    recipe: Recipe,
    eta_f: float = 0.001,
    eta_r: float = 5.0,
    every: int = 10,
    estimator: str = "per_sample",
    chunk: int = 32,
) -> Supervised:
    """Create fast SFT: min_δ L_D(δ) + η_F Tr F(δ) + (η_r/2) Σ_j F̄_j δ_j², where δ shifts the singular values.

    Every kernel W = U diag(σ) Vᵀ becomes U diag(relu(σ + δ)) Vᵀ (`bdjax.parametrizations.SingularValues`); U, V, batch
    norms and biases are frozen, running batch statistics are not. PreAct-ResNet18 has 4,315 shifts and one more for
    each class, of 11.2 million parameters. Both Fisher terms are those of `sft` in δ. So few derivatives make the exact
    trace affordable, and it is the default. There is no weight decay: it would act like the anchor.

    The released training script tunes all weights; only the layer is in its code.

    When it works: no setting was found. On digits at least 86 % ASR was left in all 92 runs, at other rates, steps,
    weights, statistics and victims, with batch norms tuned too, and without penalties; on CIFAR-10, reduced, at least
    99 % in 12 (``bdjax guide when``). With the trigger known the same shifts take it to 1 %: they could, but clean
    images do not ask for it. At the paper's size it has not been run.

    Args:
      eta_f: weight η_F ≥ 0 of the trace.
      eta_r: weight η_r ≥ 0 of the anchor.
      every: steps between two gradients of the trace.
      estimator: how the trace of a batch is computed: ``per_sample``, exact; ``sign_sketch``; ``batch_sq``.
      chunk: images whose gradients are in memory at once, in F̄ and in ``per_sample``.
      epochs: passes over the holdout (paper: 100, on 1 % of CIFAR-10).

    Raises:
      InputError: a value out of range.

    References:
      Fisher Information Guided Backdoor Purification via Naïve Exploitation of Smoothness, sec. 5.1 and eq. 7.
    """
    penalties = FisherPenalties(eta_f, eta_r, every, estimator, chunk)
    penalties.check()
    return Supervised.of(recipe, transformation=penalties, parametrization=SingularValues())
