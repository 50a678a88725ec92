"""An epoch of a learner as one program: pure functions to be compiled, mapped or put into a longer loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from bdjax.devices import compilation, sharding
from bdjax.train import batches, pace
from bdjax.train.feeding import STEPWISE, Feeding
from bdjax.types import Info, Learner, LearnerState, Model, PreparedLearner, Split, Variables

_Step: TypeAlias = Callable[[LearnerState, Any], tuple[LearnerState, Info]]
_Rows: TypeAlias = tuple[Array, Array, Array | None]  # number of a step, its rows, which count
_Prepared: TypeAlias = tuple[Key[Array, "..."], Split]


class Summary(NamedTuple):
    """An epoch's means, its gradient evaluations in all, and whether every number of the state is finite.

    Of several epochs, each with a leading axis.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    gradient_evaluations: Int[Array, ""]
    finite: Bool[Array, ""]


def init_key(key: Key[Array, ""]) -> Key[Array, ""]:
    """Return the key of ``learner.init``; the first children of a run's key are the epochs'."""
    return jax.random.fold_in(key, 2**32 - 1)


def most_epochs(learner: Learner) -> int:
    """Return how many epochs one call takes at most."""
    return max(1, min(learner.epochs, pace.MOST))


def span(numbers: range) -> Int[np.ndarray, "2"]:
    """Return the numbers of epochs in a row as `epochs` takes them."""
    return np.array([numbers.start, len(numbers)], np.int32)


def trained(
    key: Key[Array, ""], learner: Learner, model: Model, variables: Variables, split: Split
) -> tuple[Variables, Int[Array, ""]]:
    """Return what `bdjax.train.loop.run` makes of the same arguments, and its gradient evaluations.

    A pure function, to be compiled and mapped: there is no host between its epochs, and so no progress, checkpoint or
    check of the loss.
    """

    def one_epoch(state: LearnerState, number: Array) -> tuple[LearnerState, Array]:
        state, summary = epoch(jax.random.fold_in(key, number), learner, model, state, split)
        return state, summary.gradient_evaluations

    state = learner.init(init_key(key), model, variables, split)
    state, spent = jax.lax.scan(one_epoch, state, jnp.arange(learner.epochs))
    return learner.finalize(model, state), spent.sum()


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
    drawn = batches.draw(key, learner, batches.rows_of(split))
    if feeding.prepared and isinstance(learner, PreparedLearner):
        step, inputs = _prepared_steps(drawn, learner, model, split, mesh)
    else:
        step, inputs = _steps(drawn, learner, model, split, mesh)
    state, infos = jax.lax.scan(step, state, inputs, unroll=feeding.unroll)
    state = sharding.keep_whole(state, mesh)
    return state, summarize(state, infos)


def _steps(
    drawn: batches.Batches, learner: Learner, model: Model, split: Split, mesh: Mesh | None
) -> tuple[_Step, _Rows]:
    """Return a step, and what it takes of each batch: its number and which rows it has."""

    def step(state: LearnerState, inputs: _Rows) -> tuple[LearnerState, Info]:
        number, index, filled = inputs
        batch = _gathered(split, index, filled)
        return take_step(drawn.step_key, number, learner, model, state, batch, mesh=mesh)

    return step, (jnp.arange(drawn.index.shape[0]), drawn.index, drawn.filled)


def _prepared_steps(
    drawn: batches.Batches, learner: PreparedLearner, model: Model, split: Split, mesh: Mesh | None
) -> tuple[_Step, _Prepared]:
    """Prepare all batches at once; return the step that is left to do, and what it takes of each: key and batch."""
    numbers = jnp.arange(drawn.index.shape[0])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(drawn.step_key, numbers)
    gathered = sharding.split_batch(_gathered(split, drawn.index, drawn.filled), mesh, axis=1)
    prepared = jax.vmap(lambda key, batch: learner.prepare(key, model, batch))(keys, gathered)

    def step(state: LearnerState, inputs: _Prepared) -> tuple[LearnerState, Info]:
        key, batch = inputs
        return learner.learn(key, model, state, sharding.split_batch(batch, mesh))

    return step, (keys, prepared)


def _gathered(split: Split, index: Int[Array, "..."], filled: Bool[Array, "..."] | None) -> Split:
    """Return the rows of a batch, or of several, whatever a row's input and label are."""
    input, label = jax.tree.map(lambda x: x[index], (split.input, split.label))
    return Split(input, label, cast(Array, filled))


def take_step(
    step_key: Key[Array, ""],
    number: Int[Array, ""],
    learner: Learner,
    model: Model,
    state: LearnerState,
    batch: Split,
    *,
    mesh: Mesh | None = None,
) -> tuple[LearnerState, Info]:
    """Take the step of this number with a batch, whose ``valid`` is None if all its rows are. A pure function."""
    own = jax.random.fold_in(step_key, number)
    return learner.update(own, model, state, sharding.split_batch(batch, mesh))


def summarize(state: LearnerState, infos: Info) -> Summary:
    """Return the means of what an epoch's steps reported, and whether its state is finite. A pure function."""
    loss, accuracy = infos.loss.mean(), infos.accuracy.mean()
    return Summary(loss, accuracy, infos.gradient_evaluations.sum(), _all_finite(state))


def _all_finite(tree: Any) -> Bool[Array, ""]:
    """Tell whether all numbers are finite. Strung together: on the CPU, to ask leaf by leaf compiled 270 kernels."""
    floats, finite = _floats(tree), jnp.bool_(True)
    for dtype in {x.dtype: None for x in floats}:
        numbers = jnp.concatenate([x.ravel() for x in floats if x.dtype == dtype])
        finite &= jnp.isfinite(numbers).all()
    return finite


def _floats(tree: Any) -> list[Array]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


_STATIC = ("model", "mesh", "feeding")
# For benchmarks and for loops of one's own: (key, learner, model, state, split) -> (state, summary). The state is
# donated.
train_epoch = compilation.jit(epoch, static_argnames=_STATIC, donate_argnames=("state",))
# What a loop calls: (key, learner, model, state, split, span) -> (state, summaries).
train_epochs = compilation.jit(epochs, static_argnames=_STATIC, donate_argnames=("state",))
