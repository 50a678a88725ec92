"""Learning-rate schedules with PyTorch's semantics, their hyper-parameters traced."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from bdjax.checks import below_one, integer, positive
from bdjax.optim._checks import check_each
from bdjax.types import HParam


def cosine(count: Int[Array, ""], period: HParam) -> Float[Array, ""]:
    """Return the factor (1 + cos(π t / T)) / 2 after ``count`` = t of ``period`` = T units.

    As PyTorch's CosineAnnealingLR with η_min = 0 it climbs back after T; `optax.cosine_decay_schedule` stays at 0.

    Raises:
      InputError: a period that is not above 0.
    """
    check_each(positive, period=period)
    return 0.5 * (1 + jnp.cos(jnp.pi * count / period))


def step(count: Int[Array, ""], size: HParam, factor: HParam) -> Float[Array, ""]:
    """Return factor^⌊t / size⌋, as PyTorch's StepLR.

    Raises:
      InputError: a size or a factor that is not above 0.
    """
    check_each(positive, size=size, factor=factor)
    return jnp.asarray(factor, jnp.float32) ** (count // size)


class PlateauState(NamedTuple):
    """The state of `reduce_on_plateau`."""

    scale: Float[Array, ""]
    best: Float[Array, ""]
    bad_epochs: Int[Array, ""]
    loss_sum: Float[Array, ""]
    steps: Int[Array, ""]


def reduce_on_plateau(
    steps_per_epoch: Int[Array, ""] | int,
    *,
    factor: HParam = 0.1,
    patience: int = 10,
    threshold: HParam = 1e-4,
) -> optax.GradientTransformationExtraArgs:
    """Scale updates by a factor that falls when the epoch's mean loss stops improving, as PyTorch's ReduceLROnPlateau.

    An epoch is good if its mean loss is below best · (1 − threshold). After more than ``patience`` bad epochs in a row
    the scale is multiplied by ``factor``, from the next epoch on. ``update`` takes the keyword ``value``, the batch's
    loss.

    Unlike `optax.contrib.reduce_on_plateau`, the epoch's length may be traced, the new scale waits for the epoch's
    end, and one more bad epoch is allowed (a constant loss lowers the rate after the 12th epoch, not the 11th).

    Raises:
      InputError: a value out of range.
    """
    check_each(functools.partial(integer, 1), steps_per_epoch=steps_per_epoch)
    check_each(positive, factor=factor)
    integer(patience=patience)
    check_each(below_one, threshold=threshold)

    def init(params: optax.Params) -> PlateauState:
        del params
        # Not weakly typed: a state of another type would be compiled for again
        best = jnp.full((), jnp.inf, float)
        return PlateauState(jnp.ones(()), best, jnp.int32(0), jnp.zeros(()), jnp.int32(0))

    def update(
        updates: optax.Updates,
        state: PlateauState,
        params: optax.Params | None = None,
        *,
        value: Array,
        **extra: object,
    ) -> tuple[optax.Updates, PlateauState]:
        del params, extra
        scaled = jax.tree.map(lambda g: g * state.scale.astype(g.dtype), updates)
        loss_sum, steps = state.loss_sum + value, state.steps + 1
        ended = steps >= steps_per_epoch
        mean = loss_sum / steps
        good = mean < state.best * (1 - threshold)
        bad_epochs = jnp.where(good, 0, state.bad_epochs + 1)
        lower = bad_epochs > patience
        after = PlateauState(
            scale=jnp.where(lower, state.scale * factor, state.scale),
            best=jnp.where(good, mean, state.best),
            bad_epochs=jnp.where(lower, 0, bad_epochs),
            loss_sum=jnp.zeros(()),
            steps=jnp.int32(0),
        )
        during = state._replace(loss_sum=loss_sum, steps=steps)
        return scaled, jax.tree.map(lambda a, b: jnp.where(ended, a, b), after, during)

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))
