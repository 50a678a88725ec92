"""Several points of a sweep trained together: one compiled program for all, on one device or spread over many.

A point is a key, a learner, the variables where it starts and its data. Points of one static structure make a group: a
`Point` whose leaves carry a leading axis. Points never meet, so between devices nothing is communicated.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key

from bdjax.checks import InputError
from bdjax.devices import compilation, placement
from bdjax.devices.sharding import BATCH
from bdjax.train import batches, feeding, loop
from bdjax.train.checkpoints import Checkpoints
from bdjax.train.feeding import STEPWISE, Feeding
from bdjax.types import Learner, LearnerState, Model, Split, Variables

POINT = "point"  # the mesh axis of the points; `bdjax.devices.sharding.BATCH` is the other one
AUTO, LOOP, VMAP = "auto", "loop", "vmap"
_STEPS = 3  # of each form that are timed
_MEMORY = 0.8  # share of a device's memory that a form may ask for
_WORTH = 3  # another form is tried while the fastest so far would take more than this many compilations,
_SHORT = 20.0  # and more than these seconds


class Point(NamedTuple):
    """What `bdjax.train.loop.run` is given; in a group, each leaf has a leading axis."""

    key: Key[Array, "..."]
    learner: Learner
    variables: Variables
    split: Split


class Trained(NamedTuple):
    """One point's state after its last epoch, on the host, and its history; its seconds are its share."""

    state: LearnerState
    history: list[loop.Epoch]

    def result(self, point: Point, model: Model, earlier: Sequence[loop.Epoch] = ()) -> loop.Result:
        """Return what the point's learner makes of the state in the end, after the epochs of earlier stages."""
        state = jax.tree.map(jnp.asarray, self.state)  # as in a single run; parametrizations take no others
        return loop.Result(point.learner.finalize(model, state), [*earlier, *self.history])


class Choice(NamedTuple):
    """A form, and the seconds a step that it and others took for all points; nothing if none was measured."""

    form: str
    seconds: dict[str, float]


def run(
    points: Sequence[Point],
    model: Model,
    *,
    form: str = LOOP,
    mesh: Mesh | None = None,
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[loop.Epoch], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    prepare: str = feeding.AUTO,
    unroll: int = 1,
) -> list[Trained | loop.Diverged]:
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
    stacked, count = stack(points), len(points)
    group = _place(stacked, mesh)
    here = -(-count // _devices(mesh))
    chosen = feeding.choose(prepare, unroll, points[0].learner, points[0].split, points=here)
    trim = functools.partial(jax.tree.map, lambda x: x if x.shape[0] == count else x[:count])

    def advance(numbers: range, state: LearnerState) -> tuple[LearnerState, loop.Summary]:
        state, summary = _epochs(loop.span(numbers), group, state, form, model, mesh, chosen)
        return state, jax.tree.map(lambda x: x[:, :count], jax.device_get(summary))

    try:
        state, history = loop.drive(
            group.learner.epochs,
            lambda: _init(group, form, model, mesh),
            advance,
            like=lambda: jax.eval_shape(lambda: trim(_init_all(group, LOOP, model, None))),
            place=functools.partial(_place, mesh=mesh),
            most=loop.most_epochs(points[0].learner),
            keep=trim,
            checkpoints=checkpoints,
            on_epoch=lambda row: None if on_epoch is None else on_epoch(_mean(row)),
            should_stop=should_stop or (lambda: False),
            learner=stacked.learner,
        )
    except loop.Diverged as all_of_them:
        return [all_of_them] * count
    state = jax.device_get(state)
    return [_outcome(state, history, index, points[index].learner, count) for index in range(count)]


def structure(point: Point) -> Hashable:
    """Return what the points of one group have in common: everything but the values of the arrays and floats."""
    leaves, tree = jax.tree.flatten(point)
    return tree, tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def stack(points: Sequence[Point]) -> Point:
    """Return the points as one, with a leading axis on every leaf.

    Raises:
      InputError: they differ in more than values, or there is none.
    """
    if len({structure(point) for point in points}) != 1:
        raise InputError(f"points must share one structure, to be one program; got {len(points)} that do not.")
    return jax.tree.map(lambda *leaves: _stack(leaves), *points)


def point_mesh(devices: int, batch_devices: int = 1) -> Mesh | None:
    """Return a mesh for points, and for the batch of each if ``batch_devices`` share it; None for a single device.

    Raises:
      InputError: there are fewer devices, or ``batch_devices`` does not divide them.
    """
    there = jax.devices()
    if devices > len(there):
        raise InputError(f"devices must be at most {len(there)}, the number of devices here; got {devices}.")
    if devices % batch_devices:
        raise InputError(f"batch_devices must divide devices = {devices}; got {batch_devices}.")
    if devices == 1:
        return None
    sizes = {POINT: devices // batch_devices, **({BATCH: batch_devices} if batch_devices > 1 else {})}
    types = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=there[:devices])


def check_form(form: str) -> str:
    """Return the form if there is such a one.

    Raises:
      InputError: there is not.
    """
    if form not in (LOOP, VMAP) and not re.fullmatch(r"map:[1-9]\d*", form):
        raise InputError(f"form must be auto, loop, vmap, or map:k with a whole number k; got {form!r}.")
    return form


def choose(points: Sequence[Point], model: Model, mesh: Mesh | None = None) -> Choice:
    """Time the forms on a few steps of these very points and return the fastest that fits in memory.

    Forms are tried while what is left to win is worth compiling another one, so a short job takes ``loop`` at once.
    """
    here = -(-len(points) // _devices(mesh))
    if here == 1 or not points[0].learner.epochs:
        return Choice(LOOP, {})
    rows = points[0].split.label.shape[0]
    shape = batches.of_learner(points[0].learner, rows)
    few = _place(stack([point._replace(split=_first(point.split, _STEPS * shape.size)) for point in points]), mesh)
    steps = batches.of_learner(points[0].learner, few.split.label.shape[1]).steps
    whole = points[0].learner.epochs * shape.steps
    seconds: dict[str, float] = {}
    compiling = 0.0
    for form in (LOOP, VMAP, *(f"map:{k}" for k in (4, 8) if k < here)):
        if seconds and min(seconds.values()) * whole < max(_SHORT, _WORTH * compiling):
            break
        compiling, second = _time(few, form, model, mesh)
        if second is not None:
            seconds[form] = second / steps
    return Choice(min(seconds, key=lambda form: seconds[form], default=LOOP), seconds)


class Program(NamedTuple):
    """An epoch of a group, compiled, for those who time it."""

    compile_seconds: float
    fits: bool  # whether the devices have the memory for it; if not, it must not be called
    epoch: Callable[[], loop.Summary]  # each call is the next epoch


def program(points: Sequence[Point], model: Model, form: str = LOOP, mesh: Mesh | None = None) -> Program:
    """Compile what `run` calls.

    Raises:
      InputError: an unknown form, or points of different structure.
    """
    return _program(_place(stack(points), mesh), check_form(form), model, mesh)


def _program(group: Point, form: str, model: Model, mesh: Mesh | None) -> Program:
    state = _place(_init(group, LOOP, model, mesh), mesh)
    with compilation.count_seconds() as compiling:
        compiled = _epochs.lower(loop.span(range(1)), group, state, form, model, mesh).compile()  # type: ignore[attr-defined]
    box, number = [state], itertools.count()

    def epoch() -> loop.Summary:
        first = next(number)
        box[0], summary = _epochs(loop.span(range(first, first + 1)), group, box[0], form, model, mesh)
        return jax.tree.map(lambda x: x[0], summary)

    here = fits(compiled, _devices(mesh) if jax.default_backend() == "cpu" else 1)
    return Program(sum(compiling, 0.0), here, epoch)


def _first(split: Split, rows: int) -> Split:
    return jax.tree.map(lambda x: x[:rows], split)


def _time(group: Point, form: str, model: Model, mesh: Mesh | None) -> tuple[float, float | None]:
    """Return the seconds that compiling an epoch takes and those of running it; None where it does not fit."""
    prepared = _program(group, form, model, mesh)
    if not prepared.fits:
        return prepared.compile_seconds, None
    clock = []
    for _ in range(3):  # the first is a little slower
        started = time.perf_counter()
        jax.block_until_ready(prepared.epoch())
        clock.append(time.perf_counter() - started)
    return prepared.compile_seconds, min(clock)


def fits(compiled: Any, sharing: int) -> bool:
    """Whether a program's arrays and workspace fit into its device's memory, which so many devices share."""
    if (asked := held_bytes(compiled)) is None:
        return True
    statistics = jax.local_devices()[0].memory_stats() or {}
    limit = statistics.get("bytes_limit") or (placement.host_bytes() or math.inf) / sharing
    return asked < _MEMORY * limit


def held_bytes(compiled: Any) -> int | None:
    """Return the bytes of a program's arrays and workspace, where XLA tells; an argument given up is counted once."""
    if (need := compiled.memory_analysis()) is None:
        return None
    asked = need.temp_size_in_bytes + need.argument_size_in_bytes + need.output_size_in_bytes
    return asked - need.alias_size_in_bytes


def _init_all(group: Point, form: str, model: Model, mesh: Mesh | None) -> LearnerState:
    def one(point: Point) -> LearnerState:
        return point.learner.init(loop.init_key(point.key), model, point.variables, point.split)

    return _spread(one, form, mesh)(group)


def _epochs_of_all(
    span: Int[Array, "2"],
    group: Point,
    state: LearnerState,
    form: str,
    model: Model,
    mesh: Mesh | None,
    feeding: Feeding = STEPWISE,
) -> tuple[LearnerState, loop.Summary]:
    """Take some epochs of every point, and return summaries of [epochs, points]."""
    batch_mesh = mesh if mesh is not None and BATCH in mesh.axis_names else None

    def one(inputs: tuple[Point, LearnerState]) -> tuple[LearnerState, loop.Summary]:
        key, learner, _, split = inputs[0]
        return loop.epochs(key, learner, model, inputs[1], split, span, mesh=batch_mesh, feeding=feeding)

    state, summary = _spread(one, form, mesh)((group._replace(variables=None), state))
    return state, jax.tree.map(jnp.transpose, summary)


_init = compilation.jit(_init_all, static_argnums=(1, 2, 3))
_epochs = compilation.jit(_epochs_of_all, static_argnums=(3, 4, 5, 6), donate_argnums=2)


def _spread(one: Callable[[Any], Any], form: str, mesh: Mesh | None) -> Callable[[Any], Any]:
    """Return the function of one point as a function of all: each device computes its own, in the given form.

    `jax.shard_map`, because a `jax.vmap` over points turns convolutions into grouped ones, which the partitioner would
    compute whole on every device.
    """

    def mapped(points: Any) -> Any:
        if form == VMAP:
            return jax.vmap(one)(points)
        return jax.lax.map(one, points, batch_size=None if form == LOOP else int(form.removeprefix("map:")))

    if mesh is None:
        return mapped
    spec = PartitionSpec(POINT)
    return jax.shard_map(mapped, mesh=mesh, in_specs=spec, out_specs=spec, axis_names={POINT}, check_vma=False)


def _devices(mesh: Mesh | None) -> int:
    return 1 if mesh is None else mesh.shape[POINT]


def _stack(leaves: Sequence[Any]) -> Array | np.ndarray:
    """Stack keys on the device and everything else on the host, where there is room."""
    if isinstance(leaves[0], jax.Array) and jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
        return jnp.stack(leaves)
    return np.stack([np.asarray(leaf, jnp.result_type(leaf)) for leaf in leaves])


def _place(tree: Any, mesh: Mesh | None) -> Any:
    """Copy a tree to its devices, filled up with repetitions of the last point; the epoch consumes a state."""

    def filled(x: Any) -> Array:
        missing = -x.shape[0] % _devices(mesh)
        return jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)]) if missing else jnp.array(x)

    return jax.device_put(
        jax.tree.map(filled, tree), None if mesh is None else NamedSharding(mesh, PartitionSpec(POINT))
    )


def _outcome(
    state: LearnerState, history: Sequence[Any], index: int, learner: Learner, count: int
) -> Trained | loop.Diverged:
    rows = list(_rows_of(history, index, count))
    for row in rows:
        if not math.isfinite(row.loss):
            return loop.diverged(row.epoch, len(rows), learner)
    return Trained(jax.tree.map(lambda x: x[index, ...], state), rows)


def _rows_of(history: Sequence[Any], index: int, count: int) -> Iterator[loop.Epoch]:
    for row in history:
        loss, accuracy, spent = (column[index] for column in (row.loss, row.accuracy, row.gradient_evaluations))
        yield loop.Epoch(row.epoch, loss, accuracy, spent, row.seconds / count, row.compile_seconds / count)


def _mean(row: Any) -> loop.Epoch:
    alive = [index for index, loss in enumerate(row.loss) if math.isfinite(loss)]
    loss, accuracy = (statistics.fmean(column[index] for index in alive) for column in (row.loss, row.accuracy))
    return row._replace(loss=loss, accuracy=accuracy, gradient_evaluations=sum(row.gradient_evaluations))
