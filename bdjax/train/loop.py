"""The one loop: every learner, from victim training to the last defense, is fed here."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, Num

from bdjax.checks import InputError
from bdjax.data import splits
from bdjax.devices import compilation, hosts, sharding
from bdjax.train import batches, blame, feeding, pace
from bdjax.train.checkpoints import Checkpoints
from bdjax.train.feeding import STEPWISE, Feeding
from bdjax.types import Info, Learner, LearnerState, Model, PreparedLearner, Split, Variables

_Step: TypeAlias = Callable[[LearnerState, Any], tuple[LearnerState, Info]]


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
    """An epoch's means, the sum of its gradient evaluations, and whether all numbers of the state are finite.

    Of several epochs, each with a leading axis.
    """

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
    prepare: str = feeding.AUTO,
    unroll: int = 1,
) -> Result:
    """Feed a learner for its epochs, in compiled calls over data that live on the device.

    Epoch e uses the key ``fold_in(key, e)`` alone, so a run that continues from a checkpoint ends bit-identical to one
    that was never interrupted. Short epochs share a call, which takes about a second and ends where a checkpoint is
    due (`bdjax.train.pace`); how many do is a value of the one program, and changes no bit. The given variables are
    copied, not consumed.

    Args:
      key: decides order, augmentation and whatever the learner draws.
      learner: what to do with a batch.
      model: the network.
      variables: where to start.
      split: all rows, uint8 or float; only ``valid`` rows are fed.
      checkpoints: where to continue from and save to.
      on_epoch: called on the host for each epoch, after the call that it was part of.
      on_variables: called on the host after each epoch and before it is saved, with the number of epochs done and a
        function that returns the variables as they would be if this were the last; they live until it returns. What it
        writes is thus there, for every epoch that a later call does not repeat. With it, each epoch is a call.
      should_stop: asked after each call; if true, the state is saved and `Stopped` is raised.
      mesh: devices over which each batch is split.
      prepare, unroll: of `bdjax.train.feeding.choose`.

    Raises:
      InputError: no row is valid, or the checkpoint is not of this run.
      Diverged: the loss or a parameter is not finite after an epoch.
      Stopped: as asked.
    """
    batches.check(learner, split)
    split, variables = valid_rows(split), hosts.arrays_of_first(variables)
    hosts.check_same(images=split)
    chosen = feeding.choose(prepare, unroll, learner, split)
    split, variables = sharding.replicate((split, variables), mesh)
    placed_key, placed = _once((key, learner), mesh)

    def advance(numbers: range, state: LearnerState) -> tuple[LearnerState, Summary]:
        return train_epochs(placed_key, placed, model, state, split, span(numbers), mesh=mesh, feeding=chosen)

    return feed(
        key,
        learner,
        model,
        lambda key: _init(key, learner, model, variables, split),
        lambda key: learner.init(key, model, variables, split),
        advance,
        most=most_epochs(learner),
        checkpoints=checkpoints,
        on_epoch=on_epoch,
        on_variables=on_variables,
        should_stop=should_stop,
        mesh=mesh,
    )


def feed(
    key: Key[Array, ""],
    learner: Learner,
    model: Model,
    init: Callable[[Key[Array, ""]], LearnerState],
    like: Callable[[Key[Array, ""]], LearnerState],
    advance: Callable[[range, LearnerState], tuple[LearnerState, Summary]],
    *,
    most: int = 1,
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_variables: Callable[[int, Callable[[], Variables]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    mesh: Mesh | None = None,
) -> Result:
    """Feed a learner for its epochs, wherever the data are; `run` says the rest.

    Args:
      key, learner, model: as for `run`.
      init: the learner's ``init`` of everything but the key, compiled.
      like: the same, not compiled; it is only traced.
      advance, most: as for `drive`.
      checkpoints, on_epoch, on_variables, should_stop, mesh: as for `run`.
    """

    def after(row: Epoch, state: LearnerState) -> None:
        if on_variables is not None:
            on_variables(row.epoch, functools.partial(learner.finalize, model, hosts.local(state)))

    state, history = drive(
        learner.epochs,
        lambda: init(init_key(key)),
        advance,
        most=most if on_variables is None else 1,
        like=lambda: jax.eval_shape(lambda: like(init_key(key))),
        place=functools.partial(_place, mesh=mesh),
        checkpoints=checkpoints,
        after=after,
        on_epoch=on_epoch or (lambda row: None),
        should_stop=should_stop or (lambda: False),
        learner=learner,
    )
    return Result(learner.finalize(model, hosts.local(state)), history)


def drive(
    epochs: int,
    init: Callable[[], Any],
    advance: Callable[[range, Any], tuple[Any, Summary]],
    *,
    like: Callable[[], Any],
    place: Callable[[Any], Any],
    most: int = 1,
    keep: Callable[[Any], Any] = lambda state: state,
    checkpoints: Checkpoints | None = None,
    after: Callable[[Epoch, Any], None] = lambda row, state: None,
    on_epoch: Callable[[Epoch], None] = lambda row: None,
    should_stop: Callable[[], bool] = lambda: False,
    learner: Any = None,
) -> tuple[Any, list[Epoch]]:
    """Advance a state some epochs at a time: the host's part of a run, of one point or of several at once.

    Args:
      epochs: how many in all, those in the checkpoint included.
      init: the state before the first epoch.
      advance: the numbers of the next epochs, from 0, and the state, which is consumed, to the next state and a
        summary of each, in the first rows of arrays that may be longer.
      like: the shapes and types of that state, computing nothing.
      place: copies a state to where ``advance`` expects it.
      most: how many epochs ``advance`` takes at once.
      keep: the part of a placed state that is saved and returned.
      after: called after the last epoch of each call, before it is saved.
      checkpoints, on_epoch, should_stop: as for `run`.
      learner: whose hyper-parameters are named if the loss is not finite; of several points, stacked.

    Raises:
      Diverged: nothing in the state is finite any more: of several points, none.
      Stopped, InputError: as for `run`.
    """
    state, history, preparing = _begin(epochs, init, like, place, checkpoints)
    paced = pace.Pace(most)
    while (done := len(history)) < epochs:
        due_in = math.inf if checkpoints is None else checkpoints.due_in()
        count = paced.next(epochs - done, due_in)
        with _stopwatch() as clock:
            state, summary = advance(range(done, done + count), state)
            summary = jax.device_get(summary)
        paced.took(count, clock[0])
        rows = _reports(done, count, summary, *map(sum, zip(clock, preparing, strict=True)))
        history += rows
        preparing = [0.0, 0.0]
        stop = last = False
        if finite := len(rows) == count:
            after(rows[-1], state)
            last = len(history) == epochs
            stop = not last and hosts.any_says(should_stop())
            if checkpoints is not None:
                seen = [row._asdict() for row in history]
                checkpoints.save(len(history), keep(state), seen, force=stop or last)
        for row in rows:
            on_epoch(row)
        if not finite:
            raise diverged(len(history) + 1, epochs, learner, _kept(checkpoints))
        if stop:
            raise Stopped(f"stopped after epoch {len(history)} of {epochs}")
    return keep(state), history


def _begin(
    epochs: int,
    init: Callable[[], Any],
    like: Callable[[], Any],
    place: Callable[[Any], Any],
    checkpoints: Checkpoints | None,
) -> tuple[Any, list[Epoch], list[float]]:
    """Return the placed state to go on from, its history, and the clock of what the next epoch has to count as its own.

    Raises:
      InputError: the checkpoint is not of this run, or has seen more epochs.
    """
    saved = checkpoints.restore(like()) if checkpoints is not None else None
    if checkpoints is None or saved is None:
        with _stopwatch() as preparing:
            state = place(init())
            jax.block_until_ready(state)
        return state, [], preparing
    history = [Epoch(**row) for row in saved.history]
    if len(history) > epochs:
        seen = f"{len(history)}, which the checkpoint in {checkpoints.folder} has seen"
        raise InputError(f"epochs must be at least {seen}; got {epochs}.")
    # From the host: arrays bound to a device would be compiled for anew.
    return place(jax.device_get(saved.state)), history, [0.0, 0.0]


def init_key(key: Key[Array, ""]) -> Key[Array, ""]:
    """Return the key of ``learner.init``; the first children of a run's key are the epochs'."""
    return jax.random.fold_in(key, 2**32 - 1)


def diverged(epoch: int, epochs: int, learner: Any = None, kept: str = "") -> Diverged:
    """Return the exception of a state that is not finite after an epoch, with what may be to blame in the learner."""
    return Diverged(f"the loss is not finite after epoch {epoch} of {epochs}: lower {blame.to_lower(learner)}{kept}")


def trained(
    key: Key[Array, ""], learner: Learner, model: Model, variables: Variables, split: Split
) -> tuple[Variables, Int[Array, ""]]:
    """Return what `run` makes of the same arguments, and its gradient evaluations, as one pure function.

    To be compiled and mapped: there is no host between its epochs, and so no progress, checkpoint or check of the loss.
    """

    def one_epoch(state: LearnerState, number: Array) -> tuple[LearnerState, Array]:
        state, summary = epoch(jax.random.fold_in(key, number), learner, model, state, split)
        return state, summary.gradient_evaluations

    state = learner.init(init_key(key), model, variables, split)
    state, spent = jax.lax.scan(one_epoch, state, jnp.arange(learner.epochs))
    return learner.finalize(model, state), spent.sum()


def _place(state: LearnerState, mesh: Mesh | None) -> LearnerState:
    """Copy a state to its devices; the epoch consumes it."""
    return sharding.replicate(jax.tree.map(jnp.array, state), mesh)


def _once(tree: Any, mesh: Mesh | None) -> Any:
    """Put a key and a learner's floats where every call finds them; of several hosts, each call puts them anew."""
    return sharding.replicate(tree, mesh) if hosts.process_count() == 1 else tree


def valid_rows(split: Split) -> Split:
    """Return the rows that count."""
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


def _reports(done: int, count: int, summary: Summary, seconds: float, compile_seconds: float) -> list[Epoch]:
    """Return the reports of the epochs of a call, up to the first after which nothing is finite.

    They share its seconds; what it compiled is its first epoch's. The loss of a point that is not finite is not either.
    """
    loss = np.where(summary.finite, summary.loss, np.nan)
    reports = []
    for place in range(count):
        if not np.isfinite(loss[place]).any():
            break
        columns = (loss, summary.accuracy, summary.gradient_evaluations)
        own_loss, accuracy, spent = (np.asarray(column[place]).tolist() for column in columns)
        compiled = 0.0 if place else compile_seconds
        reports.append(Epoch(done + place + 1, own_loss, accuracy, spent, seconds / count, compiled))
    return reports


def _kept(checkpoints: Checkpoints | None) -> str:
    if checkpoints is None or checkpoints.epoch is None:
        return ""
    return f"; the last good checkpoint, of epoch {checkpoints.epoch}, is in {checkpoints.folder}"


def epochs(
    key: Key[Array, ""],
    learner: Learner,
    model: Model,
    state: LearnerState,
    split: Split,
    span: Int[Array, "2"],
    *,
    mesh: Mesh | None = None,
    feeding: Feeding = STEPWISE,
) -> tuple[LearnerState, Summary]:
    """Take some epochs in a row, and return the state and the summary of each. A pure function.

    Args:
      key: of the run; each epoch folds in its number.
      learner, model, state, split, mesh, feeding: as for `epoch`.
      span: the number of the first epoch, and how many there are; traced, so that any number is the same program.

    Returns:
      The state, and summaries of `most_epochs` rows, of which the first ``span[1]`` count.
    """
    first, count = span

    def one(place: Array, carry: tuple[LearnerState, Summary]) -> tuple[LearnerState, Summary]:
        state, summaries = carry
        own = jax.random.fold_in(key, first + place)
        state, summary = epoch(own, learner, model, state, split, mesh=mesh, feeding=feeding)
        return state, jax.tree.map(lambda all, x: all.at[place].set(x), summaries, summary)

    types = Summary(float, float, int, bool)  # type: ignore[arg-type]
    blank = jax.tree.map(lambda dtype: jnp.zeros(most_epochs(learner), dtype), types)
    return jax.lax.fori_loop(0, count, one, (state, blank))


def span(numbers: range) -> Int[np.ndarray, "2"]:
    """Return the numbers of epochs in a row as `epochs` takes them."""
    return np.array([numbers.start, len(numbers)], np.int32)


def most_epochs(learner: Learner) -> int:
    """Return how many epochs one call takes at most."""
    return max(1, min(learner.epochs, pace.MOST))


def epoch(
    key: Key[Array, ""],
    learner: Learner,
    model: Model,
    state: LearnerState,
    split: Split,
    *,
    mesh: Mesh | None = None,
    feeding: Feeding = STEPWISE,
) -> tuple[LearnerState, Summary]:
    """Take one step for every batch of a fresh random order and return the state and the epoch's means.

    A pure function, to be compiled, mapped over learners or put into a longer loop. Each row of the split is valid.
    """
    drawn = batches.draw(key, learner, split.label.shape[0])
    if feeding.prepared and isinstance(learner, PreparedLearner):
        step, inputs = _prepared_steps(drawn, learner, model, split, mesh)
    else:
        step, inputs = _steps(drawn, learner, model, split, mesh)
    state, infos = jax.lax.scan(step, state, inputs, unroll=feeding.unroll)
    state = sharding.keep_whole(state, mesh)
    return state, summarize(state, infos)


def _steps(
    drawn: batches.Batches, learner: Learner, model: Model, split: Split, mesh: Mesh | None
) -> tuple[_Step, tuple[Array, Array, Array | None]]:
    """Return a step, and what it takes of each batch: its number and which rows it has."""

    def step(state: LearnerState, inputs: tuple[Array, Array, Array | None]) -> tuple[LearnerState, Info]:
        number, index, filled = inputs
        images, labels = split.input[index], split.label[index]
        return take_step(drawn.step_key, number, learner, model, state, images, labels, filled, mesh=mesh)

    return step, (jnp.arange(drawn.index.shape[0]), drawn.index, drawn.filled)


def _prepared_steps(
    drawn: batches.Batches, learner: PreparedLearner, model: Model, split: Split, mesh: Mesh | None
) -> tuple[_Step, tuple[Key[Array, " steps"], Split]]:
    """Prepare all batches at once; return the step that is left to do, and what it takes of each: key and batch."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(drawn.step_key, jnp.arange(drawn.index.shape[0]))
    gathered = Split(split.input[drawn.index], split.label[drawn.index], cast(Array, drawn.filled))
    gathered = sharding.split_batch(gathered, mesh, axis=1)
    prepared = jax.vmap(lambda key, batch: learner.prepare(key, model, batch))(keys, gathered)

    def step(state: LearnerState, inputs: tuple[Key[Array, ""], Split]) -> tuple[LearnerState, Info]:
        key, batch = inputs
        return learner.learn(key, model, state, sharding.split_batch(batch, mesh))

    return step, (keys, prepared)


def take_step(
    step_key: Key[Array, ""],
    number: Int[Array, ""],
    learner: Learner,
    model: Model,
    state: LearnerState,
    images: Num[Array, "b h w c"],
    labels: Int[Array, " b"],
    filled: Bool[Array, " b"] | None,
    *,
    mesh: Mesh | None = None,
) -> tuple[LearnerState, Info]:
    """Take the step of this number with a batch. A pure function."""
    batch = sharding.split_batch(Split(images, labels, cast(Array, filled)), mesh)
    return learner.update(jax.random.fold_in(step_key, number), model, state, batch)


def summarize(state: LearnerState, infos: Info) -> Summary:
    """Return the means of an epoch from what its steps reported, and whether its state is finite. A pure function."""
    return Summary(infos.loss.mean(), infos.accuracy.mean(), infos.gradient_evaluations.sum(), _all_finite(state))


def _all_finite(tree: Any) -> Bool[Array, ""]:
    """Tell whether all numbers are finite. Strung together: on the CPU, to ask leaf by leaf compiled 270 kernels."""
    floats, finite = _floats(tree), jnp.bool_(True)
    for dtype in {x.dtype: None for x in floats}:
        numbers = jnp.concatenate([x.ravel() for x in floats if x.dtype == dtype])
        finite &= jnp.isfinite(numbers).all()
    return finite


def _floats(tree: Any) -> list[Array]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


# Public for benchmarks and for loops of one's own: (key, learner, model, state, split) -> (state, summary). The state
# is donated.
train_epoch = compilation.jit(epoch, static_argnames=("model", "mesh", "feeding"), donate_argnames=("state",))
# What `run` calls: (key, learner, model, state, split, span) -> (state, summaries).
train_epochs = compilation.jit(epochs, static_argnames=("model", "mesh", "feeding"), donate_argnames=("state",))


_init = compilation.jit(
    lambda key, learner, model, variables, split: learner.init(key, model, variables, split), static_argnums=2
)
