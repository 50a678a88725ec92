"""Test images that a run keeps for the figures, with and without the trigger, and what both networks say of them."""

from __future__ import annotations

import numpy as np

from bdjax.runs.plans import Plan
from bdjax.runs.victim import Guesses
from bdjax.types import PoisonedSplit

SAMPLES = 10  # that a run keeps


def samples(plan: Plan, triggered: PoisonedSplit, before: Guesses, after: Guesses) -> dict[str, np.ndarray]:
    """Return test images that the attack aims at, by what is known of them."""
    valid = np.asarray(triggered.visible.valid)
    rows = sample_rows(np.asarray(triggered.original_label), valid, SAMPLES)
    test = plan.dataset.test
    return {
        "clean": np.asarray(test.input)[rows],
        "triggered": np.asarray(triggered.visible.input[rows]),
        "label": np.asarray(test.label)[rows],
        "clean_before": before.clean[rows],
        "clean_after": after.clean[rows],
        "triggered_before": before.triggered[rows],
        "triggered_after": after.triggered[rows],
    }


def sample_rows(label: np.ndarray, valid: np.ndarray, count: int) -> np.ndarray:
    """Return the first valid row of each class, then further valid rows, so many in all."""
    rows = np.flatnonzero(valid)
    _, first = np.unique(label[rows], return_index=True)
    rest = np.setdiff1d(np.arange(rows.size), first)
    return rows[np.concatenate([np.sort(first), rest])[:count]]
