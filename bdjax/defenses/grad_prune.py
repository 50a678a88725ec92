"""Grad-Prune: prune the filters whose gradient would unlearn the backdoor, then fine-tune (Dunnett et al., 2024)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from bdjax import pytree
from bdjax.checks import below_one, integer, unit_interval
from bdjax.data.validation import ROUNDING, validation_split
from bdjax.defenses._filters import saliency, without_largest
from bdjax.defenses._operation import Operation
from bdjax.defenses._search import Step, least_loss
from bdjax.defenses._stages import TRIGGER
from bdjax.defenses._triggered import Images, score
from bdjax.parametrizations import PrunedFilters
from bdjax.train import programs
from bdjax.train.recipe import Recipe, with_recipe
from bdjax.train.supervised import Supervised
from bdjax.types import HParam, Info, Model, Split, SplitAndTrigger, Variables

STRENGTHS = {"accuracy_drop": (0.01, 0.02, 0.05, 0.1, 0.2)}  # what ``auto`` tries


@pytree.dataclass
class GradPrune(Operation):
    """Both stages of Grad-Prune, as one operation on the whole holdout."""

    sees: ClassVar[str] = TRIGGER
    tuning: Supervised
    accuracy_drop: HParam = 0.1
    prune_patience: int = pytree.static(default=10)
    tune_patience: int = pytree.static(default=10)
    rounds: int | None = pytree.static(default=None)
    aside: float = pytree.static(default=0.1)

    def update(
        self, key: Key[Array, ""], model: Model, state: Variables, batch: SplitAndTrigger
    ) -> tuple[Variables, Info]:
        """Prune and fine-tune. What is reported is measured on the validation part of the holdout."""
        (clean, label, _), trigger = batch
        images = Images(clean, trigger(jax.random.fold_in(key, 0), clean), label)
        task = model.spec.task
        rest, validation = validation_split(images, task.stratum(label), self.aside, task.strata)
        state, pruning = self.prune(model, state, rest, validation)
        state, tuning = self.tune(jax.random.fold_in(key, 1), model, state, rest, validation)
        found = score(model, state, validation, self.tuning.batch_size)
        return state, Info(found.clean_loss, found.accuracy, pruning + tuning)

    def prune(
        self, model: Model, variables: Variables, rest: Images, validation: Images
    ) -> tuple[Variables, Int[Array, ""]]:
        """Zero the filter with the largest ξ, round by round; return the best network and the gradients it took.

        The best has the least unlearning loss in validation among those whose accuracy there has not fallen by
        ``accuracy_drop``.
        """
        parametrization, chunk = PrunedFilters(), self.tuning.batch_size
        kept, frozen = parametrization.init(model, variables)
        filters = sum(x.size for x in jax.tree.leaves(kept))

        def with_filters(kept: Any) -> Variables:
            return {**variables, "params": parametrization.apply(kept, frozen)}

        def one_round(number: Array, kept: Any) -> Step:
            del number
            current = with_filters(kept)
            kept = without_largest(kept, saliency(model, current, rest, chunk), current["params"])
            found = score(model, with_filters(kept), validation, chunk)
            fallen = start.accuracy - found.accuracy >= self.accuracy_drop - ROUNDING
            return Step(kept, kept, jnp.where(fallen, jnp.inf, found.unlearning_loss), fallen)

        start = score(model, variables, validation, chunk)
        most = filters if self.rounds is None else min(self.rounds, filters)
        least, patience = start.unlearning_loss, self.prune_patience
        found = least_loss(one_round, kept, kept, least, most=most, patience=patience)
        return with_filters(found.best), found.number * -(-rest.label.shape[0] // chunk)

    def tune(
        self,
        key: Key[Array, ""],
        model: Model,
        variables: Variables,
        rest: Images,
        validation: Images,
    ) -> tuple[Variables, Int[Array, ""]]:
        """Fine-tune on clean and triggered images until the loss in validation stops falling; return the best."""
        image, label = jnp.concatenate(rest[:2]), jnp.concatenate([rest.label] * 2)
        split = Split(image, label, jnp.ones(label.shape[0], bool))
        chunk = self.tuning.batch_size
        learner = dataclasses.replace(self.tuning, batch_size=min(2 * chunk, label.shape[0]))

        def loss(variables: Variables) -> Array:
            found = score(model, variables, validation, chunk)
            return found.clean_loss + found.unlearning_loss

        def one_epoch(number: Array, carry: tuple[Any, Array]) -> Step:
            state, spent = carry
            state, summary = programs.epoch(
                jax.random.fold_in(key, number), learner, model, state, split
            )
            tuned = learner.finalize(model, state)
            return Step(
                (state, spent + summary.gradient_evaluations), tuned, loss(tuned), jnp.bool_(False)
            )

        start, least = (learner.init(key, model, variables, split), jnp.int32(0)), loss(variables)
        most, patience = learner.epochs, self.tune_patience
        found = least_loss(one_epoch, start, variables, least, most=most, patience=patience)
        return found.best, found.state[1]


@with_recipe(
    Recipe(batch_size=128, learning_rate=0.001, weight_decay=5e-4, augment="none"),
    without=("label_smoothing", "schedule", "augment"),
)
def grad_prune(
    recipe: Recipe,
    accuracy_drop: float = 0.1,
    prune_patience: int = 10,
    tune_patience: int = 10,
    rounds: int | None = None,
    aside: float = 0.1,
) -> GradPrune:
    """Create Grad-Prune: prune by ξ = ‖∂L_u/∂W_i‖₁ / numel(W_i), then minimize L(clean) + L(triggered), true labels.

    The defender can put the trigger on his clean images: x̃; in a run it is the attack's own, and the paper assumes that
    a synthesized one is as good. The unlearning loss L_u = Σ CE(f(x̃), y) is never
    minimized while pruning; its gradient, one for each round, ranks the filters of all convolutions (of all layers,
    where only the first is one: `bdjax.structure.filters`), and the first is set to zero with its bias. Pruning ends
    when accuracy has fallen by ``accuracy_drop`` or L_u has not improved for
    ``prune_patience`` rounds, fine-tuning when its loss has not improved for ``tune_patience`` epochs, both measured
    aside; the best network so far is kept each time. Pruned filters may grow again in the fine-tuning.

    All of it is one compiled call, so progress is not shown in between.

    Departures from the released code, which the paper does not ask for: filters that are zero are not ranked again;
    batch norm is in evaluation mode in all of the ranking; a bias is the filter's own, not whatever parameter comes
    next; 2 images per class are divided 1 and 1, not 2 and 1; the loss aside is the one that is minimized, not its
    clean half. A step minimizes the mean over 2 · ``batch_size`` images drawn from the clean and the triggered ones
    together at twice the rate, instead of the sum of both losses on as many pairs.

    Args:
      accuracy_drop: in [0, 1], absolute.
      prune_patience: rounds without improvement, at least 1.
      tune_patience: epochs without improvement, at least 1.
      rounds: most rounds of pruning; None is no limit.
      aside: share of the holdout, in [0, 1), kept for measuring; at least one image of each class.
      epochs: most epochs of fine-tuning; the paper names no limit.
      batch_size: clean images a step, with as many triggered ones.
      learning_rate: SGD's constant rate, for the sum of both losses.

    Raises:
      InputError: a value out of range.

    References:
      Unlearning Backdoor Attacks through Gradient-Based Model Pruning, 2024, eq. 1–2, sec. IV.
    """
    unit_interval(accuracy_drop=accuracy_drop)
    integer(1, prune_patience=prune_patience, tune_patience=tune_patience)
    if rounds is not None:
        integer(rounds=rounds)
    below_one(aside=aside)
    # The mean over twice the images at rate 2η and decay λ/2 makes the step of the sum of two means
    # at η and λ.
    rate, decay = 2 * recipe.learning_rate, recipe.weight_decay / 2
    tuning = Supervised.of(dataclasses.replace(recipe, learning_rate=rate, weight_decay=decay))
    return GradPrune(tuning, accuracy_drop, prune_patience, tune_patience, rounds, aside)
