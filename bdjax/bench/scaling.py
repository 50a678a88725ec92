"""Weak and strong scaling over devices, with points on the mesh and with the batch on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from bdjax.bench import measure, sweeps
from bdjax.bench.session import Session
from bdjax.devices import sharding
from bdjax.train import group
from bdjax.types import Model

WEAK, STRONG = "weak", "strong"


def section(session: Session) -> dict[str, Any] | None:
    """Measure 1, 2, 4, … devices: of a fixed size for each (weak), and of a fixed size in all (strong)."""
    asked = session.settings
    counts = [count for count in (2**power for power in range(16)) if count <= asked.devices]
    if len(counts) == 1:
        session.skip("scaling", "one device")
        return None
    width, batch_size = asked.widths[0], asked.batch_sizes[0]
    model = asked.create(width)
    axes = {"points": (_points, 1, counts[-1]), "batch": (_batch, batch_size, batch_size)}
    rows = []
    for axis, (program, each, whole) in axes.items():
        sizes = {WEAK: {count: each * count for count in counts}, STRONG: dict.fromkeys(counts, whole)}
        made: dict[tuple[int, int], Callable[[], Any]] = {}
        for kind, of in sizes.items():
            for count, size in of.items():
                what = f"{kind} scaling of {axis} over {count} devices"
                if (size, count) not in made and session.room(what) and _divides(session, what, axis, size, count):
                    if (call := program(asked, model, size, count)) is None:
                        session.skip(what, "not enough memory")
                    else:
                        made[size, count] = call
        for kind, of in sizes.items():
            rows += _rows(session, axis, kind, {count: (size, made.get((size, count))) for count, size in of.items()})
    shared = jax.default_backend() == "cpu"
    return {"width": width, "batch_size": batch_size, "devices_share_cores": shared, "rows": rows}


def _divides(session: Session, what: str, axis: str, size: int, count: int) -> bool:
    if axis == "batch" and size % count:
        session.skip(what, f"{count} devices do not divide a batch of {size}")
        return False
    return True


def _points(asked: Any, model: Model, size: int, count: int) -> Callable[[], Any] | None:
    batch_size = asked.batch_sizes[0]
    split = measure.random_split(model.spec, batch_size * asked.steps)
    points = sweeps.points(size, model, split, batch_size)
    program = group.program(points, model, group.LOOP, group.point_mesh(count))
    return program.epoch if program.fits else None


def _batch(asked: Any, model: Model, size: int, count: int) -> Callable[[], Any] | None:
    split = measure.random_split(model.spec, size * asked.steps)
    epoch = measure.Epoch(sweeps.learner(size), model, split, sharding.batch_mesh(count, size))
    return epoch if epoch.fits else None


def _rows(session: Session, axis: str, kind: str, made: dict[int, tuple[int, Any]]) -> list[dict[str, Any]]:
    """Time what there is of one kind in turn; efficiency is 1 where another device costs nothing."""
    work = {str(count): call for count, (_, call) in made.items() if call is not None}
    if "1" not in work:
        return []
    calls = measure.interleaved(work, session.settings.rounds)
    rows = []
    for name, total in calls.items():
        ideal = calls["1"] if kind == WEAK else calls["1"] / int(name)
        row = {"axis": axis, "kind": kind, "devices": int(name), "size": made[int(name)][0]}
        rows.append({**row, "seconds_per_step": total / session.settings.steps, "efficiency": ideal / total})
    return rows
