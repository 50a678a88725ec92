"""Is it right? What can be computed in two ways, computed in both on this device.

Inputs are random and new in every call; the seed is in the row. An error is relative to what it is an error of: of an
update, to its largest number; of training, to how far the parameters have moved.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from accelerator import closed_form, cut, twice
from accelerator.session import Part, Row, Session, Settings
from bdjax import attacks, data, evaluate, models
from bdjax.train import group, loop
from bdjax.train.supervised import supervised
from bdjax.types import Model, Variables

SUBJECT = "right/"
# Float32 carries 6e-8; sums over some thousands of numbers and a root are between.
UPDATE = 1e-5
# Rounding grows from step to step: where the start differed in its last bits, this epoch's end differed by 1e-6 to 7e-5
# on a CPU (eight seeds).
TRAINING = 1e-3
LEVELS = 0.01  # of 255, on average: one in a hundred values rounds to its neighbor
POINTS = 0.02  # of accuracy
LEARNED = 0.8  # accuracy of a network that has learned something


def parts(settings: Settings) -> list[Part]:
    """Return the parts, the quickest first; together a minute of a GPU, by guess."""
    del settings
    return [
        Part("right/sam", 3, sam),
        Part("right/epoch", 8, epoch),
        Part("right/triggers", 12, triggers),
        Part("right/bfloat16", 7, bfloat16),
        Part("right/sweep", 8, sweep),
        Part("right/cut", 22, cut.checks),
    ]


def check(name: str, error: float, bound: float, **more: object) -> Row:
    """Return the row of a check; an error that is no number is none within bounds."""
    finite = math.isfinite(error)
    return {
        "check": name,
        "error": float(error) if finite else None,
        "bound": bound,
        "ok": error <= bound,
        **more,
    }


def fresh() -> int:
    """Return a seed that no call before has had."""
    return int.from_bytes(os.urandom(4), "big") // 2


def sam(session: Session) -> Iterator[Row]:
    """Yield the errors of SAM's and ASAM's perturbations and steps against their closed forms in float64."""
    del session
    seed = fresh()
    for what, error in closed_form.errors(seed):
        yield check(f"{what}, against float64", error, UPDATE, seed=seed)


def epoch(session: Session) -> Iterator[Row]:
    """Yield the error of an epoch of FT-SAM against the same one by a process that has the CPU alone."""
    seed = fresh()
    with twice.on_cpu("epoch", seed, session) as on_cpu:
        found = twice.epoch(seed, session.settings.debug)
        expected = on_cpu()
    error = moved(found["after"], expected["after"], expected["before"])
    losses = {"loss": float(found["loss"]), "loss_on_cpu": float(expected["loss"])}
    yield check("an epoch of FT-SAM, against the CPU", error, TRAINING, seed=seed, **losses)


def triggers(session: Session) -> Iterator[Row]:
    """Yield, for each attack, how the triggered images differ from those that the CPU makes."""
    seed = fresh()
    with twice.on_cpu("triggers", seed, session) as on_cpu:
        found = twice.triggers(seed, session.settings.debug)
        expected = on_cpu()
    for name in attacks.names():
        if name in found:
            yield trigger(name, found, expected, seed)


def trigger(name: str, found: twice.Arrays, expected: twice.Arrays, seed: int) -> Row:
    """Return the row of an attack: levels of 8 bits on average, and how many values differ by how many at most."""
    levels, other = (np.round(255 * images[name]).astype(int) for images in (found, expected))
    apart = abs(levels - other)
    changed = float((found[name] != found["clean"]).mean())
    counts = {"differ": int((apart > 0).sum()), "of": apart.size, "by_at_most": int(apart.max())}
    # In floats, as a trigger that has not learned yet may be too faint for 8 bits.
    error = 255 * float(abs(found[name] - expected[name]).mean())
    row = check(
        f"trigger of {name}, against the CPU", error, LEVELS, seed=seed, changed=changed, **counts
    )
    return {**row, "ok": row["ok"] and changed > 0}


def bfloat16(session: Session) -> Iterator[Row]:
    """Yield how far bfloat16 takes the accuracy of a network on digits from float32's."""
    seed, epochs = fresh(), 4 if session.settings.debug else 12
    types = ("float32", "bfloat16")
    with ThreadPoolExecutor(len(types)) as pool:  # two programs are compiled at a time
        wide, narrow = pool.map(lambda dtype: _accuracy(seed, dtype, epochs), types)
    found = {"float32": wide, "bfloat16": narrow}
    row = check(
        "accuracy in bfloat16, against float32", abs(wide - narrow), POINTS, seed=seed, **found
    )
    yield {**row, "ok": row["ok"] and wide > LEARNED}  # or there is nothing to compare


def _accuracy(seed: int, dtype: str, epochs: int) -> float:
    """Return the test accuracy of a small network that is trained in a type."""
    digits = data.load("digits")
    model = models.create("small_cnn", digits.spec, width=8, dtype=dtype)
    learner = supervised(epochs=epochs, batch_size=64, learning_rate=0.05)
    start = twice.start(model, seed)
    trained = loop.run(jax.random.key(seed), learner, model, start, digits.train).variables
    right = np.asarray(evaluate.predict(model, trained, digits.test.input)) == digits.test.label
    return float(right.mean())


def sweep(session: Session) -> Iterator[Row]:
    """Yield, for each form of a sweep, the error of its points against single runs."""
    seed, debug = fresh(), session.settings.debug
    model = twice.network(debug)
    points = _points(seed, debug)
    with jax.default_matmul_precision("highest"):
        alone = [loop.run(*point[:2], model, *point[2:]).variables for point in points]
        for form in ("loop", "vmap"):
            outcomes = group.run(points, model, form=form)
            pairs = zip(points, outcomes, alone, strict=True)
            errors = [_of_point(*pair, model) for pair in pairs]
            name = f"a sweep of {len(points)} ({form}), against single runs"
            yield check(name, max(errors), TRAINING, seed=seed)


def _points(seed: int, debug: bool) -> list[group.Point]:
    """Return three points that differ in key, ρ, rate and images."""
    start = twice.start(twice.network(debug), seed)
    settings = ((0.5, 0.01), (1.0, 0.02), (2.0, 0.04))
    return [
        group.Point(
            jax.random.key(seed + n), twice.learner(*setting), start, twice.images(seed + n, debug)
        )
        for n, setting in enumerate(settings)
    ]


def _of_point(
    point: group.Point, outcome: group.Trained | loop.Diverged, alone: Variables, model: Model
) -> float:
    if isinstance(outcome, loop.Diverged):
        return math.nan
    together = outcome.result(point, model).variables
    return moved(*(twice.flat(variables) for variables in (together, alone, point.variables)))


def moved(found: np.ndarray, expected: np.ndarray, before: np.ndarray) -> float:
    """Return ‖found − expected‖ / ‖expected − before‖, NaN where nothing has moved."""
    way = np.linalg.norm(expected.astype(float) - before)
    return float(np.linalg.norm(found.astype(float) - expected) / way) if way > 0 else math.nan


def tables(rows: Sequence[Row]) -> str:
    """Return a row for each check as Markdown; empty, where there is none."""
    checks = [row for row in rows if row["part"].startswith(SUBJECT) and "check" in row]
    if not checks:
        return ""
    lines = [_line(row) for row in checks]
    head = "| check | error | bound | | |\n| --- | ---: | ---: | --- | --- |"
    return "\n".join(["## Is it right?", "", head, *lines])


def _line(row: Row) -> str:
    error = "–" if row["error"] is None else f"{row['error']:.2g}"
    verdict = "ok" if row["ok"] else "NOT OK"
    return f"| {row['check']} | {error} | {row['bound']:.2g} | {verdict} | {_remark(row)} |"


def _remark(row: Row) -> str:
    """Say what the error does not."""
    if "why" in row:
        return row["why"].replace("|", "/")
    if "differ" in row:
        return f"{row['differ']} of {row['of']} values of 8 bits differ, by {row['by_at_most']} at most"
    if "of" in row and row["error"]:
        return f"of {row['of']} numbers, by {row['by_at_most']:.1e} at most"
    return ""
