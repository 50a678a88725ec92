"""ANP: adversarial neuron pruning (Wu and Wang, NeurIPS 2021)."""

from __future__ import annotations

import optax

from bdjax import optim, pytree
from bdjax.checks import below_one, integer, non_negative, unit_interval
from bdjax.defenses._mask_pruning import MaskPruning
from bdjax.parametrizations import NeuronMasks
from bdjax.train.recipe import Recipe, with_recipe
from bdjax.train.supervised import Supervised
from bdjax.train.transformations import Setting
from bdjax.types import HParam

PRESETS = {
    "paper": {},
    "reference_code": {  # BackdoorBench: 2000 steps on 2500 images; FT-SAM's threshold for it
        "epochs": 200,
        "batch_size": 256,
        "learning_rate": 0.01,
        "threshold": 0.4,
        "decimals": 4,
    },
}
STRENGTHS = {  # what ``auto`` tries
    "threshold": (0.05, 0.1, 0.2, 0.4, 0.6, 0.8),
    "share": (0.01, 0.02, 0.05, 0.1, 0.2, 0.4),
}


@pytree.dataclass
class WorstNoise:
    """The gradient of α L(m) + (1 − α) max L(m + δ, 1 + ξ) over the noise (δ, ξ); then SGD."""

    epsilon: HParam
    alpha: HParam
    steps: int = pytree.static(default=1)

    def __call__(self, setting: Setting, /) -> optax.GradientTransformationExtraArgs:
        """Return the chain of a step; what keeps m in its box is the parametrization's."""
        noise = optim.adversarial_noise(self.epsilon, alpha=self.alpha, steps=self.steps)
        return optax.chain(noise, setting.sgd)


@with_recipe(
    Recipe(epochs=500, batch_size=128, learning_rate=0.2, weight_decay=0.0),
    without=("weight_decay", "label_smoothing"),
)
def anp(
    recipe: Recipe,
    threshold: float = 0.2,
    share: float | None = None,
    epsilon: float = 0.4,
    alpha: float = 0.2,
    steps: int = 1,
    decimals: int | None = None,
) -> MaskPruning:
    """Create ANP: prune the neurons whose masks fall in min_m α L(m) + (1 − α) max_{δ, ξ} L(m + δ, 1 + ξ), 0 ≤ m ≤ 1.

    All weights are frozen. Each neuron, a channel of a batch norm, has a mask m, 1 at the start: the
    scale is (m + δ) γ and the shift (1 + ξ) β. In every step the noise δ, ξ starts uniform in [−ε, ε]
    and climbs the loss by its signs (`bdjax.optim.adversarial_noise`). At the end the neurons with low
    masks lose their scale, in the network as it was: shifts, batch statistics and the other neurons
    are left alone. In a network without batch norm, neurons are the channels of its layer norms and
    the filters of its layers, and ξ is noise on their biases
    (`bdjax.parametrizations.NeuronMasks`).

    Departures. Released code draws batches with replacement. BackdoorBench keeps the threshold, of
    0 to 0.9, whose attack success on *test* images is lowest, which no defender could;
    ``reference_code`` has the one of FT-SAM's authors, and ``auto`` chooses by clean accuracy.

    Args:
      threshold: in [0, 1): neurons with masks of at most this are pruned (released code; 0.4 in the
        FT-SAM paper). It does not count where there is a share.
      share: in [0, 1], of the neurons, to be pruned from the lowest mask; those whose mask is 1 stay.
        None prunes by the threshold.
      epsilon: ε ≥ 0.
      alpha: α in [0, 1], the share of the loss without noise.
      steps: of the climb, at least 1, each of size ε / steps.
      decimals: to which masks are rounded before they are compared (4 in released code, which writes
        them to a file); None does not round.
      epochs: passes over the holdout (500 on 1 % of CIFAR-10 are the paper's 2000 steps).

    Raises:
      InputError: a value out of range, or the network has no neuron to mask.

    References:
      Wu and Wang, Adversarial Neuron Pruning Purifies Backdoored Deep Models, NeurIPS 2021.
    """
    below_one(threshold=threshold)
    if share is not None:
        unit_interval(share=share)
    non_negative(epsilon=epsilon)
    unit_interval(alpha=alpha)
    integer(1, steps=steps)
    if decimals is not None:
        integer(decimals=decimals, maximum=7)
    tuning = Supervised.of(
        recipe,
        transformation=WorstNoise(epsilon, alpha, steps),
        parametrization=NeuronMasks(alpha=0.0, beta=0.0, first=True, shifts=True),
    )
    return MaskPruning(tuning, threshold, share, decimals)
