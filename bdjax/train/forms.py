"""In which form the points of a group are computed: timed on a few steps, where that may pay."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from bdjax.checks import InputError
from bdjax.devices import compilation, placement
from bdjax.train import batches, grouped, programs
from bdjax.train.grouped import LOOP, MAP, VMAP, Point
from bdjax.types import Model, Split

AUTO = "auto"
_MAPS = (4, 8)  # points at once that are tried
_STEPS = 3  # of each form that are timed
_CALLS = 3
_MEMORY = 0.8  # share of a device's memory that a form may ask for
# Another form is tried while the fastest so far would take more than so many compilations, and more than so many
# seconds.
_WORTH = 3
_SHORT = 20.0


class Choice(NamedTuple):
    """A form, and the seconds a step that it and others took for all points; nothing if none was measured."""

    form: str
    seconds: dict[str, float]


class Program(NamedTuple):
    """An epoch of a group, compiled, for those who time it."""

    compile_seconds: float
    fits: bool  # whether the devices have the memory for it; if not, it must not be called
    epoch: Callable[[], programs.Summary]  # each call is the next epoch


def check_form(form: str) -> str:
    """Return the form if there is such a one.

    Raises:
      InputError: there is not.
    """
    if form not in (LOOP, VMAP) and not re.fullmatch(rf"{MAP}[1-9]\d*", form):
        allowed = "auto, loop, vmap, or map:k with a whole number k"
        raise InputError(f"form must be {allowed}; got {form!r}.")
    return form


def choose(points: Sequence[Point], model: Model, mesh: Mesh | None = None) -> Choice:
    """Time the forms on a few steps of these very points and return the fastest that fits in memory.

    Forms are tried while what is left to win is worth compiling another one, so a short job takes ``loop`` at once.
    """
    here = -(-len(points) // grouped.devices(mesh))
    learner, split = points[0].learner, points[0].split
    if here == 1 or not learner.epochs:
        return Choice(LOOP, {})
    shape = batches.of_learner(learner, batches.rows_of(split))
    rows = min(_STEPS * shape.size, batches.rows_of(split))
    few = [point._replace(split=_first(point.split, rows)) for point in points]
    group, steps = grouped.place(grouped.stack(few), mesh), batches.of_learner(learner, rows).steps
    whole = learner.epochs * shape.steps
    seconds: dict[str, float] = {}
    compiling = 0.0
    for form in (LOOP, VMAP, *(f"{MAP}{k}" for k in _MAPS if k < here)):
        if seconds and min(seconds.values()) * whole < max(_SHORT, _WORTH * compiling):
            break
        compiling, second = _time(group, form, model, mesh)
        if second is not None:
            seconds[form] = second / steps
    return Choice(min(seconds, key=lambda form: seconds[form], default=LOOP), seconds)


def program(
    points: Sequence[Point],
    model: Model,
    form: str = LOOP,
    mesh: Mesh | None = None,
) -> Program:
    """Compile what `bdjax.train.group.run` calls.

    Raises:
      InputError: an unknown form, or points of different structure.
    """
    return _program(grouped.place(grouped.stack(points), mesh), check_form(form), model, mesh)


def fits(compiled: Any, sharing: int) -> bool:
    """Whether a program's arrays and workspace fit into its device's memory, which so many devices share."""
    if (asked := held_bytes(compiled)) is None:
        return True
    statistics = jax.local_devices()[0].memory_stats() or {}
    limit = statistics.get("bytes_limit") or (placement.host_bytes() or math.inf) / sharing
    return asked < _MEMORY * limit


def held_bytes(compiled: Any) -> int | None:
    """Return the bytes of a program's arrays and workspace, where XLA tells; an argument given up is counted once."""
    if (need := compiled.memory_analysis()) is None:
        return None
    asked = need.temp_size_in_bytes + need.argument_size_in_bytes + need.output_size_in_bytes
    return asked - need.alias_size_in_bytes


def _program(group: Point, form: str, model: Model, mesh: Mesh | None) -> Program:
    state = grouped.place(grouped.init(group, LOOP, model, mesh), mesh)
    first = programs.span(range(1))
    with compilation.count_seconds() as compiling:
        lower = grouped.epochs.lower  # type: ignore[attr-defined]
        compiled = lower(first, group, state, form, model, mesh).compile()
    box, number = [state], itertools.count()

    def epoch() -> programs.Summary:
        done = next(number)
        span = programs.span(range(done, done + 1))
        box[0], summary = grouped.epochs(span, group, box[0], form, model, mesh)
        return jax.tree.map(lambda x: x[0], summary)

    sharing = grouped.devices(mesh) if jax.default_backend() == "cpu" else 1
    return Program(sum(compiling, 0.0), fits(compiled, sharing), epoch)


def _first(split: Split, rows: int) -> Split:
    return jax.tree.map(lambda x: x[:rows], split)


def _time(group: Point, form: str, model: Model, mesh: Mesh | None) -> tuple[float, float | None]:
    """Return the seconds that compiling an epoch takes and those of running it; None where it does not fit."""
    prepared = _program(group, form, model, mesh)
    if not prepared.fits:
        return prepared.compile_seconds, None
    clock = []
    for _ in range(_CALLS):  # the first is a little slower
        started = time.perf_counter()
        jax.block_until_ready(prepared.epoch())
        clock.append(time.perf_counter() - started)
    return prepared.compile_seconds, min(clock)
