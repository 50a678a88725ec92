"""All weights are tuned but those that were pruned, which stay zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from bdjax import pytree, structure
from bdjax.types import Frozen, Model, Params, Tuned, Variables

_PRUNED = ("kernel", "scale")  # names of the weights that pruning sets to zero


@pytree.dataclass
class KeptZeros:
    """θ(φ) = φ where the weight was not zero at the start, else 0.

    Weights are kernels and batch-norm scales: what pruning sets to zero and training never does. A pruned weight has
    no gradient, and so neither momentum, decay nor a share in SAM's perturbation.
    """

    def init(self, model: Model, variables: Variables) -> tuple[Tuned, Frozen]:
        """Return the parameters, and which of them may move."""
        del model
        kept: dict[structure.Path, Bool[Array, "..."]] = {}
        for path, leaf in structure.flat(variables["params"]).items():
            kept[path] = leaf != 0 if path[-1] in _PRUNED else jnp.bool_(True)
        return variables["params"], structure.nested(kept)

    def apply(self, tuned: Tuned, frozen: Frozen) -> Params:
        """Return the tuned values with the pruned ones at zero."""
        return jax.tree.map(lambda value, kept: jnp.where(kept, value, 0), tuned, frozen)

    def factored(self, tuned: Tuned, frozen: Frozen) -> Params:
        """Return the same."""
        return self.apply(tuned, frozen)

    def constraint(self, frozen: Frozen) -> optax.GradientTransformation:
        """Return no constraint; a pruned weight does not count, wherever its value goes."""
        del frozen
        return optax.identity()
