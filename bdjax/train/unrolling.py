"""How many steps of an epoch are written out in its loop's body: timed on a few steps, where that may pay.

A loop's body is launched anew for every step, which small steps wait for on an accelerator; a longer body takes longer
to compile, and rounds otherwise in the last place.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bdjax.devices import compilation
from bdjax.train import batches, feeding, programs
from bdjax.train.feeding import Feeding
from bdjax.types import Learner, LearnerState, Model, Split, Variables

UNROLLS = (1, 2, 4, 8)
# Another is tried while the fastest so far would take more than so many of its compilations and more than so many
# seconds.
_WORTH = 3
_SHORT = 20.0
_CALLS = 3


class Choice(NamedTuple):
    """The steps that are written out, and the seconds of a step with so many; nothing if none was measured."""

    unroll: int
    seconds: dict[str, float]


def choose(
    learner: Learner,
    model: Model,
    variables: Variables,
    split: Split,
    prepare: str = feeding.AUTO,
) -> Choice:
    """Time `UNROLLS` on a few steps of this very work and return the fastest; on a CPU, where none gains, 1.

    Each is taken to compile twice as long as the one before, and none is tried that the rest of the work would not pay.
    """
    if jax.default_backend() == "cpu" or not learner.epochs:
        return Choice(1, {})
    split = batches.valid_rows(split)
    shape = batches.of_learner(learner, batches.rows_of(split))
    few = jax.tree.map(lambda x: jnp.asarray(x[: UNROLLS[-1] * shape.size]), split)
    key = jax.random.key(0)
    state = jax.jit(lambda variables: learner.init(key, model, variables, few))(variables)
    steps = batches.of_learner(learner, batches.rows_of(few)).steps
    seconds: dict[str, float] = {}
    compiling = 0.0
    for unroll in (number for number in UNROLLS if number <= shape.steps):
        left = learner.epochs * shape.steps * min(seconds.values(), default=float("inf"))
        if left < max(_SHORT, _WORTH * 2 * compiling):
            break
        chosen = feeding.choose(prepare, unroll, learner, split)
        compiling, second = _time(learner, model, state, few, chosen)
        seconds[str(unroll)] = second / steps
    return Choice(int(min(seconds, key=lambda number: seconds[number])), seconds)


def _time(
    learner: Learner,
    model: Model,
    state: LearnerState,
    few: Split,
    feeding: Feeding,
) -> tuple[float, float]:
    """Return the seconds that compiling an epoch takes, and those of running it."""
    key, state = jax.random.key(0), jax.tree.map(jnp.array, state)
    clock = []
    with compilation.count_seconds() as compiling:
        for _ in range(1 + _CALLS):
            started = time.perf_counter()
            state, summary = programs.train_epoch(key, learner, model, state, few, feeding=feeding)
            jax.block_until_ready(summary)
            clock.append(time.perf_counter() - started)
    return sum(compiling, 0.0), min(clock[1:])
