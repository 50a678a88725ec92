"""What a point of a sweep costs against a single run, for each size of the sweep and each inner form."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import jax

from bdjax.bench import measure
from bdjax.bench.session import Session
from bdjax.train import group
from bdjax.train.supervised import Supervised, supervised
from bdjax.types import Model, Split

SINGLE = "single"


def section(session: Session) -> measure.Row:
    """Measure plain steps of the first width and batch size, at several learning rates."""
    asked = session.settings
    width, batch_size = asked.widths[0], asked.batch_sizes[0]
    model = asked.create(width)
    split = measure.random_split(model.spec, batch_size * asked.steps)
    single = measure.TimedEpoch(learner(batch_size), model, split)
    rows, took = [], 0.0
    for count in asked.points:
        if session.room(f"a sweep of {count} points", 2 * took):
            started = time.perf_counter()
            rows.append(_row(session, points(count, model, split, batch_size), model, single))
            took = time.perf_counter() - started
    return {"width": width, "batch_size": batch_size, "rows": rows}


def learner(batch_size: int, index: int = 0) -> Supervised:
    """Return plain training at one of many learning rates."""
    return supervised(batch_size=batch_size, learning_rate=0.01 * 0.9**index)


def points(count: int, model: Model, split: Split, batch_size: int) -> list[group.Point]:
    """Return points that differ in key and learning rate."""
    variables = model.init(jax.random.key(0))
    made: list[group.Point] = []
    for index in range(count):
        one = learner(batch_size, index)
        made.append(group.Point(jax.random.key(index), one, variables, split))
    return made


def _row(
    session: Session, wanted: list[group.Point], model: Model, single: measure.TimedEpoch
) -> measure.Row:
    asked, count = session.settings, len(wanted)
    forms = [group.LOOP]
    if count > 1:
        forms.append(group.VMAP)
    forms += [f"map:{size}" for size in asked.maps if size < count]
    found = costs(wanted, model, single, forms, asked.steps, asked.rounds)
    seconds, cost = found["seconds_per_step"], found["cost_per_point"]
    for form in forms:
        if form not in cost:
            session.skip(f"a sweep of {count} points as {form}", "not enough memory")
    return {"points": count, "seconds_per_step": seconds, "cost_per_point": cost}


def costs(
    wanted: Sequence[group.Point],
    model: Model,
    single: measure.TimedEpoch,
    forms: Sequence[str],
    steps: int,
    rounds: int,
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
    makers = {form: functools.partial(group.program, wanted, model, form) for form in forms}
    work: dict[str, measure.Work] = {SINGLE: single}
    compiling: dict[str, float] = {}
    for form, program in measure.prepared(makers).items():
        compiling[form] = program.compile_seconds
        if program.fits:
            work[form] = program.epoch
    seconds: dict[str, float] = {}
    for name, total in measure.interleaved(work, rounds).items():
        seconds[name] = total / steps
    cost: dict[str, float] = {}
    for form in list(work)[1:]:
        cost[form] = seconds[form] / len(wanted) / seconds[SINGLE]
    return {"seconds_per_step": seconds, "cost_per_point": cost, "compile_seconds": compiling}
