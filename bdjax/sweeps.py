"""Grids of hyper-parameters as values: one attack or defense whose floats carry a leading axis."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from bdjax import defenses
from bdjax.checks import RUNS, InputError
from bdjax.defenses import Defense, DefenseStage, Given
from bdjax.train import batches, group, loop
from bdjax.types import Model, Split, TriggerSource, Variables

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Sweep(Generic[T]):
    """An attack or a defense at several settings; ``points`` is a tree like one of them, with a leading axis [k].

    Attributes:
      points: to be mapped over: ``jax.vmap(lambda attack: poison_train(key, attack, state, split))(sweep.points)``.
      settings: what each point was made from, in order.
    """

    points: T
    settings: tuple[Mapping[str, float], ...]

    def __len__(self) -> int:
        return len(self.settings)

    def __getitem__(self, index: int) -> T:
        """Return one point."""
        return jax.tree.map(lambda x: x[index], self.points)


def grid(create: Callable[..., T], **axes: Sequence[float]) -> Sweep[T]:
    """Create the product of all axes, the last one fastest, as one object.

    >>> import functools
    >>> from bdjax import defenses, sweeps
    >>> sweep = sweeps.grid(functools.partial(defenses.create, "ft_sam", epochs=5), rho=[0.5, 1.0, 2.0])
    >>> len(sweep), sweep.settings[2]
    (3, {'rho': 2.0})

    Args:
      create: a function of the axes, which checks their values.
      axes: the values of each argument of ``create`` that is swept: floats, nothing structural.

    Raises:
      InputError: no axis, an axis without values or with a repeated one, a value that ``create`` refuses, or an axis
        that changes more than numbers (``epochs``, say: its points would be other programs).
    """
    if not axes:
        raise InputError("grid needs an axis, such as rho=[0.5, 1, 2].")
    check_axes(axes)
    settings: list[dict[str, float]] = []
    for values in itertools.product(*axes.values()):
        settings.append(dict(zip(axes, values, strict=True)))
    points = [create(**setting) for setting in settings]
    for setting, point in zip(settings, points, strict=True):
        if jax.tree.structure(point) != jax.tree.structure(points[0]):
            changed = [name for name in axes if setting[name] != settings[0][name]]
            raise InputError(
                f"{' or '.join(changed)} cannot be an axis: it changes the program, not a number in it."
            )
    return Sweep(
        jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *points),
        tuple(settings),
    )


def check_axes(axes: Mapping[str, Sequence[object]]) -> None:
    """Refuse axes that are no grid.

    Raises:
      InputError: an axis without values or with one that stands twice, or more points than a sweep may have.
    """
    points = math.prod(map(len, axes.values()))
    if points > RUNS:
        sizes = " × ".join(f"{len(values)} of {name}" for name, values in axes.items())
        raise InputError(f"a sweep must have at most {RUNS} points, got {points}: {sizes}.")
    for name, values in axes.items():
        if not values:
            raise InputError(f"{name} needs at least one value.")
        seen = set()
        for value in values:
            # An array is not hashable.
            plain = value.item() if isinstance(value, np.ndarray | jax.Array) else value
            if plain in seen:
                raise InputError(f"{name} has the value {value!r} twice.")
            seen.add(plain)


def purify(
    keys: Key[Array, " s"],
    sweep: Sweep[Defense],
    model: Model,
    variables: Variables,
    holdout: Split,
    *,
    trigger: TriggerSource | None = None,
    training: Split | None = None,
    form: str = group.AUTO,
    mesh: Mesh | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[list[loop.Result | loop.Diverged]]:
    """Purify one network at every setting and with every key: what `bdjax.defenses.purify` does at each, at once.

    Args:
      keys: one for each seed, or a single one.
      sweep: of `grid`.
      model: the suspect network.
      variables: its parameters and statistics.
      holdout: the defender's clean images.
      trigger, training: as for `bdjax.defenses.run`.
      form: of `bdjax.train.group.run`, or ``auto``: what is fastest in a few steps.
      mesh: of `bdjax.train.group.point_mesh`, over several devices.
      should_stop: asked after each epoch; nothing is kept of what was not finished.

    Returns:
      A list for each setting, with a result for each key. A point that diverged does not spoil the others.

    Raises:
      InputError: as `bdjax.defenses.purify`, or an unknown form.
      bdjax.train.loop.Stopped: as asked.
    """
    points = [defenses.of(sweep[number]) for number in range(len(sweep))]
    given = Given(holdout, trigger, training)
    defenses.check(points[0], given)
    keys = jnp.atleast_1d(keys)
    places = list(itertools.product(range(len(sweep)), range(keys.shape[0])))
    results: list[loop.Result | loop.Diverged] = [loop.Result(variables, []) for _ in places]
    for number in range(len(points[0].stages)):
        alive: dict[int, loop.Result] = {}
        stage_points = []
        for place, ((setting, seed), before) in enumerate(zip(places, results, strict=True)):
            if isinstance(before, loop.Diverged):
                continue
            alive[place] = before
            key, stage = defenses.stage_key(keys[seed], number), points[setting].stages[number]
            stage_points.append(_point(key, stage, model, before.variables, given))
        if not alive:
            break
        chosen = form
        if form == group.AUTO:
            chosen = group.choose(stage_points, model, mesh).form
        outcomes = group.run(stage_points, model, form=chosen, mesh=mesh, should_stop=should_stop)
        for place, point, outcome in zip(alive, stage_points, outcomes, strict=True):
            if isinstance(outcome, loop.Diverged):
                results[place] = outcome
                continue
            results[place] = outcome.result(point, model, alive[place].history)
    return [
        results[start : start + keys.shape[0]] for start in range(0, len(results), keys.shape[0])
    ]


def _point(
    key: Key[Array, ""], stage: DefenseStage, model: Model, variables: Variables, given: Given
) -> group.Point:
    """Return a stage as it is trained with others."""
    learner, split = defenses.handed(stage, given)
    batches.check(learner, split, "training" if stage.sees == defenses.TRAINING else "holdout")
    batches.tell(learner, split)
    return group.Point(key, learner, stage.begin(key, model, variables), loop.valid_rows(split))
