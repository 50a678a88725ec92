"""What happens to a gradient before SGD sees it: nothing, sharpness-aware minimization, the Fisher-trace penalty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

from jaxtyping import Array, Key

from bdjax import optim, pytree
from bdjax.curvature import fisher
from bdjax.optim.fisher_trace import FisherTraceState
from bdjax.types import HParam, Split


class Context(NamedTuple):
    """What a gradient rule may ask for besides the gradient. ``tuned`` is what the parametrization tunes."""

    key: Key[Array, ""]
    batch: Split  # images in [0, 1], augmented
    grad_fn: Callable[[Any], Any]  # tuned → gradient of the batch's training loss; statistics are dropped
    example_loss_fn: Callable[[Any, Any], Array]  # (tuned, (image, label)) → −log p(label|image), evaluation mode
    rate: Callable[[Array], Array]  # steps taken → learning rate over the base rate


@runtime_checkable
class GradientRule(Protocol):
    """What happens to the gradient before SGD sees it: a frozen dataclass whose floats are leaves.

    Both methods also tell what they cost beyond the gradient that ``update`` is given: ``init`` in passes over the
    split, forward and backward, ``update`` in gradient evaluations.
    """

    def init(
        self, tuned: Any, example_loss_fn: Callable[[Any, Any], Array], split: Split, num_classes: int
    ) -> tuple[Any, int]:
        """Return the state before the first step, with what is computed once, over the whole split."""
        ...

    def update(self, grads: Any, state: Any, tuned: Any, context: Context) -> tuple[Any, Any, Any]:
        """Return the new gradient and the new state, and the number of further gradient evaluations."""
        ...


@pytree.dataclass
class PlainGradient:
    """The gradient as it is."""

    def init(self, tuned: Any, example_loss_fn: Any, split: Split, num_classes: int) -> tuple[Any, int]:
        """Return no state."""
        del tuned, example_loss_fn, split, num_classes
        return (), 0

    def update(self, grads: Any, state: Any, tuned: Any, context: Context) -> tuple[Any, Any, Any]:
        """Return the gradient."""
        del tuned, context
        return grads, state, 0


@pytree.dataclass
class Perturbed:
    """The gradient at θ + ε, ε the worst perturbation of radius ρ: `bdjax.optim.sam`."""

    rho: HParam
    rho_min: HParam | None = None
    adaptive: bool = pytree.static(default=True)

    def init(self, tuned: Any, example_loss_fn: Any, split: Split, num_classes: int) -> tuple[Any, int]:
        """Return the transformation's state."""
        del example_loss_fn, split, num_classes
        return optim.sam(self.rho).init(tuned), 0

    def update(self, grads: Any, state: Any, tuned: Any, context: Context) -> tuple[Any, Any, Any]:
        """Return the gradient of the same batch at the perturbed parameters: one evaluation more."""

        def radius(step: Array) -> Array:
            return self.rho_min + (self.rho - self.rho_min) * context.rate(step)

        sam = optim.sam(self.rho if self.rho_min is None else radius, adaptive=self.adaptive)
        return *sam.update(grads, state, tuned, grad_fn=context.grad_fn), 1


@pytree.dataclass
class FisherTrace:
    """g + η_F ∇Tr F(θ) on every ``every``-th step: `bdjax.optim.fisher_trace`, of the batch."""

    eta_f: HParam
    every: int = pytree.static(default=10)
    estimator: str = pytree.static(default="sign_sketch")
    chunk: int = pytree.static(default=32)

    def init(self, tuned: Any, example_loss_fn: Any, split: Split, num_classes: int) -> tuple[Any, int]:
        """Return the transformation's state."""
        del example_loss_fn, split, num_classes
        return optim.fisher_trace(self.eta_f, self.every).init(tuned), 0

    def update(self, grads: Any, state: FisherTraceState, tuned: Any, context: Context) -> tuple[Any, Any, Any]:
        """Add the gradient of the trace, which, a gradient of gradients, counts as three evaluations."""
        image, label, valid = context.batch

        def trace_grad_fn(at: Any) -> Any:
            return fisher.trace_gradient(
                context.example_loss_fn, at, (image, label),
                estimator=self.estimator, key=context.key, valid=valid, chunk=self.chunk,
            )  # fmt: skip

        penalty = optim.fisher_trace(self.eta_f, self.every)
        grads, counted = penalty.update(grads, state, tuned, trace_grad_fn=trace_grad_fn)
        return grads, cast(FisherTraceState, counted), 3 * ((state.step + 1) % self.every == 0)
