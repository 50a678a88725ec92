"""The one loop: every learner, from victim training to the last defense, goes through here.

From a run to a step: `bdjax.runs.run` has a trainer train a stage; that makes a feeder (`bdjax.train.resident`,
`streamed` or `grouped`) and takes it through `complete` here, on the host, a call at a time (`bdjax.train.calls`). A
call is one compiled program (`bdjax.train.programs`): a loop over epochs, in it one over steps, and in that the
learner's ``update``, such as that of `bdjax.train.supervised`: gradient, optax chain, new parameters.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable

from jax.sharding import Mesh
from jaxtyping import Array, Key

from bdjax.devices import hosts
from bdjax.train import calls, feeding
from bdjax.train.batches import valid_rows as valid_rows
from bdjax.train.checkpoints import Checkpoints
from bdjax.train.feeder import Feeder
from bdjax.train.programs import Summary as Summary
from bdjax.train.programs import epoch as epoch
from bdjax.train.programs import train_epoch as train_epoch
from bdjax.train.programs import trained as trained
from bdjax.train.resident import Resident
from bdjax.train.results import Diverged as Diverged
from bdjax.train.results import Epoch, Row, diverged, plain
from bdjax.train.results import Result as Result
from bdjax.train.results import Stopped as Stopped
from bdjax.types import Learner, LearnerState, Model, Split, Variables


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
      split: all rows, whatever an input and a label are (arrays, or trees of arrays); only ``valid`` rows are fed.
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
    given = (key, learner, model, variables, split)
    feeder = Resident(*given, mesh=mesh, prepare=prepare, unroll=unroll)
    return of_one(
        feeder,
        model,
        checkpoints=checkpoints,
        on_epoch=on_epoch,
        on_variables=on_variables,
        should_stop=should_stop,
    )


def of_one(
    feeder: Feeder[Epoch],
    model: Model,
    *,
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_variables: Callable[[int, Callable[[], Variables]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Result:
    """Do what `run` does with one learner's feeder, wherever the data are."""
    learner = feeder.learner

    def show(done: int, state: LearnerState) -> None:
        if on_variables is not None:
            on_variables(done, lambda: learner.finalize(model, hosts.local(state)))

    state, history = complete(
        feeder,
        checkpoints=checkpoints,
        on_epoch=on_epoch,
        on_state=None if on_variables is None else show,
        should_stop=should_stop,
    )
    return Result(learner.finalize(model, hosts.local(state)), history)


def complete(
    feeder: Feeder[Row],
    *,
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[Row], None] | None = None,
    on_state: Callable[[int, LearnerState], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[LearnerState, list[Row]]:
    """Take a feeder's state through all its epochs, and return it with its history: the host's part of every run.

    Args:
      feeder: of one learner or of several points; it is closed.
      checkpoints, on_epoch, should_stop: as for `run`.
      on_state: called with the number of epochs done and the state after it, before it is saved; each epoch is then a
        call.

    Raises:
      Diverged: nothing in the state is finite any more: of several points, none.
      Stopped, InputError: as for `run`.
    """
    epochs = feeder.learner.epochs
    with contextlib.closing(feeder):
        start = calls.begin(feeder, checkpoints)
        state, history = start.state, start.history
        most = feeder.most if on_state is None else 1
        due_in = _never if checkpoints is None else checkpoints.due_in
        for call in calls.calls(feeder, start, most=most, due_in=due_in):
            state, history = call.state, [*history, *call.rows]
            if not call.finite:
                _tell(on_epoch, call.rows)
                raise diverged(len(history) + 1, epochs, feeder.learner, _kept(checkpoints))
            if on_state is not None:
                on_state(len(history), state)
            last = len(history) == epochs
            stop = not last and hosts.any_says(should_stop is not None and should_stop())
            if checkpoints is not None:
                kept, force = feeder.keep(state), stop or last
                checkpoints.save(len(history), kept, plain(history), force=force)
            _tell(on_epoch, call.rows)
            if stop:
                raise Stopped(f"stopped after epoch {len(history)} of {epochs}")
    return state, history


def _tell(on_epoch: Callable[[Row], None] | None, rows: Iterable[Row]) -> None:
    for row in rows:
        if on_epoch is not None:
            on_epoch(row)


def _never() -> float:
    """Return the seconds until a checkpoint is due that nobody takes."""
    return math.inf


def _kept(checkpoints: Checkpoints | None) -> str:
    if checkpoints is None or checkpoints.epoch is None:
        return ""
    return f"; the last good checkpoint, of epoch {checkpoints.epoch}, is in {checkpoints.folder}"
