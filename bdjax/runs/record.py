"""What the record of a run holds, key by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bdjax import evaluate
from bdjax.devices import compilation, environment
from bdjax.runs import holdouts, plans, soundness
from bdjax.runs.config import Config
from bdjax.runs.execution import Execution
from bdjax.runs.folder import SCHEMA_VERSION
from bdjax.runs.plans import Plan
from bdjax.runs.victim import Victim
from bdjax.tasks.metrics import RATING, Metric, first
from bdjax.train import batches, loop
from bdjax.types import Learner, Metrics, Split


def finished(
    plan: Plan,
    victim: Victim,
    purified: loop.Result,
    after: Metrics,
    execution: Execution,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the record of a run that is finished.

    Args:
      plan: the run.
      victim: where the defense began.
      purified: where it ended.
      after: what the defended network does on the test images.
      execution: what it was computed on.
      more: keys that not every run has.
    """
    task = plan.inputs.spec.task
    return {
        **_head(plan.config, "finished"),
        "config": plan.config.to_dict(),
        "versions": environment.versions(),
        "device": {**_device(execution), **environment.memory(), "data_on": plan.data_on},
        "data": _data(plan, victim.poisoned_count),
        "metrics": metrics_between(
            task.metrics, victim.metrics, after, task.chance(_labels(plan.dataset.test))
        ),
        "stealth": victim.stealth,
        "cost": _cost(purified, *plans.planned(plan, plan.defense_stages[-1])),
        "victim": _cost(victim.trained, plan.stages[-1].learner, plan.attackers),
        **more,
        "history": [row._asdict() for row in purified.history],
    }


def diverged(config: Config, reason: str) -> dict[str, Any]:
    """Return the record of a run that has no result."""
    return {
        **_head(config, "diverged"),
        "reason": reason,
        "config": config.to_dict(),
        "versions": environment.versions(),
    }


def metrics_between(
    metrics: Sequence[Metric], before: Any, after: Any, chance: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return what a record has of two networks: what is measured, their counts and values, and the rating.

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
        "before": plain_metrics(metrics, before),
        "after": plain_metrics(metrics, after),
        rating: float(evaluate.defense_effectiveness_rating(before, after, metrics)),
    }
    return {**made, "chance": dict(chance)} if chance else made


def plain_metrics(metrics: Sequence[Metric], counted: Any) -> dict[str, int | float]:
    """Return what was counted of a network, and the values of its metrics, as plain numbers."""
    found: dict[str, int | float] = {}
    for name, value in counted._asdict().items():
        whole = np.issubdtype(np.asarray(value).dtype, np.integer)
        found[name] = int(value) if whole else float(value)
    for metric in metrics:
        if metric.role != RATING:
            found[metric.name] = float(getattr(counted, metric.name))
    return found


def _head(config: Config, status: str) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": config.run_id,
        "victim_id": config.victim_id,
        "status": status,
    }


def _device(execution: Execution) -> dict[str, Any]:
    """Return what is computed on, and what decides its rounding: also the options that programs were compiled with."""
    options = compilation.options_in_force()
    written = " ".join(f"{name}={value}" for name, value in options.items())
    here = environment.device(execution.devices)
    return {**here, "compiler_options": written, "unroll": execution.unroll}


def _data(plan: Plan, poisoned_count: int) -> dict[str, Any]:
    spec, test = plan.inputs.spec, plan.dataset.test
    return {
        "name": spec.name,
        "fingerprint": plan.inputs.fingerprint,
        "shape": list(spec.shape),
        "num_classes": spec.num_classes,
        "class_names": list(spec.class_names),
        "target_class": plans.target_class(plan),
        "train_count": int(plan.attackers.label.shape[0]),
        "test_count": int(test.valid.sum()),
        **_majority(test),
        "poisoned_count": poisoned_count,
        "holdout_count": int(plan.holdout.label.shape[0]),
        **_wrong_labels(plan),
    }


def _wrong_labels(plan: Plan) -> dict[str, int]:
    """Return how many of the defender's labels are wrong, where some are asked to be."""
    share = plan.config.holdout.wrong_labels
    count = holdouts.wrong_count(len(plan.holdout_rows), share)
    return {"wrong_label_count": count} if share else {}


def _labels(test: Split) -> np.ndarray:
    """Return the labels of the test inputs that count."""
    return np.asarray(test.label)[np.asarray(test.valid)]


def _majority(test: Split) -> dict[str, int]:
    """Return how many test inputs have the most frequent class, which is what a constant answer is right on."""
    label = _labels(test)
    return {soundness.MAJORITY: int(np.bincount(label).max())} if label.ndim == 1 else {}


def _cost(result: loop.Result, last: Learner, split: Split) -> dict[str, Any]:
    """Return what a result took, and how many images at once its last stage was really fed."""
    return {
        "compile_seconds": result.compile_seconds,
        "run_seconds": result.run_seconds,
        "gradient_evaluations": result.gradient_evaluations,
        "epochs": len(result.history),
        "batch_size": batches.fed(last, split),
    }
