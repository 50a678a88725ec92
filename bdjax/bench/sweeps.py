"""What a point of a sweep costs against a single run, for each size of the sweep and each inner form."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from bdjax.bench import measure
from bdjax.bench.session import Session
from bdjax.train import group
from bdjax.train.supervised import supervised
from bdjax.types import Model, Split

SINGLE = "single"


def section(session: Session) -> dict[str, Any]:
    """Measure plain steps of the first width and batch size, at several learning rates."""
    asked = session.settings
    width, batch_size = asked.widths[0], asked.batch_sizes[0]
    model = asked.create(width)
    split = measure.random_split(model.spec, batch_size * asked.steps)
    single = measure.Epoch(learner(batch_size), model, split)
    rows, took = [], 0.0
    for count in asked.points:
        if session.room(f"a sweep of {count} points", 2 * took):
            started = time.perf_counter()
            rows.append(_row(session, points(count, model, split, batch_size), model, single))
            took = time.perf_counter() - started
    return {"width": width, "batch_size": batch_size, "rows": rows}


def learner(batch_size: int, index: int = 0) -> Any:
    """Return plain training at one of many learning rates."""
    return supervised(batch_size=batch_size, learning_rate=0.01 * 0.9**index)


def points(count: int, model: Model, split: Split, batch_size: int) -> list[group.Point]:
    """Return points that differ in key and learning rate."""
    variables = model.init(jax.random.key(0))
    return [group.Point(jax.random.key(index), learner(batch_size, index), variables, split) for index in range(count)]


def _row(session: Session, wanted: list[group.Point], model: Model, single: measure.Epoch) -> dict[str, Any]:
    asked, count = session.settings, len(wanted)
    forms = [group.LOOP, *([group.VMAP] if count > 1 else []), *(f"map:{k}" for k in asked.maps if k < count)]
    found = costs(wanted, model, single, forms, asked.steps, asked.rounds)
    for form in [form for form in forms if form not in found["cost_per_point"]]:
        session.skip(f"a sweep of {count} points as {form}", "not enough memory")
    return {"points": count, "seconds_per_step": found["seconds_per_step"], "cost_per_point": found["cost_per_point"]}


def costs(
    wanted: Sequence[group.Point], model: Model, single: measure.Epoch, forms: Sequence[str], steps: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Return, for each form that fits in memory, what a step of all points takes and a point costs over a single run.

    Args:
      wanted: the points of the sweep, of so many steps an epoch as ``steps`` says.
      model: the network of all.
      single: an epoch of one of them.
      forms: of `bdjax.train.group`.
      steps: of one call.
      rounds: how often each is called.
    """
    programs = measure.prepared({form: functools.partial(group.program, wanted, model, form) for form in forms})
    fitting = {form: program for form, program in programs.items() if program.fits}
    work: dict[str, Callable[[], Any]] = {form: program.epoch for form, program in fitting.items()}
    calls = measure.interleaved({SINGLE: single, **work}, rounds)
    seconds = {name: total / steps for name, total in calls.items()}
    return {
        "seconds_per_step": seconds,
        "cost_per_point": {form: seconds[form] / len(wanted) / seconds[SINGLE] for form in fitting},
        "compile_seconds": {form: program.compile_seconds for form, program in programs.items()},
    }
