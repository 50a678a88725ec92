"""What an optax chain in supervised learning is made from, and what can be made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, cast, runtime_checkable

import optax
from jaxtyping import Array, Float, Int, Key

from bdjax import optim, pytree
from bdjax.curvature import fisher
from bdjax.types import HParam, Spec, Split

# (what is tuned, (input at rest, label)) → −log p(label|input), the network in evaluation mode
ExampleLoss: TypeAlias = Callable[[Any, tuple[Array, Array]], Float[Array, ""]]


class Setting(NamedTuple):
    """What a chain may know. It is made anew for every step, so that what lasts is in the chain's state.

    Attributes:
      spec: of the data.
      rows: how many examples there are.
      steps_per_epoch: how many steps, and so gradient evaluations, one pass over them takes.
      sgd: weight decay, momentum and the learning rate: what ends a chain.
      rate: steps taken → the learning rate over the base rate, as the schedule says.
      example_loss_fn: the loss of one example.
      split: all examples, where the state is made; None in a step. Only ``init`` may need it.
    """

    spec: Spec
    rows: Int[Array, ""]
    steps_per_epoch: Int[Array, ""]
    sgd: optax.GradientTransformationExtraArgs
    rate: Callable[[Int[Array, ""]], Float[Array, ""]]
    example_loss_fn: ExampleLoss
    split: Split | None = None


@runtime_checkable
class Transformation(Protocol):
    """How a gradient becomes a step: a `bdjax.pytree.dataclass`, whose floats are leaves, that makes a chain.

    ``update`` of the chain is given the keywords ``grad_fn`` (of the batch's training loss, at other
    parameters; statistics are dropped), ``value`` (the loss), ``batch`` (augmented), ``key`` and
    ``example_loss_fn``.
    """

    def __call__(self, setting: Setting, /) -> optax.GradientTransformationExtraArgs: ...


@pytree.dataclass
class PlainSgd:
    """The gradient as it is."""

    def __call__(self, setting: Setting, /) -> optax.GradientTransformationExtraArgs:
        """Return weight decay, momentum and the learning rate."""
        return setting.sgd


def batch_fisher_trace(
    eta: HParam, every: int = 10, estimator: str = "sign_sketch", chunk: int = 32
) -> optax.GradientTransformationExtraArgs:
    """Return `bdjax.optim.fisher_trace` of the step's own batch, as its ``update`` is given it.

    Args:
      eta: weight of the trace.
      every: steps from one penalty to the next.
      estimator: how the trace is estimated (`bdjax.curvature.fisher.trace_gradient`).
      chunk: examples whose gradients are in memory at once.
    """
    penalty = optim.fisher_trace(eta, every)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        example_loss_fn: ExampleLoss,
        batch: Split,
        key: Key[Array, ""],
        **extra: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra

        def trace_grad_fn(at: Any) -> Any:
            examples = (batch.input, batch.label)
            return fisher.trace_gradient(
                example_loss_fn, at, examples,
                estimator=estimator, key=key, valid=batch.valid, chunk=chunk,
            )  # fmt: skip

        return penalty.update(updates, state, params, trace_grad_fn=trace_grad_fn)

    return optax.GradientTransformationExtraArgs(penalty.init, cast(Any, update))
