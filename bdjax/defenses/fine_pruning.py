"""Fine-pruning: prune the features that clean images use least, then fine-tune (Liu et al., RAID 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bdjax import pytree, structure
from bdjax.checks import below_one, positive, unit_interval
from bdjax.data.validation import ROUNDING, validation_split
from bdjax.defenses._operation import Operation
from bdjax.defenses._stages import Defense
from bdjax.defenses.chain import chain
from bdjax.train.recipe import Recipe, with_recipe
from bdjax.train.supervised import Supervised
from bdjax.types import HParam, Info, Model, Split, Task, Variables

STRENGTHS = {"accuracy_drop": (0.01, 0.02, 0.05, 0.1, 0.2)}  # what ``auto`` tries
_CHUNK = 100


@pytree.dataclass
class FeaturePruning(Operation):
    """Zero the classifier's weights for the features with the lowest mean, as many as accuracy bears."""

    accuracy_drop: HParam = 0.1
    max_share: HParam = 1.0
    step: float = pytree.static(default=0.01)
    aside: float = pytree.static(default=0.2)

    def update(
        self,
        key: Key[Array, ""],
        model: Model,
        state: Variables,
        batch: Split,
    ) -> tuple[Variables, Info]:
        """Prune, given the whole holdout. What is reported is measured on the validation part of it."""
        del key
        load, task = model.spec.modality.load, model.spec.task
        features = jax.lax.map(
            lambda x: model.features(state, load(x)[None])[0], batch.input, batch_size=_CHUNK
        )
        (seen, *_), (features, label, validation) = validation_split(
            (features, batch.label, batch.input),
            task.stratum(batch.label),
            self.aside,
            task.strata,
        )
        path, flat = structure.classifier(model, state), structure.flat(state["params"])
        bias = flat.get((*path[:-1], "bias"), 0)
        rank = jnp.argsort(jnp.argsort(seen.mean(0)))  # 0 for the lowest mean

        def pruned(count: Array) -> Variables:
            kernel = jnp.where((rank >= count)[:, None], flat[path], 0)
            return {**state, "params": structure.nested({**flat, path: kernel})}

        def logits(count: Array) -> Float[Array, "n k"]:
            if flat[path].ndim > 2:  # a convolution: what follows it is the network's own
                return _logits(model, pruned(count), validation)
            return jnp.where(rank >= count, features, 0) @ flat[path] + bias

        count = self._most(lambda count: _accuracy(task, logits(count), label), rank.shape[0])
        loss, right = task.loss(logits(count), label).mean(), _accuracy(task, logits(count), label)
        return pruned(count), Info(loss, right, jnp.int32(0))

    def _most(self, accuracy_of: Callable[[Array], Array], width: int) -> Int[Array, ""]:
        """Return the largest number of features below the first that costs too much."""
        counts = jnp.arange(0, width, max(1, math.ceil(self.step * width - 1e-9)))
        accuracy = jax.lax.map(accuracy_of, counts)
        bearable = accuracy > (1 - self.accuracy_drop) * accuracy[0] + ROUNDING
        bearable = (bearable & (counts <= self.max_share * width)) | (counts == 0)
        return counts[jnp.cumprod(bearable).sum() - 1]


def _accuracy(task: Task, output: Array, label: Array) -> Float[Array, ""]:
    return task.correct(task.answer(output), label).mean()


def _logits(model: Model, variables: Variables, image: Array) -> Float[Array, "n k"]:
    return jax.lax.map(
        lambda x: model.apply(variables, model.spec.modality.load(x)[None])[0][0],
        image,
        batch_size=_CHUNK,
    )


@with_recipe(Recipe())
def fine_pruning(
    recipe: Recipe,
    accuracy_drop: float = 0.1,
    step: float = 0.01,
    max_share: float = 1.0,
    aside: float = 0.2,
) -> Defense:
    """Create fine-pruning: zero the features that are low on clean images, while accuracy holds; then `ft`.

    Features are what the classifier takes in; they are ranked by their signed mean over the holdout, less a part that
    is kept aside, and pruned from the lowest, in steps of ⌈step · d⌉, by zeroing their weights in the classifier. The
    last step before the accuracy aside falls by the share ``accuracy_drop`` is kept. What was pruned stays zero in the
    fine-tuning, which uses the whole holdout. Without epochs this is pruning alone. Where the classifier is a
    convolution, its input channels are the features, ranked by their means over the positions too.

    Departures. BackdoorBench, whose choice of layer this follows, ranks on augmented images, measures on the *test*
    images, keeps the first step that costs too much, and prunes one step less than it counts.

    Args:
      accuracy_drop: share of the accuracy, in [0, 1], that may not be lost.
      step: share of the features pruned at once, in (0, 1].
      max_share: prune no more than this share of the features, in [0, 1].
      aside: share of the holdout, in [0, 1), that decides how much is pruned.

    Raises:
      InputError: a value out of range.

    References:
      Liu et al., Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks, RAID 2018.
    """
    unit_interval(accuracy_drop=accuracy_drop, step=step, max_share=max_share)
    below_one(aside=aside)
    positive(step=step)
    return chain(FeaturePruning(accuracy_drop, max_share, step, aside), Supervised.of(recipe))
