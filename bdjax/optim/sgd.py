"""Stochastic gradient descent exactly as PyTorch's, with a schedule, as one optax transformation."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from bdjax import pytree
from bdjax.checks import InputError, below_one, in_section, integer, non_negative, one_of, positive
from bdjax.optim import schedules
from bdjax.optim._checks import check_each
from bdjax.types import HParam

KINDS = ("constant", "cosine", "step", "plateau")
UNITS = ("epoch", "step")


@pytree.dataclass
class Schedule:
    """How the learning rate moves. `optim.schedules` has the formulas.

    Attributes:
      kind: ``constant``; ``cosine`` to zero over ``period`` and back; ``step``: times ``factor`` every ``period``;
        ``plateau``: times ``factor`` when the epoch's mean loss has not improved for 10 epochs.
      period: in epochs or steps, as ``per`` says; None is the length of the run (not for ``step``).
      factor: of ``step`` and ``plateau``.
      per: whether the rate is set once an ``epoch`` or at every ``step``.
    """

    kind: Literal["constant", "cosine", "step", "plateau"] = pytree.static(default="constant")
    period: HParam | None = None
    factor: HParam = 0.1
    per: Literal["epoch", "step"] = pytree.static(default="epoch")

    def check(self) -> None:
        """Raise InputError for an unknown kind or unit, or a period or factor that is not above 0."""
        one_of(KINDS, kind=self.kind)
        one_of(UNITS, per=self.per)
        positive(factor=self.factor)
        if self.kind == "step" and self.period is None:
            raise InputError(
                "period must say how many epochs or steps lie between two drops; got None."
            )
        if self.period is not None:
            positive(period=self.period)

    def scale(
        self, step: Int[Array, ""], steps_per_epoch: Int[Array, ""] | int
    ) -> Float[Array, ""]:
        """Return the factor on the base learning rate after ``step`` steps (plateau keeps its own)."""
        count = step // steps_per_epoch if self.per == "epoch" else step
        if self.kind == "cosine":
            return schedules.cosine(count, self.period)
        if self.kind == "step":
            return schedules.step(count, self.period, self.factor)
        return jnp.ones(())


@pytree.dataclass
class Sgd:
    """SGD with momentum and coupled weight decay.

    d = g + λθ;  b ← μ b + d;  θ ← θ − η_t b, on every parameter, batch norm and biases included. The first step has
    b = d. Learning rate η, momentum μ and weight decay λ are leaves.
    """

    learning_rate: HParam
    momentum: HParam = 0.9
    weight_decay: HParam = 0.0
    schedule: Schedule = Schedule()

    def check(self) -> None:
        """Raise InputError for a value out of range."""
        positive(learning_rate=self.learning_rate)
        below_one(momentum=self.momentum)
        non_negative(weight_decay=self.weight_decay)
        with in_section("schedule", ("kind", "per", "factor", "period")):
            self.schedule.check()

    def transformation(
        self, steps_per_epoch: Int[Array, ""] | int
    ) -> optax.GradientTransformationExtraArgs:
        """Return the transformation; a plateau schedule needs the keyword ``value`` (the loss) in its updates.

        Raises:
          InputError: a value out of range; a learning rate of 0, which takes no step, is not.
        """
        check_each(non_negative, learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        check_each(below_one, momentum=self.momentum)
        check_each(functools.partial(integer, 1), steps_per_epoch=steps_per_epoch)
        parts = [optax.add_decayed_weights(self.weight_decay), optax.trace(self.momentum)]
        if self.schedule.kind == "plateau":
            parts.append(schedules.reduce_on_plateau(steps_per_epoch, factor=self.schedule.factor))

        def negative_rate(step: Any) -> Any:
            return -self.learning_rate * self.schedule.scale(step, steps_per_epoch)

        return optax.chain(*parts, optax.scale_by_schedule(negative_rate))
