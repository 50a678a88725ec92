"""Several points through the one loop, as one program: what each of them would be alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh

from bdjax.checks import InputError
from bdjax.devices.sharding import BATCH
from bdjax.train import feeding, loop, states
from bdjax.train.checkpoints import Checkpoints
from bdjax.train.forms import AUTO as AUTO
from bdjax.train.forms import Choice as Choice
from bdjax.train.forms import check_form
from bdjax.train.forms import choose as choose
from bdjax.train.forms import fits as fits
from bdjax.train.forms import held_bytes as held_bytes
from bdjax.train.forms import program as program
from bdjax.train.grouped import LOOP, POINT, Grouped, Point
from bdjax.train.grouped import VMAP as VMAP
from bdjax.train.grouped import stack as stack
from bdjax.train.grouped import structure as structure
from bdjax.train.results import Diverged, Epoch, GroupEpoch, Result, diverged
from bdjax.types import Learner, LearnerState, Model


class Trained(NamedTuple):
    """One point's state after its last epoch, on the host, and its history; its seconds are its share."""

    learner: Learner
    state: LearnerState
    history: list[Epoch]

    @property
    def kept(self) -> LearnerState:
        """What of the state is saved."""
        return states.kept(self.learner, self.state)

    def result(self, point: Point, model: Model, earlier: Sequence[Epoch] = ()) -> Result:
        """Return what the point's learner makes of the state in the end, after the epochs of earlier stages."""
        # As in a single run; parametrizations take no others
        state = jax.tree.map(jnp.asarray, self.state)
        return Result(point.learner.finalize(model, state), [*earlier, *self.history])


def run(
    points: Sequence[Point],
    model: Model,
    *,
    form: str = LOOP,
    mesh: Mesh | None = None,
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    prepare: str = feeding.AUTO,
    unroll: int = 1,
) -> list[Trained | Diverged]:
    """Train every point as `bdjax.train.loop.run` trains one: the same numbers but for the order of additions.

    A point that diverges goes on with numbers that are not finite, and leaves the others as they are.

    Args:
      points: of one `structure`; all rows of their splits count.
      model: the network of all.
      form: how the points of one device are computed: one after another (``loop``), all at once (``vmap``), or
        ``map:k``, k at once. The memory grows with how many are computed at once.
      mesh: of `point_mesh`.
      checkpoints: where to continue from and save to, all points together, whatever the form and the mesh.
      on_epoch: called on the host for each epoch, after its call, with the means over those points that are finite.
      should_stop: asked after each call; if true, the state is saved and `bdjax.train.loop.Stopped` is raised.
      prepare, unroll: of `bdjax.train.feeding.choose`.

    Raises:
      InputError: an unknown form, points of different structure, or a checkpoint of other points.
      bdjax.train.loop.Stopped: as asked.
    """
    check_form(form)
    feeder = Grouped(points, model, form=form, mesh=mesh, prepare=prepare, unroll=unroll)

    def tell(row: GroupEpoch) -> None:
        if on_epoch is not None:
            on_epoch(row.mean())

    try:
        state, history = loop.complete(
            feeder,
            checkpoints=checkpoints,
            on_epoch=tell,
            should_stop=should_stop,
        )
    except Diverged as all_of_them:
        return [all_of_them] * len(points)
    state = jax.device_get(feeder.trim(state))
    return [_outcome(point.learner, state, history, index) for index, point in enumerate(points)]


def point_mesh(devices: int, batch_devices: int = 1) -> Mesh | None:
    """Return a mesh for points, and for the batch of each if ``batch_devices`` share it; None for a single device.

    Raises:
      InputError: there are fewer devices, or ``batch_devices`` does not divide them.
    """
    there = jax.devices()
    if devices > len(there):
        limit = f"{len(there)}, the number of devices here"
        raise InputError(f"devices must be at most {limit}; got {devices}.")
    if devices % batch_devices:
        raise InputError(f"batch_devices must divide devices = {devices}; got {batch_devices}.")
    if devices == 1:
        return None
    sizes = {POINT: devices // batch_devices}
    if batch_devices > 1:
        sizes[BATCH] = batch_devices
    types = (AxisType.Auto,) * len(sizes)
    shape, names = tuple(sizes.values()), tuple(sizes)
    return jax.make_mesh(shape, names, axis_types=types, devices=there[:devices])


def _outcome(
    learner: Learner,
    state: LearnerState,
    history: Sequence[GroupEpoch],
    index: int,
) -> Trained | Diverged:
    rows = [row.of(index) for row in history]
    for row in rows:
        if not math.isfinite(row.loss):
            return diverged(row.epoch, len(rows), learner)
    own = jax.tree.map(lambda x: x[index, ...], state)
    return Trained(learner, own, rows)
