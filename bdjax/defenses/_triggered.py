"""Clean images beside the same with the trigger: how a network does on both."""

from __future__ import annotations

from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Num

from bdjax.curvature.chunks import accumulate, weighted_sum
from bdjax.types import Model, Variables


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


def score(model: Model, variables: Variables, images: Images, chunk: int) -> Score:
    """Return how a network does, in evaluation mode, so many images at a time."""
    load, task = model.spec.modality.load, model.spec.task

    def sums(some: Images, weight: Array) -> Score:
        clean, triggered = (model.apply(variables, load(image))[0] for image in some[:2])
        right = task.correct(task.answer(clean), some.label).astype(weight.dtype)
        losses = (task.loss(output, some.label) for output in (clean, triggered))
        return Score(weighted_sum(weight, right), *(weighted_sum(weight, loss) for loss in losses))

    total = accumulate(sums, images, chunk=chunk)
    return jax.tree.map(lambda x: x / images.label.shape[0], total)
