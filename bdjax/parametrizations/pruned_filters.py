"""Weights are frozen; each convolution's filters are kept or set to zero."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from bdjax import pytree, structure
from bdjax.checks import InputError
from bdjax.types import Model, Variables


@pytree.dataclass
class PrunedFilters:
    """W(k) = W̄ ⊙ k and b(k) = b̄ ⊙ k along the output filters of every convolution, with k = 1 at the start.

    A zeroed filter makes its channel constant, not zero, where a batch norm follows. Where the classifier is a
    convolution, its filters are the classes and stay.
    """

    def init(self, model: Model, variables: Variables) -> tuple[Any, Any]:
        """Return ones under the convolutions' paths, and the frozen parameters."""
        found = structure.convolutions(variables["params"])
        if not found or set(found) == {structure.classifier(model, variables)}:
            raise InputError("the network must have a convolution before its classifier, else there is none to prune.")
        found.pop(structure.classifier(model, variables), None)
        kept = {path: jnp.ones(kernel.shape[-1], kernel.dtype) for path, kernel in found.items()}
        return structure.nested(kept), variables["params"]

    def apply(self, tuned: Any, frozen: Any) -> Any:
        """Return the parameters with the filters scaled."""
        kept = structure.flat(tuned)
        biases = {(*path[:-1], "bias"): value for path, value in kept.items()}
        return structure.scaled(frozen, {**kept, **biases})

    def factored(self, tuned: Any, frozen: Any) -> Any:
        """Return the same."""
        return self.apply(tuned, frozen)

    def constraint(self, frozen: Any) -> optax.GradientTransformation:
        """Return no constraint."""
        del frozen
        return optax.identity()
