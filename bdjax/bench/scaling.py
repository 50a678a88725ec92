"""Weak and strong scaling over devices, with points on the mesh and with the batch on it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax

from bdjax.bench import measure, sweeps
from bdjax.bench.session import Session, Settings
from bdjax.devices import sharding
from bdjax.train import group
from bdjax.types import Model

WEAK, STRONG = "weak", "strong"
_Made: TypeAlias = dict[tuple[int, int], measure.Work]  # by size and number of devices


def section(session: Session) -> measure.Row | None:
    """Measure 1, 2, 4, … devices: of a fixed size for each (weak), and of a fixed size in all (strong)."""
    asked = session.settings
    counts = [1]
    while 2 * counts[-1] <= asked.devices:
        counts.append(2 * counts[-1])
    if len(counts) == 1:
        session.skip("scaling", "one device")
        return None
    width, batch_size = asked.widths[0], asked.batch_sizes[0]
    model = asked.create(width)
    axes = {"points": (_points, 1, counts[-1]), "batch": (_batch, batch_size, batch_size)}
    rows: list[measure.Row] = []
    for axis, (program, each, whole) in axes.items():
        weak = {count: each * count for count in counts}
        sizes = {WEAK: weak, STRONG: dict.fromkeys(counts, whole)}
        made = _made(session, axis, sizes, functools.partial(program, asked, model))
        for kind, of_kind in sizes.items():
            rows += _rows(session, axis, kind, of_kind, made)
    shared = jax.default_backend() == "cpu"
    return {"width": width, "batch_size": batch_size, "devices_share_cores": shared, "rows": rows}


def _made(
    session: Session,
    axis: str,
    sizes: dict[str, dict[int, int]],
    program: Callable[[int, int], measure.Work | None],
) -> _Made:
    """Compile what is to be timed, and skip what there is no time or memory for."""
    made: _Made = {}
    for kind, of_kind in sizes.items():
        for count, size in of_kind.items():
            what = f"{kind} scaling of {axis} over {count} devices"
            if (size, count) in made or not session.room(what):
                continue
            if not _divides(session, what, axis, size, count):
                continue
            if (call := program(size, count)) is None:
                session.skip(what, "not enough memory")
            else:
                made[size, count] = call
    return made


def _divides(session: Session, what: str, axis: str, size: int, count: int) -> bool:
    if axis == "batch" and size % count:
        session.skip(what, f"{count} devices do not divide a batch of {size}")
        return False
    return True


def _points(asked: Settings, model: Model, size: int, count: int) -> measure.Work | None:
    batch_size = asked.batch_sizes[0]
    split = measure.random_split(model.spec, batch_size * asked.steps)
    points = sweeps.points(size, model, split, batch_size)
    program = group.program(points, model, group.LOOP, group.point_mesh(count))
    return program.epoch if program.fits else None


def _batch(asked: Settings, model: Model, size: int, count: int) -> measure.Work | None:
    split = measure.random_split(model.spec, size * asked.steps)
    epoch = measure.TimedEpoch(sweeps.learner(size), model, split, sharding.batch_mesh(count, size))
    return epoch if epoch.fits else None


def _rows(
    session: Session, axis: str, kind: str, sizes: dict[int, int], made: _Made
) -> list[measure.Row]:
    """Time what there is of one kind in turn; efficiency is 1 where another device costs nothing."""
    work: dict[str, measure.Work] = {}
    for count, size in sizes.items():
        if (size, count) in made:
            work[str(count)] = made[size, count]
    if "1" not in work:
        return []
    calls = measure.interleaved(work, session.settings.rounds)
    rows: list[measure.Row] = []
    for name, total in calls.items():
        ideal = calls["1"] if kind == WEAK else calls["1"] / int(name)
        row: measure.Row = {
            "axis": axis,
            "kind": kind,
            "devices": int(name),
            "size": sizes[int(name)],
        }
        row["seconds_per_step"] = total / session.settings.steps
        row["efficiency"] = ideal / total
        rows.append(row)
    return rows
