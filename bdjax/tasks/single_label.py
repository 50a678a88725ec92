"""Each input has one class, and the network a logit for each."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy
from jaxtyping import Array, Bool, Float, Int

from bdjax.tasks.metrics import SINGLE_LABEL, Metric
from bdjax.types import HParam, Metrics, PoisonedSplit, Split


@dataclasses.dataclass(frozen=True)
class SingleLabel:
    """Classification: labels are int [n], outputs are logits [n, k]."""

    num_classes: int
    class_names: tuple[str, ...] = ()
    metrics: ClassVar[tuple[Metric, ...]] = SINGLE_LABEL
    labels: ClassVar[str] = "class"

    @property
    def strata(self) -> int:
        """Number of groups of `stratum`."""
        return self.num_classes

    def loss(
        self, output: Float[Array, "n k"], label: Int[Array, " n"], label_smoothing: HParam = 0.0
    ) -> Float[Array, " n"]:
        """Return KL(q ‖ softmax(logits)) for each row, which is the cross-entropy for ε = 0.

        q puts 1 − ε on the label and ε / (C − 1) on each other class, ε = ``label_smoothing``. It equals the
        cross-entropy with uniform smoothing ε C / (C − 1) less the entropy of q (BackdoorBench's form of the loss).
        """
        classes = output.shape[-1]
        is_label = jax.nn.one_hot(label, classes, dtype=output.dtype)
        q = jnp.where(is_label > 0, 1 - label_smoothing, label_smoothing / (classes - 1))
        return jnp.sum(xlogy(q, q) - q * jax.nn.log_softmax(output), axis=-1)

    def negative_log_likelihood(
        self, output: Float[Array, "n k"], label: Int[Array, " n"]
    ) -> Float[Array, " n"]:
        """Return −log p(label) for each row: the loss whose gradients make the Fisher information."""
        return -jnp.take_along_axis(jax.nn.log_softmax(output), label[:, None], axis=-1)[:, 0]

    def answer(self, output: Float[Array, "n k"]) -> Int[Array, " n"]:
        """Return the class with the largest logit for each row: all that is kept of an output to be counted."""
        return output.argmax(-1)

    def correct(self, answer: Int[Array, " n"], label: Int[Array, " n"]) -> Bool[Array, " n"]:
        """Return which answers are the label."""
        return answer == label

    def hit(
        self, answer: Int[Array, " n"], wanted: Int[Array, " n"], original: Int[Array, " n"]
    ) -> Bool[Array, " n"]:
        """Return which answers are what the attacker wants."""
        del original
        return answer == wanted

    def shown(self, answer: np.ndarray) -> np.ndarray:
        """Return the numbers of the classes."""
        return answer

    def stratum(self, label: Int[Array, " n"]) -> Int[Array, " n"]:
        """Return the group of each row of which a balanced set has equally many: its class."""
        return label

    def chance(self, label: np.ndarray) -> dict[str, float]:
        """Return nothing: a guess is right on as many inputs as a record's number of classes, and their counts, say."""
        return {}

    def count(
        self,
        clean_answer: Int[Array, " n"],
        triggered_answer: Int[Array, " m"],
        clean: Split,
        triggered: PoisonedSplit,
    ) -> Metrics:
        """Return the counts of which the task's metrics are ratios; rows that are not valid count nowhere."""
        visible = triggered.visible
        hit = self.hit(triggered_answer, visible.label, triggered.original_label)
        restored = self.correct(triggered_answer, triggered.original_label)
        return Metrics(
            clean_correct=(self.correct(clean_answer, clean.label) & clean.valid).sum(),
            clean_total=clean.valid.sum(),
            attack_hits=(hit & visible.valid).sum(),
            robust_correct=(restored & visible.valid).sum(),
            attack_total=visible.valid.sum(),
        )
