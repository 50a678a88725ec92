"""The feeder of inputs that are not on the device: read ahead, put there a few steps at a time, used once."""

from __future__ import annotations

import collections
import contextlib
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key, Num

from bdjax.checks import InputError
from bdjax.data import streams
from bdjax.data.streams import Stream
from bdjax.devices import compilation, hosts, sharding
from bdjax.train import batches, loop, programs, states
from bdjax.train.programs import Summary
from bdjax.train.reading import Reading, begin
from bdjax.train.results import Epoch, Result
from bdjax.types import Info, Learner, LearnerState, Model, Split, Variables

_REFUSED = "cannot be streamed; keep them on the device"
_QUEUED = 2  # chunks that the device has to work on


class Waits(NamedTuple):
    """Seconds of an epoch."""

    reading: float  # in which the host waited for a chunk of inputs
    starving: float  # of these, until chunks that came when the device had nothing left to do


def run(
    key: Key[Array, ""],
    learner: Learner,
    model: Model,
    variables: Variables,
    split: Split,
    *,
    mesh: Mesh | None = None,
    **options: Any,
) -> Result:
    """Do what `bdjax.train.loop.run` does with a split whose input is a `bdjax.data.streams.Stream`.

    The same batches in the same order with the same keys: on one device the result is that of the resident split, bit
    for bit. What is read depends on the key, the epoch and the step alone, so a checkpoint, taken between epochs as it
    is there, holds nothing of the stream, and either way of feeding continues the other.

    Args:
      key, learner, model, variables, mesh: as for `bdjax.train.loop.run`.
      split: labels and ``valid`` are arrays.
      options: as there.

    Raises:
      InputError: as for `check`; or as there.
      Diverged, Stopped: as there.
    """
    return loop.of_one(Streamed(key, learner, model, variables, split, mesh=mesh), model, **options)


class Streamed:
    """Feeds one learner from a stream, an epoch a call; the next epoch's first inputs are read during this one.

    Attributes:
      learner, most, row: of `bdjax.train.feeder.Feeder`.
    """

    row = Epoch
    most = 1

    def __init__(
        self,
        key: Key[Array, ""],
        learner: Learner,
        model: Model,
        variables: Variables,
        split: Split,
        *,
        mesh: Mesh | None = None,
    ):
        """Put the variables and the labels where each call finds them; the arguments are those of `run`.

        Raises:
          InputError: as for `check`.
        """
        check(learner, model, variables, split)
        rows = np.flatnonzero(np.asarray(split.valid))
        variables = hosts.arrays_of_first(variables)
        label = jax.tree.map(lambda x: np.asarray(x)[rows], split.label)
        hosts.check_same(labels=label)
        self.learner, self._key, self._model, self._mesh = learner, key, model, mesh
        self._split = split
        self._variables, self._label = sharding.replicate((variables, label), mesh)
        shape, dtype = (len(rows), *split.input.shape[1:]), split.input.dtype
        self._input = jax.ShapeDtypeStruct(shape, dtype)
        self._begun: list[Reading] = []

    def init(self) -> LearnerState:
        """Return the state before the first epoch."""
        return states.place(_init(*self._start(), self._input), self._mesh)

    def advance(self, numbers: range, state: LearnerState) -> tuple[LearnerState, Summary]:
        """Take one epoch; the state is donated."""
        (number,) = numbers
        reading = self._begun.pop() if self._begun else self._read(number)
        if number + 1 < self.learner.epochs:
            self._begun.append(self._read(number + 1))
        model, mesh = self._model, self._mesh
        state, summary, _ = epoch(reading, self.learner, model, state, self._split, mesh=mesh)
        return state, jax.tree.map(lambda x: x[None], jax.device_get(summary))

    def keep(self, state: LearnerState) -> LearnerState:
        """Return the part of a state that is saved."""
        return states.kept(self.learner, state)

    def like(self) -> LearnerState:
        """Return the shapes and types of that part."""

        def kept() -> LearnerState:
            return states.kept(self.learner, _init_state(*self._start(), self._input))

        return jax.eval_shape(kept)

    def restore(self, kept: LearnerState) -> LearnerState:
        """Return the state of which that was kept."""
        whole = states.on_host(self.learner, kept, self._model, self._variables)
        return states.place(whole, self._mesh)

    def close(self) -> None:
        """Read no further."""
        for reading in self._begun:
            reading.ahead.close()

    def _start(self) -> tuple[Key[Array, ""], Learner, Model, Variables, Any]:
        key = programs.init_key(self._key)
        return key, self.learner, self._model, self._variables, self._label

    def _read(self, number: int) -> Reading:
        key = jax.random.fold_in(self._key, number)
        return begin(key, self.learner, self._split, self._mesh)


def check(learner: Learner, model: Model, variables: Variables, split: Split) -> None:
    """Refuse what cannot be streamed, before anything is compiled.

    Raises:
      InputError: the learner takes all inputs at once, or looks at them before its first step; grain is missing; or
        no row is valid.
    """
    streams.require_grain()
    batches.check(learner, split)
    if learner.epochs and learner.batch_size is None:
        raise InputError(f"what takes all images at once {_REFUSED}.")
    shape = jax.ShapeDtypeStruct(split.input.shape, split.input.dtype)
    init = functools.partial(_init_state, jax.random.key(0), learner, model, input=shape)
    try:
        jax.eval_shape(init, variables, split.label)
    except TypeError as error:  # a shape where an array was expected
        reason = str(error).partition("\n")[0].rstrip(".")
        early = "what looks at all images before its first step"
        raise InputError(f"{early} {_REFUSED} ({reason}).") from error


def epoch(
    reading: Reading,
    learner: Learner,
    model: Model,
    state: LearnerState,
    split: Split,
    *,
    mesh: Mesh | None = None,
) -> tuple[LearnerState, Summary, Waits]:
    """Take the steps of `bdjax.train.programs.epoch` with what is read; the state is donated.

    The next chunk is read, sent and poisoned while the device works on the one before.
    """
    stream: Stream = split.input  # type: ignore[assignment]
    label = jax.tree.map(np.asarray, split.label)
    queued: collections.deque[Any] = collections.deque()  # of Info
    infos: list[Info] = []
    waited = starved = 0.0
    with contextlib.closing(reading.ahead):
        for number, rows in enumerate(reading.index):
            started = time.perf_counter()
            chunk = next(reading.ahead).reshape(*rows.shape, *stream.shape[1:])
            seconds = time.perf_counter() - started
            waited += seconds
            starved += seconds if all(info.loss.is_ready() for info in queued) else 0.0
            if len(queued) == _QUEUED:
                # or the device would soon hold every input
                infos.append(jax.device_get(queued.popleft()))
            changed, labels = _changed_on_device(stream, chunk, rows), _rows(label, rows)
            filled = None if reading.filled is None else reading.filled[number]
            several = _put(Split(changed, labels, filled), mesh)  # type: ignore[arg-type]
            first = number * len(rows)
            span = np.array([first, min(len(rows), reading.steps - first)], np.int32)
            state, info = _take_steps(
                reading.step_key, span, learner, model, state, several, size=reading.size, mesh=mesh
            )
            queued.append(info)
    infos += jax.device_get(list(queued))
    joined = jax.tree.map(lambda *parts: np.concatenate(parts)[: reading.steps], *infos)
    return state, _summarize(state, joined), Waits(waited, starved)


def take_steps(
    step_key: Key[Array, ""],
    span: Int[Any, "2"],
    learner: Learner,
    model: Model,
    state: LearnerState,
    several: Split,
    *,
    size: int,
    mesh: Mesh | None = None,
) -> tuple[LearnerState, Info]:
    """Take steps of an epoch in a row with the first of some batches. A pure function.

    Args:
      step_key: of the epoch; each step folds in its number.
      span: the number of the first step, and how many are taken.
      learner, model, state: as for `bdjax.train.programs.epoch`.
      several: batches, with leading axes [steps, b].
      size: how many rows of each are fed; the compiler divides them among the devices whatever their number.
      mesh: devices over which each batch is split.

    Returns:
      The state, and what each step reported; zeros for the steps that were not taken.
    """
    first, count = span
    steps = several.input.shape[0]

    def step(number: Int[Array, ""], state: LearnerState) -> tuple[LearnerState, Info]:
        batch = jax.tree.map(lambda x: x[number, :size], several)
        own = first + number
        return programs.take_step(step_key, own, learner, model, state, batch, mesh=mesh)

    def one(number: Int[Array, ""], carry: tuple[LearnerState, Info]) -> tuple[LearnerState, Info]:
        state, info = step(number, carry[0])
        return state, jax.tree.map(lambda all, x: all.at[number].set(x), carry[1], info)

    if steps == 1:  # of an epoch of one step
        state, info = step(jnp.int32(0), state)
        return sharding.keep_whole((state, jax.tree.map(lambda x: x[None], info)), mesh)
    _, info = jax.eval_shape(step, jnp.int32(0), state)
    blank = jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype), info)
    # The number of steps is not known to the compiler, or the last chunk would be another program than the others.
    state, info = jax.lax.fori_loop(0, count, one, (state, blank))
    return sharding.keep_whole((state, info), mesh)


def _changed_on_device(stream: Stream, chunk: np.ndarray, rows: np.ndarray) -> Any:
    if stream.change is None:
        return chunk
    return _change(stream.change, jax.device_put(chunk), rows)


def _rows(tree: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda x: x[rows], tree)


def _put(inputs: Any, mesh: Mesh | None) -> Any:
    """Put batches [steps, b, …] on the device, or this host's shares of every batch on its devices."""
    if mesh is None:
        return jax.device_put(inputs)
    shares = NamedSharding(mesh, PartitionSpec(None, sharding.BATCH))
    if hosts.process_count() == 1:
        return jax.device_put(inputs, shares)

    def put(x: Any) -> Array:
        return jax.make_array_from_process_local_data(shares, np.asarray(x))

    return jax.tree.map(put, inputs)


def _init_state(
    key: Key[Array, ""],
    learner: Learner,
    model: Model,
    variables: Variables,
    label: Any,
    input: jax.ShapeDtypeStruct,
) -> LearnerState:
    """Begin with a split of which only the labels are there."""
    split: Any = Split(input, label, jnp.ones(input.shape[0], bool))  # type: ignore[arg-type]
    return learner.init(key, model, variables, split)


_init = compilation.jit(_init_state, static_argnames=("model", "input"))
_take_steps = compilation.jit(
    take_steps,
    static_argnames=("model", "size", "mesh"),
    donate_argnames="state",
)
_summarize = compilation.jit(programs.summarize)


# A program of its own, as the poisoner of a resident split is: fused with a step, it might round otherwise.
@functools.partial(compilation.jit, tuned=False)
def _change(
    change: Any,
    chunk: Num[Array, "steps b ..."],
    rows: Int[Array, "steps b"],
) -> Num[Array, "steps b ..."]:
    return change(chunk.reshape(-1, *chunk.shape[2:]), rows.reshape(-1)).reshape(chunk.shape)
