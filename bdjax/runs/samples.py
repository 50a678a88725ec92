"""Test images that a run keeps for the figures, with and without the trigger, and what both networks say of them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from bdjax.runs.plans import Plan
from bdjax.runs.victim import Guesses
from bdjax.types import PoisonedSplit

SAMPLES = 10  # that a run keeps


def samples(
    plan: Plan, triggered: PoisonedSplit, before: Guesses, after: Guesses
) -> dict[str, np.ndarray]:
    """Return test images that the attack aims at, by what is known of them."""
    valid = np.asarray(triggered.visible.valid)
    task, picture = plan.inputs.spec.task, plan.inputs.spec.modality.picture
    strata = np.asarray(task.stratum(triggered.original_label))
    rows = sample_rows(strata, valid, SAMPLES)
    test = plan.dataset.test
    wanted, original = (
        jnp.asarray(label)[rows] for label in (triggered.visible.label, triggered.original_label)
    )
    found = {
        "clean": np.asarray(picture(test.input[rows])),
        "triggered": np.asarray(picture(triggered.visible.input[rows])),
        "label": task.shown(np.asarray(test.label)[rows]),
    }
    for when, guesses in (("before", before), ("after", after)):
        for images, answer in (
            ("clean", guesses.clean[rows]),
            ("triggered", guesses.triggered[rows]),
        ):
            found[f"{images}_{when}"] = task.shown(answer)
            found[f"{images}_{when}_hit"] = np.asarray(
                task.hit(jnp.asarray(answer), wanted, original)
            )
    return found


def sample_rows(label: np.ndarray, valid: np.ndarray, count: int) -> np.ndarray:
    """Return the first valid row of each class, then further valid rows, so many in all."""
    rows = np.flatnonzero(valid)
    _, first = np.unique(label[rows], return_index=True)
    rest = np.setdiff1d(np.arange(rows.size), first)
    return rows[np.concatenate([np.sort(first), rest])[:count]]
