"""RNP: reconstructive neuron pruning, which unlearns, recovers and prunes (Li et al., ICML 2023)."""

from __future__ import annotations

import dataclasses
import logging
from typing import NamedTuple, TypeAlias

import jax
import jax.core
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from bdjax import pytree
from bdjax.checks import EPOCHS, below_one, integer, positive, unit_interval
from bdjax.data.validation import ROUNDING
from bdjax.defenses._mask_pruning import MaskPruning, PruningState
from bdjax.defenses._operation import Operation
from bdjax.defenses.abl import Ascent, measured
from bdjax.optim.sgd import Schedule
from bdjax.parametrizations import NeuronMasks
from bdjax.train import programs
from bdjax.train.recipe import Recipe, with_recipe
from bdjax.train.supervised import Supervised, TrainState
from bdjax.train.transformations import Setting
from bdjax.types import HParam, Info, Model, Split, Variables

PRESETS = {
    "paper": {},
    "reference_code": {  # BackdoorBench; it counts the epochs of unlearning from 0 to 20
        "unlearning_epochs": 21,
        "batch_size": 256,
        "threshold": 0.7,
        "decimals": 4,
    },
}
STRENGTHS = {  # what ``auto`` tries
    "threshold": (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    "share": (0.01, 0.02, 0.05, 0.1, 0.2, 0.4),
}
_log = logging.getLogger(__name__)
# Epochs taken, state, accuracy in the last of them, gradient evaluations
_Unlearning: TypeAlias = tuple[Int[Array, ""], TrainState, Float[Array, ""], Int[Array, ""]]


@pytree.dataclass
class ScaledLoss:
    """The gradient of α L, then SGD."""

    alpha: HParam

    def __call__(self, setting: Setting, /) -> optax.GradientTransformationExtraArgs:
        """Return the chain of a step; what keeps m in its box is the parametrization's."""
        return optax.chain(optax.scale(self.alpha), setting.sgd)


class Recovered(NamedTuple):
    """The masks over the network as it was, and the accuracy in the last epoch of unlearning (0 before it)."""

    pruning: PruningState
    accuracy: Float[Array, ""]


@pytree.dataclass
class Reconstruction(Operation):
    """Unlearn the clean images, recover them by masks over what is left, prune by these: one operation.

    Attributes:
      unlearning: goes uphill.
      pruning: tunes the masks, and prunes by them.
      unlearned_accuracy: at which the unlearning ends.
    """

    unlearning: Supervised
    pruning: MaskPruning
    unlearned_accuracy: HParam = 0.2

    def init(
        self, key: Key[Array, ""], model: Model, variables: Variables, split: Split
    ) -> Recovered:
        """Return the network as it is, with masks of ones."""
        return Recovered(self.pruning.init(key, model, variables, split), jnp.zeros(()))

    def update(
        self, key: Key[Array, ""], model: Model, state: Recovered, batch: Split
    ) -> tuple[Recovered, Info]:
        """Take all of it. What is reported is measured on the holdout, with the pruned network."""
        split = batch._replace(valid=jnp.ones(batch.label.shape[0], bool))
        start = {
            "params": state.pruning.tuning.frozen["params"],
            "batch_stats": state.pruning.batch_stats,
        }
        unlearn_key, recover_key = jax.random.split(key)
        unlearned, accuracy, spent = self.unlearn(unlearn_key, model, start, split)
        pruning, more = self.recover(recover_key, model, start, unlearned, split)
        losses, right = measured(model, self.pruning.finalize(model, pruning), split)
        return Recovered(pruning, accuracy), Info(losses.mean(), right.mean(), spent + more)

    def unlearn(
        self, key: Key[Array, ""], model: Model, variables: Variables, split: Split
    ) -> tuple[Variables, Float[Array, ""], Int[Array, ""]]:
        """Climb the loss until an epoch's accuracy, in training mode, is low enough, or the epochs are over.

        Returns:
          The network, the accuracy in its last epoch, and the gradient evaluations.
        """
        learner = self.unlearning

        def unfinished(carry: _Unlearning) -> Bool[Array, ""]:
            number, _, accuracy, _ = carry
            high = accuracy > self.unlearned_accuracy + ROUNDING
            return (number < learner.epochs) & ((number == 0) | high)

        def one_epoch(carry: _Unlearning) -> _Unlearning:
            number, state, _, spent = carry
            own = jax.random.fold_in(key, number)
            state, summary = programs.epoch(own, learner, model, state, split)
            return number + 1, state, summary.accuracy, spent + summary.gradient_evaluations

        begun = learner.init(key, model, variables, split)
        start = (jnp.int32(0), begun, jnp.ones(()), jnp.int32(0))
        _, state, accuracy, spent = jax.lax.while_loop(unfinished, one_epoch, start)
        return learner.finalize(model, state), accuracy, spent

    def recover(
        self,
        key: Key[Array, ""],
        model: Model,
        start: Variables,
        unlearned: Variables,
        split: Split,
    ) -> tuple[PruningState, Int[Array, ""]]:
        """Tune the masks over the unlearned network; return them over that of the start, and the evaluations."""

        def one_epoch(state: PruningState, number: Array) -> tuple[PruningState, Array]:
            own = jax.random.fold_in(key, number)
            state, summary = programs.epoch(own, self.pruning, model, state, split)
            return state, summary.gradient_evaluations

        begun = self.pruning.init(key, model, unlearned, split)
        numbers = jnp.arange(self.pruning.epochs)
        (tuning, _), spent = jax.lax.scan(one_epoch, begun, numbers)
        frozen = {**tuning.frozen, "params": start["params"]}
        return PruningState(tuning._replace(frozen=frozen), start["batch_stats"]), spent.sum()

    def finalize(self, model: Model, state: Recovered) -> Variables:
        """Return the pruned network, and say if the unlearning ended at its cap."""
        self._tell(state.accuracy)
        return self.pruning.finalize(model, state.pruning)

    def _tell(self, accuracy: Float[Array, ""]) -> None:
        if isinstance(accuracy, jax.core.Tracer) or isinstance(
            self.unlearned_accuracy, jax.core.Tracer
        ):
            return  # inside a program, nobody listens
        if accuracy > self.unlearned_accuracy + ROUNDING:
            _log.warning(
                "rnp: after unlearning_epochs = %d the accuracy on the holdout was still %.3g, above "
                "unlearned_accuracy = %.3g, so that masks recover what was hardly unlearned: raise "
                "unlearning_rate or unlearning_epochs.",
                self.unlearning.epochs,
                float(accuracy),
                float(self.unlearned_accuracy),
            )


@with_recipe(
    Recipe(epochs=20, batch_size=128, learning_rate=0.2, weight_decay=5e-4),
    without=("label_smoothing", "schedule"),
)
def rnp(
    recipe: Recipe,
    threshold: float = 0.3,
    share: float | None = None,
    alpha: float = 0.2,
    unlearned_accuracy: float = 0.2,
    unlearning_epochs: int = 20,
    unlearning_rate: float = 0.01,
    decimals: int | None = None,
) -> Reconstruction:
    """Create RNP: climb the loss of the clean holdout, min_m α L(m) with masks over what is left, and prune by m.

    What the network does on clean images is unlearned first: all weights climb their loss, until an epoch's accuracy,
    in training mode, is at most ``unlearned_accuracy``, or ``unlearning_epochs`` are over, and then a warning says that
    it was still higher. Of this network the weights are frozen, and each neuron, a channel of a batch norm, gets a
    factor m of its scale, 1 at the start and held in [0, 1], by which the holdout is recovered. At the end the neurons
    with low masks lose their scale, in the network as it was: shifts, batch statistics and all other neurons are left
    alone. In a network without batch norm, neurons are the channels of its layer norms and the filters of its layers
    (`bdjax.parametrizations.NeuronMasks`). It is one compiled call, so that its progress is not shown.

    Departures. Released code goes on with nothing where the accuracy never falls; its clipping of gradients comes
    before they are there, and has no effect: there is none here. It chooses the threshold by *test* images with the
    trigger, of 0 to 0.9, which no defender could; BackdoorBench has 0.7 for all; ``auto`` chooses by clean accuracy.

    When it works: where the unlearning gets there, which takes steps. On digits (one victim of BadNets at 10 %, 150
    images, two steps an epoch) the defaults ended at the cap with 93 % of the holdout right, and left 99.8 % of the
    ASR, 44 % with a threshold of 0.7. At three times the rate it ended at 19 %, and ASR was 0 for 10.6 points of
    accuracy; a clean network lost nothing. At ten times, accuracy fell to 65 %. At the paper's size it was not run.

    Args:
      threshold: in [0, 1): neurons with masks of at most this are pruned (the authors' demonstration succeeds
        around 0.2 to 0.3). It does not count where there is a share.
      share: in [0, 1], of the neurons, to be pruned from the lowest mask; those whose mask is 1 stay. None prunes by
        the threshold.
      alpha: α in [0, 1] of the loss; it multiplies the rate in effect.
      unlearned_accuracy: in [0, 1]; chance is not far below 0.2 for ten classes.
      unlearning_epochs: passes over the holdout before that at most, one at least unless it is 0.
      unlearning_rate: SGD's rate in these, a tenth after 10 epochs and after 20.
      decimals: to which masks are rounded before they are compared (4 in released code, which writes them to a file);
        None does not round.
      epochs: passes over the holdout to recover.
      learning_rate: SGD's constant rate in these.
      weight_decay: coupled, in the unlearning; the masks have none.

    Raises:
      InputError: a value out of range, or the network has no neuron to mask.

    References:
      Li et al., Reconstructive Neuron Pruning for Backdoor Defense, ICML 2023.
    """
    below_one(threshold=threshold)
    if share is not None:
        unit_interval(share=share)
    unit_interval(alpha=alpha, unlearned_accuracy=unlearned_accuracy)
    integer(maximum=EPOCHS, unlearning_epochs=unlearning_epochs)
    positive(unlearning_rate=unlearning_rate)
    if decimals is not None:
        integer(decimals=decimals, maximum=7)
    unlearning = dataclasses.replace(
        recipe,
        epochs=unlearning_epochs,
        learning_rate=unlearning_rate,
        schedule=Schedule(kind="step", period=10.0, factor=0.1),
    )
    masks = Supervised.of(
        dataclasses.replace(recipe, weight_decay=0.0),
        transformation=ScaledLoss(alpha),
        parametrization=NeuronMasks(alpha=0.0, beta=0.0, first=True),
    )
    pruning = MaskPruning(masks, threshold, share, decimals)
    uphill = Supervised.of(unlearning, transformation=Ascent())
    return Reconstruction(uphill, pruning, unlearned_accuracy)
