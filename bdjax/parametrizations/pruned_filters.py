"""Weights are frozen; each layer's filters are kept or set to zero."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from bdjax import pytree, structure
from bdjax.checks import InputError
from bdjax.types import Frozen, Model, Params, Tuned, Variables


@pytree.dataclass
class PrunedFilters:
    """W(k) = W̄ ⊙ k and b(k) = b̄ ⊙ k along the output filters of every convolution, with k = 1 at the start.

    A zeroed filter makes its channel constant, not zero, where a norm follows. The classifier's filters are the classes
    and stay, also where it is a convolution. In a network without convolutions, or with none but its first layer, the
    filters are those of all layers (`bdjax.structure.filters`).
    """

    def init(self, model: Model, variables: Variables) -> tuple[Tuned, Frozen]:
        """Return ones under the layers' paths, and the frozen parameters.

        Raises:
          InputError: the network is its classifier alone.
        """
        found = structure.filters(model, variables)
        if not found:
            wanted = "a layer before its classifier, else there is no filter to prune"
            raise InputError(f"the network must have {wanted}.")
        kept = {path: jnp.ones(kernel.shape[-1], kernel.dtype) for path, kernel in found.items()}
        return structure.nested(kept), variables["params"]

    def apply(self, tuned: Tuned, frozen: Frozen) -> Params:
        """Return the parameters with the filters scaled."""
        kept = structure.flat(tuned)
        factors = dict(kept)
        for path, value in kept.items():
            factors[(*path[:-1], "bias")] = value
        return structure.scaled(frozen, factors)

    def factored(self, tuned: Tuned, frozen: Frozen) -> Params:
        """Return the same."""
        return self.apply(tuned, frozen)

    def constraint(self, frozen: Frozen) -> optax.GradientTransformation:
        """Return no constraint."""
        del frozen
        return optax.identity()
