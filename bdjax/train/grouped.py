"""The feeder of several points at once: learners of one structure, in one program.

A point is a learner with its key, its starting variables and its data. What points share is the program: a group is a
tree whose leaves have a leading axis. Points never meet, so between devices nothing is communicated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key

from bdjax.checks import InputError
from bdjax.devices import compilation
from bdjax.devices.sharding import BATCH
from bdjax.train import feeding, programs, states
from bdjax.train.feeding import STEPWISE, Feeding
from bdjax.train.programs import Summary
from bdjax.train.results import GroupEpoch
from bdjax.types import Learner, LearnerState, Model, PartlySavedLearner, Split, Variables

POINT = "point"  # the mesh axis of the points; `bdjax.devices.sharding.BATCH` is the other one
LOOP, VMAP, MAP = "loop", "vmap", "map:"


class Point(NamedTuple):
    """What `bdjax.train.loop.run` is given; in a group, each leaf has a leading axis."""

    key: Key[Array, "..."]
    learner: Learner
    variables: Variables
    split: Split


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
        found = f"got {len(points)} that do not"
        raise InputError(f"points must share one structure, to be one program; {found}.")
    return jax.tree.map(lambda *leaves: _stacked(leaves), *points)


def devices(mesh: Mesh | None) -> int:
    """Return over how many devices points are spread."""
    return 1 if mesh is None else mesh.shape[POINT]


def place(tree: Any, mesh: Mesh | None) -> Any:
    """Copy a group to its devices, filled up with repetitions of the last point; the epoch consumes a state."""

    def filled(x: Any) -> Array:
        missing = -x.shape[0] % devices(mesh)
        if not missing:
            return jnp.array(x)
        return jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)])

    where = None if mesh is None else NamedSharding(mesh, PartitionSpec(POINT))
    return jax.device_put(jax.tree.map(filled, tree), where)


class Grouped:
    """Feeds several points, those of a device in a form of `bdjax.train.group.run`.

    Attributes:
      learner: of all points, stacked.
      most, row: of `bdjax.train.feeder.Feeder`.
    """

    row = GroupEpoch

    def __init__(
        self,
        points: Sequence[Point],
        model: Model,
        *,
        form: str = LOOP,
        mesh: Mesh | None = None,
        prepare: str = feeding.AUTO,
        unroll: int = 1,
    ):
        """Put everything where each call finds it.

        Raises:
          InputError: points of different structure, or an unknown ``prepare`` or ``unroll``.
        """
        stacked, first = stack(points), points[0]
        self.learner, self.most = stacked.learner, programs.most_epochs(first.learner)
        self._count, self._group = len(points), place(stacked, mesh)
        self._model, self._form, self._mesh = model, form, mesh
        here = -(-len(points) // devices(mesh))
        self._feeding = feeding.choose(prepare, unroll, first.learner, first.split, points=here)

    def init(self) -> LearnerState:
        """Return the state before the first epoch."""
        return place(init(self._group, self._form, self._model, self._mesh), self._mesh)

    def advance(self, numbers: range, state: LearnerState) -> tuple[LearnerState, Summary]:
        """Take epochs in a row, in one call; summaries have a row for each, the state is donated."""
        span, program = programs.span(numbers), (self._form, self._model, self._mesh, self._feeding)
        state, summary = epochs(span, self._group, state, *program)
        return state, jax.tree.map(lambda x: x[:, : self._count], jax.device_get(summary))

    def trim(self, state: LearnerState) -> LearnerState:
        """Return the state without the repetitions of the last point."""
        return jax.tree.map(lambda x: x if x.shape[0] == self._count else x[: self._count], state)

    def keep(self, state: LearnerState) -> LearnerState:
        """Return the part of a state that is saved."""
        return self.trim(states.kept(self.learner, state))

    def like(self) -> LearnerState:
        """Return the shapes and types of that part, whatever the form and the mesh."""
        return jax.eval_shape(lambda: self.keep(init_all(self._group, LOOP, self._model, None)))

    def restore(self, kept: LearnerState) -> LearnerState:
        """Return the state of which that was kept."""
        whole = jax.device_get(kept)
        if isinstance(self.learner, PartlySavedLearner):
            program = (self._form, self._model, self._mesh)
            whole = jax.device_get(_restored(self._group, place(whole, self._mesh), *program))
        return place(whole, self._mesh)

    def close(self) -> None:
        """Do nothing: nothing was begun."""


def init_all(group: Point, form: str, model: Model, mesh: Mesh | None) -> LearnerState:
    """Return the state of every point before its first epoch. A pure function."""

    def one(point: Point) -> LearnerState:
        key = programs.init_key(point.key)
        return point.learner.init(key, model, point.variables, point.split)

    return _spread(one, form, mesh)(group)


def epochs_of_all(
    span: Int[Array, "2"],
    group: Point,
    state: LearnerState,
    form: str,
    model: Model,
    mesh: Mesh | None,
    feeding: Feeding = STEPWISE,
) -> tuple[LearnerState, Summary]:
    """Take some epochs of every point, and return summaries of [epochs, points]. A pure function."""
    batch_mesh = mesh if mesh is not None and BATCH in mesh.axis_names else None
    take = functools.partial(programs.epochs, span=span, mesh=batch_mesh, feeding=feeding)

    def one(inputs: tuple[Point, LearnerState]) -> tuple[LearnerState, Summary]:
        (key, learner, _, split), state = inputs
        return take(key, learner, model, state, split)

    state, summary = _spread(one, form, mesh)((group._replace(variables=None), state))
    return state, jax.tree.map(jnp.transpose, summary)


def _restored_all(
    group: Point,
    kept: LearnerState,
    form: str,
    model: Model,
    mesh: Mesh | None,
) -> LearnerState:
    def one(inputs: tuple[Point, LearnerState]) -> LearnerState:
        point, kept = inputs
        return states.restored(point.learner, kept, model, point.variables)

    return _spread(one, form, mesh)((group._replace(split=None), kept))  # type: ignore[arg-type]


init = compilation.jit(init_all, static_argnums=(1, 2, 3))
epochs = compilation.jit(epochs_of_all, static_argnums=(3, 4, 5, 6), donate_argnums=2)
_restored = compilation.jit(_restored_all, static_argnums=(2, 3, 4))


def _spread(one: Callable[[Any], Any], form: str, mesh: Mesh | None) -> Callable[[Any], Any]:
    """Return the function of one point as a function of all: each device computes its own, in the given form.

    `jax.shard_map`, because a `jax.vmap` over points turns convolutions into grouped ones, which the partitioner would
    compute whole on every device.
    """

    def mapped(points: Any) -> Any:
        if form == VMAP:
            return jax.vmap(one)(points)
        together = None if form == LOOP else int(form.removeprefix(MAP))
        return jax.lax.map(one, points, batch_size=together)

    if mesh is None:
        return mapped
    spec = PartitionSpec(POINT)
    return jax.shard_map(
        mapped,
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
        axis_names={POINT},
        check_vma=False,
    )


def _stacked(leaves: Sequence[Any]) -> Array | np.ndarray:
    """Stack keys on the device and everything else on the host, where there is room."""
    if isinstance(leaves[0], jax.Array) and jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
        return jnp.stack(leaves)
    return np.stack([np.asarray(leaf, jnp.result_type(leaf)) for leaf in leaves])
