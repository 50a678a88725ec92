"""Evaluation: counts on the device, rates from counts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from bdjax.checks import InputError, integer
from bdjax.data.augment import as_float
from bdjax.train import compilation
from bdjax.types import Images, Metrics, Model, PoisonedSplit, Split, Variables

BATCH = 500


def evaluate(
    model: Model, variables: Variables, clean: Split, triggered: PoisonedSplit, *, batch_size: int = BATCH
) -> Metrics:
    """Count right answers on clean test images, and hits and right answers on triggered ones, in evaluation mode.

    ASR and RA share their rows: those that are ``valid`` in ``triggered.visible``. Padding never counts.

    Args:
      model: the network.
      variables: its parameters and statistics.
      clean: the test split.
      triggered: of `bdjax.poison.poison_test`.
      batch_size: images a step; changes speed and memory only.

    Raises:
      InputError: no image to count, or a batch size below one.
    """
    on_clean = predict(model, variables, clean.image, batch_size=batch_size)
    on_triggered = predict(model, variables, triggered.visible.image, batch_size=batch_size)
    return count(on_clean, on_triggered, clean, triggered)


def count(
    on_clean: Int[Array, " n"], on_triggered: Int[Array, " m"], clean: Split, triggered: PoisonedSplit
) -> Metrics:
    """Count from the predicted classes, whatever predicted them. Arguments and errors as for `evaluate`."""
    clean, visible = jax.tree.map(jnp.asarray, (clean, triggered.visible))
    if not bool(clean.valid.any()) or not bool(visible.valid.any()):
        raise InputError("there is no test image to count: the test split is empty, or the label map changes no label.")
    return Metrics(
        clean_correct=_count(on_clean == clean.label, clean.valid),
        clean_total=clean.valid.sum(),
        attack_hits=_count(on_triggered == visible.label, visible.valid),
        robust_correct=_count(on_triggered == triggered.original_label, visible.valid),
        attack_total=visible.valid.sum(),
    )


def predict(model: Model, variables: Variables, image: Images, *, batch_size: int = BATCH) -> Int[Array, " n"]:
    """Return the class with the largest logit for each image, in evaluation mode."""
    integer(1, batch_size=batch_size)
    return _predict(model, variables, jnp.asarray(image), max(1, min(batch_size, image.shape[0])))


def defense_effectiveness_rating(before: Metrics, after: Metrics) -> Any:
    """Return DER = (max(0, ΔASR) − max(0, ΔACC) + 1) / 2, Δ = before − after.

    In [0, 1]; 0.5 where nothing changed. A gain in accuracy is never rewarded (FT-SAM, sec. 5.1; Zhu et al., 2023).
    """
    attack_drop = before.attack_success_rate - after.attack_success_rate
    accuracy_drop = before.clean_accuracy - after.clean_accuracy
    return (jnp.maximum(0, attack_drop) - jnp.maximum(0, accuracy_drop) + 1) / 2


def _count(hit: Bool[Array, " n"], valid: Bool[Array, " n"]) -> Int[Array, ""]:
    return (hit & valid).sum()


def predictions(model: Model, variables: Variables, image: Array, batch_size: int) -> Int[Array, " n"]:
    """Return what `predict` returns, as a pure function to be compiled with more around it."""
    rows = image.shape[0]
    steps = -(-rows // batch_size)
    padded = jnp.pad(image, ((0, steps * batch_size - rows), (0, 0), (0, 0), (0, 0)))

    def step(batch: Array) -> Array:
        logits, _ = model.apply(variables, as_float(batch), train=False)
        return logits.argmax(-1)

    return jax.lax.map(step, padded.reshape(steps, batch_size, *image.shape[1:])).reshape(-1)[:rows]


_predict = compilation.jit(predictions, static_argnames=("model", "batch_size"))
