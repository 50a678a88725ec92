"""Grad-Prune: prune the filters whose gradient would unlearn the backdoor, then fine-tune (Dunnett et al., 2024)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num

from bdjax import pytree, structure
from bdjax.checks import below_one, integer, one_of, unit_interval
from bdjax.curvature.chunks import accumulate, weighted_sum
from bdjax.data.validation import ROUNDING, validation_split
from bdjax.parametrizations import PrunedFilters
from bdjax.train import loop
from bdjax.train.recipe import Recipe, with_recipe
from bdjax.train.supervised import Supervised
from bdjax.types import HParam, Info, Model, Split, TriggerSource, Variables

STRENGTHS = {"accuracy_drop": (0.01, 0.02, 0.05, 0.1, 0.2)}  # what ``auto`` tries


class Images(NamedTuple):
    """Clean images, the same ones with the trigger, and their true labels."""

    clean: Num[Array, "n h w c"]
    triggered: Num[Array, "n h w c"]
    label: Num[Array, " n"]


class Score(NamedTuple):
    """Accuracy on the clean images and mean losses on the clean and the triggered ones, with true labels."""

    accuracy: Float[Array, ""]
    clean_loss: Float[Array, ""]
    unlearning_loss: Float[Array, ""]


class Search(NamedTuple):
    """A search for the least loss: where it stands, the best so far, and for how many steps that has been the best."""

    state: Any
    best: Any
    least: Float[Array, ""]
    waited: Int[Array, ""]
    number: Int[Array, ""]
    ended: Bool[Array, ""]


@pytree.dataclass
class GradPrune:
    """Both stages of Grad-Prune, as one operation on the whole holdout."""

    trigger: Any
    tuning: Supervised
    accuracy_drop: HParam = 0.1
    prune_patience: int = pytree.static(default=10)
    tune_patience: int = pytree.static(default=10)
    rounds: int | None = pytree.static(default=None)
    aside: float = pytree.static(default=0.1)
    epochs: int = pytree.static(default=1)
    batch_size: None = pytree.static(default=None)
    drop_last: bool = pytree.static(default=False)

    def init(self, key: Key[Array, ""], model: Model, variables: Variables, split: Split) -> Variables:
        """Return the network as it is."""
        del key, model, split
        return variables

    def update(self, key: Key[Array, ""], model: Model, state: Variables, batch: Split) -> tuple[Variables, Info]:
        """Prune and fine-tune. What is reported is measured on the part of the holdout that is kept aside."""
        images = Images(batch.input, self.trigger(jax.random.fold_in(key, 0), batch.input), batch.label)
        task = model.spec.task
        rest, aside = validation_split(images, task.stratum(batch.label), self.aside, task.num_classes)
        state, pruning = self.prune(model, state, rest, aside)
        state, tuning = self.tune(jax.random.fold_in(key, 1), model, state, rest, aside)
        score = self._score(model, state, aside)
        return state, Info(score.clean_loss, score.accuracy, pruning + tuning)

    def finalize(self, model: Model, state: Variables) -> Variables:
        """Return the pruned and fine-tuned network."""
        del model
        return state

    def prune(self, model: Model, variables: Variables, rest: Images, aside: Images) -> tuple[Variables, Array]:
        """Zero the filter with the largest ξ, round by round; return the best network and the gradients it took.

        ξ = ‖∂L_u/∂W_i‖₁ / numel(W_i) of the unlearning loss L_u on the triggered images. The best has the least L_u
        aside among those whose accuracy there has not fallen by ``accuracy_drop``.
        """
        parametrization = PrunedFilters()
        kept, frozen = parametrization.init(model, variables)
        filters = sum(x.size for x in jax.tree.leaves(kept))

        def with_filters(kept: Any) -> Variables:
            return {**variables, "params": parametrization.apply(kept, frozen)}

        def one_round(number: Array, kept: Any) -> tuple[Any, Any, Array, Array]:
            del number
            current = with_filters(kept)
            kept = _without_largest(kept, self.saliency(model, current, rest), current["params"])
            score = self._score(model, with_filters(kept), aside)
            fallen = start.accuracy - score.accuracy >= self.accuracy_drop - ROUNDING
            return kept, kept, jnp.where(fallen, jnp.inf, score.unlearning_loss), fallen

        start = self._score(model, variables, aside)
        most = filters if self.rounds is None else min(self.rounds, filters)
        found = _search(one_round, kept, kept, start.unlearning_loss, most, self.prune_patience)
        return with_filters(found.best), found.number * -(-rest.label.shape[0] // self.tuning.batch_size)

    def saliency(self, model: Model, variables: Variables, images: Images) -> Any:
        """Return ξ of every filter, a tree of one array for each convolution; batch norm is in evaluation mode."""

        load = model.spec.modality.load

        def loss(params: Any, some: Any, weight: Array) -> Array:
            image, label = some
            logits, _ = model.apply({**variables, "params": params}, load(image))
            return weighted_sum(weight, model.spec.task.loss(logits, label))

        grads = accumulate(
            lambda some, weight: jax.grad(loss)(variables["params"], some, weight),
            (images.triggered, images.label), chunk=self.tuning.batch_size,
        )  # fmt: skip
        found = structure.convolutions(grads)
        return structure.nested({path: jnp.abs(g).mean(tuple(range(g.ndim - 1))) for path, g in found.items()})

    def tune(
        self, key: Key[Array, ""], model: Model, variables: Variables, rest: Images, aside: Images
    ) -> tuple[Variables, Array]:
        """Fine-tune on the clean and the triggered images until the loss aside stops falling; return the best."""
        image, label = jnp.concatenate(rest[:2]), jnp.concatenate([rest.label] * 2)
        split = Split(image, label, jnp.ones(label.shape[0], bool))
        learner = dataclasses.replace(self.tuning, batch_size=min(2 * self.tuning.batch_size, label.shape[0]))

        def loss_aside(variables: Variables) -> Array:
            score = self._score(model, variables, aside)
            return score.clean_loss + score.unlearning_loss

        def one_epoch(number: Array, carry: tuple[Any, Array]) -> tuple[Any, Any, Array, Array]:
            state, spent = carry
            state, summary = loop.epoch(jax.random.fold_in(key, number), learner, model, state, split)
            tuned = learner.finalize(model, state)
            return (state, spent + summary.gradient_evaluations), tuned, loss_aside(tuned), jnp.bool_(False)

        start = (learner.init(key, model, variables, split), jnp.int32(0))
        least = loss_aside(variables)
        found = _search(one_epoch, start, variables, least, learner.epochs, self.tune_patience)
        return found.best, found.state[1]

    def _score(self, model: Model, variables: Variables, images: Images) -> Score:
        load, task = model.spec.modality.load, model.spec.task

        def sums(some: Images, weight: Array) -> Score:
            clean, triggered = (model.apply(variables, load(image))[0] for image in some[:2])
            right = task.correct(task.answer(clean), some.label).astype(weight.dtype)
            losses = (task.loss(logits, some.label) for logits in (clean, triggered))
            return Score(weighted_sum(weight, right), *(weighted_sum(weight, loss) for loss in losses))

        total = accumulate(sums, images, chunk=self.tuning.batch_size)
        return jax.tree.map(lambda x: x / images.label.shape[0], total)


def _search(
    step: Callable[[Array, Any], tuple[Any, Any, Array, Array]],
    state: Any,
    best: Any,
    least: Float[Array, ""],
    most: int,
    patience: int,
) -> Search:
    """Take ``most`` steps at most, until ``patience`` in a row have not lowered the loss or one says that this is all.

    A step takes its number and the state; it returns the state, a candidate, the candidate's loss and whether to end.
    """

    def unfinished(search: Search) -> Array:
        return (search.number < most) & (search.waited < patience) & ~search.ended

    def one(search: Search) -> Search:
        state, candidate, loss, ended = step(search.number, search.state)
        better = loss < search.least
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), candidate, search.best)
        least, waited = jnp.where(better, loss, search.least), jnp.where(better, 0, search.waited + 1)
        return Search(state, best, least, waited, search.number + 1, ended)

    start = Search(state, best, least, jnp.int32(0), jnp.int32(0), jnp.bool_(False))
    return jax.lax.while_loop(unfinished, one, start)


def _without_largest(kept: Any, saliency: Any, params: Any) -> Any:
    """Return the filters that are kept when the one with the largest ξ, of those that are not zero, is taken out."""
    kept, saliency, kernels = structure.flat(kept), structure.flat(saliency), structure.convolutions(params)
    nonzero = {path: (kernel != 0).any(tuple(range(kernel.ndim - 1))) for path, kernel in kernels.items()}
    candidates = jnp.concatenate([jnp.where(nonzero[path], saliency[path], -jnp.inf) for path in kept])
    remaining = jnp.concatenate([*kept.values()]).at[candidates.argmax()].set(0)
    ends = list(itertools.accumulate(x.size for x in kept.values()))
    return structure.nested(dict(zip(kept, jnp.split(remaining, ends[:-1]), strict=True)))


@with_recipe(
    Recipe(batch_size=128, learning_rate=0.001, weight_decay=5e-4, augment="none"),
    without=("label_smoothing", "schedule", "augment"),
)
def grad_prune(
    recipe: Recipe,
    trigger: TriggerSource | Literal["true"] = "true",
    accuracy_drop: float = 0.1,
    prune_patience: int = 10,
    tune_patience: int = 10,
    rounds: int | None = None,
    aside: float = 0.1,
) -> GradPrune:
    """Create Grad-Prune: prune by ξ = ‖∂L_u/∂W_i‖₁ / numel(W_i), then minimize L(clean) + L(triggered), true labels.

    The defender can put the trigger on his clean images: x̃. The unlearning loss L_u = Σ CE(f(x̃), y) is never
    minimized while pruning; its gradient, one for each round, ranks the filters of all convolutions, and the first is
    set to zero with its bias. Pruning ends when accuracy has fallen by ``accuracy_drop`` or L_u has not improved for
    ``prune_patience`` rounds, fine-tuning when its loss has not improved for ``tune_patience`` epochs, both measured
    aside; the best network so far is kept each time. Pruned filters may grow again in the fine-tuning.

    All of it is one compiled call, so progress is not shown in between.

    Departures from the released code, which the paper does not ask for: filters that are zero are not ranked again;
    batch norm is in evaluation mode in all of the ranking; a bias is the filter's own, not whatever parameter comes
    next; 2 images per class are divided 1 and 1, not 2 and 1; the loss aside is the one that is minimized, not its
    clean half. A step minimizes the mean over 2 · ``batch_size`` images drawn from the clean and the triggered ones
    together at twice the rate, instead of the sum of both losses on as many pairs.

    Args:
      trigger: what puts the trigger on images. ``true``: the attack's own, which a run fills in; the paper assumes
        that a synthesized one is as good. Else a function (key, images) → images, such as `bdjax.poison.Stamp`.
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
    if isinstance(trigger, str) or not callable(trigger):
        one_of(("true",), trigger=trigger)
    elif jax.tree_util.all_leaves([trigger]):  # a plain function; as an argument of compiled code it must be a tree
        trigger = jax.tree_util.Partial(trigger)
    unit_interval(accuracy_drop=accuracy_drop)
    integer(1, prune_patience=prune_patience, tune_patience=tune_patience)
    if rounds is not None:
        integer(rounds=rounds)
    below_one(aside=aside)
    # The mean over twice the images at rate 2η and decay λ/2 makes the step of the sum of two means at η and λ.
    doubled = dataclasses.replace(recipe, learning_rate=2 * recipe.learning_rate, weight_decay=recipe.weight_decay / 2)
    return GradPrune(trigger, Supervised.of(doubled), accuracy_drop, prune_patience, tune_patience, rounds, aside)
