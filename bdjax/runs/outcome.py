"""What a record says of a victim and of the defended network: the section ``metrics``, as the task describes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bdjax import evaluate
from bdjax.tasks.metrics import RATING, Metric, first


def section(
    metrics: Sequence[Metric], before: Any, after: Any, chance: dict[str, float] | None = None
) -> dict[str, Any]:
    """Return the section: the description of the metrics, counts and values of both networks, and the rating.

    Args:
      metrics: of the task.
      before: of the victim, as `bdjax.types.Task.count` returns it.
      after: of the defended network, likewise.
      chance: what a guess gives, by the names of metrics, where that is known and is not what the classes say
        (`bdjax.runs.soundness`).
    """
    rating = first(metrics, RATING).name
    made = {
        "description": [metric.plain() for metric in metrics],
        "before": plain(metrics, before),
        "after": plain(metrics, after),
        rating: float(evaluate.defense_effectiveness_rating(before, after, metrics)),
    }
    return {**made, "chance": chance} if chance else made


def plain(metrics: Sequence[Metric], counted: Any) -> dict[str, int | float]:
    """Return what was counted of a network, and the values of its metrics, as plain numbers."""
    found: dict[str, int | float] = {}
    for name, value in counted._asdict().items():
        whole = np.issubdtype(np.asarray(value).dtype, np.integer)
        found[name] = int(value) if whole else float(value)
    for metric in metrics:
        if metric.role != RATING:
            found[metric.name] = float(getattr(counted, metric.name))
    return found
