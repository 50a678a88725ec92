"""Weights are frozen; one factor for each weight of the filters is tuned."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from bdjax import optim, pytree, structure
from bdjax.checks import InputError
from bdjax.types import Frozen, Model, Params, Tuned, Variables


@pytree.dataclass
class WeightMasks:
    """W(m) = W̄ ⊙ m for every weight of every convolution's kernel, with m = 1 at the start and 0 ≤ m ≤ 1.

    The classifier's weights, biases and norms stay, the classifier's also where it is a convolution. In a network
    without convolutions, or with none but its first layer, the kernels of all layers are masked
    (`bdjax.structure.filters`).
    """

    def init(self, model: Model, variables: Variables) -> tuple[Tuned, Frozen]:
        """Return masks of ones under the layers' paths, and the frozen parameters.

        Raises:
          InputError: the network is its classifier alone.
        """
        found = structure.filters(model, variables)
        if not found:
            wanted = "a layer before its classifier, else there is no weight to mask"
            raise InputError(f"the network must have {wanted}.")
        masks = {path: jnp.ones_like(kernel) for path, kernel in found.items()}
        return structure.nested(masks), variables["params"]

    def apply(self, tuned: Tuned, frozen: Frozen) -> Params:
        """Return the parameters with the masked weights scaled."""
        params = structure.flat(frozen)
        for path, mask in structure.flat(tuned).items():
            params[path] = params[path] * mask
        return structure.nested(params)

    def factored(self, tuned: Tuned, frozen: Frozen) -> Params:
        """Return the same."""
        return self.apply(tuned, frozen)

    def constraint(self, frozen: Frozen) -> optax.GradientTransformation:
        """Return the projection to [0, 1]."""
        del frozen
        return optim.project(0.0, 1.0)
