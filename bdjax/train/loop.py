"""The one loop: every learner, from victim training to the last defense, is fed here."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from bdjax.checks import InputError
from bdjax.data import splits
from bdjax.train import compilation, sharding
from bdjax.train.checkpoints import Checkpoints
from bdjax.types import Learner, LearnerState, Model, Split, Variables


class Diverged(RuntimeError):
    """The loss or a parameter is no longer finite; the last good checkpoint is kept."""


class Stopped(RuntimeError):
    """The run was asked to stop; what it had done is saved."""


class Epoch(NamedTuple):
    """One epoch's report, as Python numbers."""

    epoch: int
    loss: float
    accuracy: float
    gradient_evaluations: int
    seconds: float  # without compiling
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Result:
    """What a learner made; the figures count the epochs before an interruption too."""

    variables: Variables
    history: list[Epoch]

    @property
    def compile_seconds(self) -> float:
        """Seconds of tracing and compiling, in no other figure."""
        return sum((row.compile_seconds for row in self.history), 0.0)

    @property
    def run_seconds(self) -> float:
        """Wall seconds of all epochs without compiling."""
        return sum((row.seconds for row in self.history), 0.0)

    @property
    def gradient_evaluations(self) -> int:
        """Forward and backward passes over a batch, in all."""
        return sum(row.gradient_evaluations for row in self.history)


class Summary(NamedTuple):
    """An epoch's means, the sum of its gradient evaluations, and whether all numbers of the state are finite."""

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    gradient_evaluations: Int[Array, ""]
    finite: Bool[Array, ""]


def run(
    key: Key[Array, ""],
    learner: Learner,
    model: Model,
    variables: Variables,
    split: Split,
    *,
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_variables: Callable[[int, Callable[[], Variables]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    mesh: Mesh | None = None,
) -> Result:
    """Feed a learner for its epochs, each one compiled call over data that live on the device.

    Epoch e uses the key ``fold_in(key, e)`` alone, so a run that continues from a checkpoint ends bit-identical to one
    that was never interrupted. The given variables are copied, not consumed.

    Args:
      key: decides order, augmentation and whatever the learner draws.
      learner: what to do with a batch.
      model: the network.
      variables: where to start.
      split: all rows, uint8 or float; only ``valid`` rows are fed.
      checkpoints: where to continue from and save to.
      on_epoch: called on the host after each epoch.
      on_variables: called on the host after each epoch and before it is saved, with the number of epochs done and a
        function that returns the variables as they would be if this were the last; they live until it returns. What it
        writes is thus there, for every epoch that a later call does not repeat.
      should_stop: asked after each epoch; if true, the state is saved and `Stopped` is raised.
      mesh: devices over which each batch is split.

    Raises:
      InputError: the batch is larger than the split, or the checkpoint is not of this run.
      Diverged: the loss or a parameter is not finite after an epoch.
      Stopped: as asked.
    """
    check_batch(learner, split)
    split, variables = sharding.replicate((_valid_rows(split), variables), mesh)
    init_key = jax.random.fold_in(key, 2**32 - 1)  # children of the key itself are the epochs'
    history: list[Epoch] = []
    preparing = [0.0, 0.0]
    saved = None
    if checkpoints is not None:
        saved = checkpoints.restore(jax.eval_shape(lambda: learner.init(init_key, model, variables, split)))
    if checkpoints is not None and saved is not None:
        state = _place(jax.device_get(saved.state), mesh)  # arrays bound to a device would be compiled for anew
        history = [Epoch(**row) for row in saved.history]
        if len(history) > learner.epochs:
            seen = f"{len(history)}, which the checkpoint in {checkpoints.folder} has seen"
            raise InputError(f"epochs must be at least {seen}; got {learner.epochs}.")
    else:
        with _stopwatch() as preparing:
            state = _place(_init(init_key, learner, model, variables, split), mesh)
            jax.block_until_ready(state)  # this counts as part of the first epoch
    for epoch in range(len(history), learner.epochs):
        with _stopwatch() as clock:
            epoch_key = jax.random.fold_in(key, epoch)
            state, summary = train_epoch(epoch_key, learner, model, state, split, mesh=mesh)
            summary = jax.device_get(summary)
        if not (summary.finite and math.isfinite(summary.loss)):
            raise Diverged(_advice(epoch, learner, checkpoints))
        history.append(_report(epoch, summary, *map(sum, zip(clock, preparing, strict=True))))
        preparing = [0.0, 0.0]
        if on_variables is not None:
            on_variables(epoch + 1, functools.partial(learner.finalize, model, state))
        last = epoch + 1 == learner.epochs
        stop = not last and should_stop is not None and should_stop()
        if checkpoints is not None:
            checkpoints.save(epoch + 1, state, [row._asdict() for row in history], force=stop or last)
        if on_epoch is not None:
            on_epoch(history[-1])
        if stop:
            raise Stopped(f"stopped after epoch {epoch + 1} of {learner.epochs}")
    return Result(learner.finalize(model, state), history)


def check_batch(learner: Learner, split: Split, name: str = "batch_size") -> None:
    """Refuse a batch that the split cannot fill.

    Raises:
      InputError: no valid rows, or fewer than ``batch_size``, while there are epochs to run.
    """
    rows = int(np.asarray(split.valid).sum())
    if learner.epochs and rows < (learner.batch_size or 1):
        raise InputError(f"{name} must be at most {rows}, the number of images; got {learner.batch_size}.")


def _place(state: LearnerState, mesh: Mesh | None) -> LearnerState:
    """Copy a state to its devices; the epoch consumes it."""
    return sharding.replicate(jax.tree.map(jnp.array, state), mesh)


def _valid_rows(split: Split) -> Split:
    valid = np.asarray(split.valid)
    return split if valid.all() else splits.take(split, np.flatnonzero(valid))


@contextlib.contextmanager
def _stopwatch() -> Iterator[list[float]]:
    """Give a list that holds, after the block, its seconds without compiling and the seconds of compiling."""
    clock: list[float] = []
    started = time.perf_counter()
    with compilation.count_seconds() as compiling:
        yield clock
    total = time.perf_counter() - started
    clock += [max(total - sum(compiling), 0.0), min(sum(compiling, 0.0), total)]


def _report(epoch: int, summary: Summary, seconds: float, compile_seconds: float) -> Epoch:
    numbers = (float(summary.loss), float(summary.accuracy), int(summary.gradient_evaluations))
    return Epoch(epoch + 1, *numbers, seconds, compile_seconds)


def _advice(epoch: int, learner: Learner, checkpoints: Checkpoints | None) -> str:
    kept = ""
    if checkpoints is not None and checkpoints.epoch is not None:
        kept = f"; the last good checkpoint, of epoch {checkpoints.epoch}, is in {checkpoints.folder}"
    return f"the loss is not finite after epoch {epoch + 1} of {learner.epochs}: lower the learning rate{kept}"


def epoch(
    key: Key[Array, ""], learner: Learner, model: Model, state: LearnerState, split: Split, *, mesh: Mesh | None = None
) -> tuple[LearnerState, Summary]:
    """Take one step for every batch of a fresh random order and return the state and the epoch's means.

    A pure function, to be compiled, mapped over learners or put into a longer loop. All rows are fed.
    """
    order_key, step_key = jax.random.split(key)
    rows = split.label.shape[0]
    size = learner.batch_size or rows
    steps = rows // size if learner.drop_last else -(-rows // size)
    order = jax.random.permutation(order_key, rows)
    ragged = steps * size > rows
    index = jnp.resize(order, (steps, size))  # the last batch is filled up with rows that
    filled = (jnp.arange(steps * size) < rows).reshape(steps, size)  # do not count

    def step(state: LearnerState, inputs: tuple[Array, Array, Array]) -> tuple[LearnerState, Any]:
        number, index, filled = inputs
        valid = cast(Array, filled if ragged else None)  # without padding the network needs no mask
        batch = sharding.split_batch(Split(split.image[index], split.label[index], valid), mesh)
        return learner.update(jax.random.fold_in(step_key, number), model, state, batch)

    state, infos = jax.lax.scan(step, state, (jnp.arange(steps), index, filled))
    finite = jax.tree.reduce(lambda a, x: a & jnp.isfinite(x).all(), _floats(state), jnp.bool_(True))
    return state, Summary(infos.loss.mean(), infos.accuracy.mean(), infos.gradient_evaluations.sum(), finite)


def _floats(tree: Any) -> list[Array]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


# Public for benchmarks and for loops of one's own: (key, learner, model, state, split) -> (state, summary). The state
# is donated.
train_epoch = compilation.jit(epoch, static_argnames=("model", "mesh"), donate_argnames=("state",))


_init = compilation.jit(
    lambda key, learner, model, variables, split: learner.init(key, model, variables, split), static_argnums=2
)
