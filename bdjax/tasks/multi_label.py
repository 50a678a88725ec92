"""Each input has a set of classes, and the network a logit for each class, which says whether it is there."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from bdjax.tasks.metrics import MULTI_LABEL, UTILITY, Metric, first
from bdjax.types import HParam, PoisonedSplit, Split


class MultiLabelMetrics(NamedTuple):
    """The mean average precision on clean inputs, and the counts on triggered ones."""

    mean_average_precision: Float[Array, ""]
    clean_total: Int[Array, ""]
    attack_hits: Int[Array, ""]
    attack_total: Int[Array, ""]

    @property
    def attack_success_rate(self) -> Float[Array, ""]:
        """Share of the triggered inputs in whose answer every label is what the attacker changed it to (ASR)."""
        return self.attack_hits / self.attack_total


@dataclasses.dataclass(frozen=True)
class MultiLabel:
    """Several labels at once: labels are bool [n, k], outputs are logits [n, k].

    A class is in the answer where its logit is above 0, which is a probability above ½.
    """

    num_classes: int
    class_names: tuple[str, ...] = ()
    labels: ClassVar[str] = "set"
    metrics: ClassVar[tuple[Metric, ...]] = MULTI_LABEL

    @property
    def strata(self) -> int:
        """Number of groups of `stratum`."""
        return 1

    def loss(
        self, output: Float[Array, "n k"], label: Bool[Array, "n k"], label_smoothing: HParam = 0.0
    ) -> Float[Array, " n"]:
        """Return the binary cross-entropy of each row, a mean over the classes.

        A class that is there has the target 1 − ε / 2 and one that is not ε / 2, ε = ``label_smoothing``.
        """
        target = label * (1 - label_smoothing) + label_smoothing / 2
        return optax.sigmoid_binary_cross_entropy(output, target).mean(-1)

    def negative_log_likelihood(
        self, output: Float[Array, "n k"], label: Bool[Array, "n k"]
    ) -> Float[Array, " n"]:
        """Return −log p(labels) for each row, the classes being independent given the input."""
        return optax.sigmoid_binary_cross_entropy(output, label.astype(output.dtype)).sum(-1)

    def answer(self, output: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """Return the logits: precision is averaged over their order."""
        return output

    def correct(self, answer: Float[Array, "n k"], label: Bool[Array, "n k"]) -> Float[Array, " n"]:
        """Return the share of the classes of which the answer says rightly whether they are there."""
        return ((answer > 0) == label).mean(-1)

    def hit(
        self, answer: Float[Array, "n k"], wanted: Bool[Array, "n k"], original: Bool[Array, "n k"]
    ) -> Bool[Array, " n"]:
        """Return which answers have every label that the attacker changes as he wants it."""
        return (((answer > 0) == wanted) | (wanted == original)).all(-1)

    def shown(self, answer: np.ndarray) -> np.ndarray:
        """Return the names of the classes that are there, with a plus between them."""
        names = self.class_names or tuple(str(number) for number in range(self.num_classes))
        texts = []
        for row in np.asarray(answer) > 0:
            texts.append(" + ".join(np.asarray(names)[row]) or "none")
        return np.asarray(texts, str)

    def stratum(self, label: Bool[Array, "n k"]) -> Int[Array, " n"]:
        """Return one group for all rows: sets of classes are not balanced."""
        return jnp.zeros(label.shape[0], jnp.int32)

    def chance(self, label: np.ndarray) -> dict[str, float]:
        """Return the precision of scores that know nothing: how often a class is there, of those that are."""
        share = np.asarray(label).mean(0)
        return (
            {first(self.metrics, UTILITY).name: float(share[share > 0].mean())}
            if share.any()
            else {}
        )

    def count(
        self,
        clean_answer: Float[Array, "n k"],
        triggered_answer: Float[Array, "m k"],
        clean: Split,
        triggered: PoisonedSplit,
    ) -> MultiLabelMetrics:
        """Return the mean average precision and the counts; rows that are not valid count nowhere."""
        visible = triggered.visible
        hit = self.hit(triggered_answer, visible.label, triggered.original_label)
        return MultiLabelMetrics(
            mean_average_precision=mean_average_precision(clean_answer, clean.label, clean.valid),
            clean_total=clean.valid.sum(),
            attack_hits=(hit & visible.valid).sum(),
            attack_total=visible.valid.sum(),
        )


def mean_average_precision(
    score: Float[Array, "n k"], label: Bool[Array, "n k"], valid: Bool[Array, " n"]
) -> Float[Array, ""]:
    """Return the mean over the classes of the average precision, at all points.

    AP of a class is the mean, over the rows that have it, of the precision among the rows with no smaller score; equal
    scores share a precision. Classes that no valid row has are left out.

    Args:
      score: any numbers that grow with the belief that a class is there.
      label: which classes are there.
      valid: which rows count.
    """
    score, label, valid = jnp.asarray(score), jnp.asarray(label), jnp.asarray(valid)
    known = valid[:, None] & ~jnp.isnan(score)  # what is no number is believed least
    of_class = jax.vmap(_average_precision, in_axes=(1, 1, None), out_axes=0)
    average = of_class(jnp.where(known, score, -jnp.inf), label & valid[:, None], valid)
    present = (label & valid[:, None]).any(0)
    return jnp.where(present, average, 0).sum() / jnp.maximum(present.sum(), 1)


def _average_precision(
    score: Float[Array, " n"], there: Bool[Array, " n"], valid: Bool[Array, " n"]
) -> Float[Array, ""]:
    order = jnp.argsort(-score)
    falling, there = score[order], there[order]
    # the last row whose score is no smaller than this row's
    last = score.shape[0] - 1 - jnp.searchsorted(falling[::-1], falling)
    precision = jnp.cumsum(there)[last] / jnp.maximum(jnp.cumsum(valid[order])[last], 1)
    return jnp.where(there, precision, 0).sum() / jnp.maximum(there.sum(), 1)
