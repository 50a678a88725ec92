"""All weights are tuned but those that were pruned, which stay zero."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bdjax import pytree, structure
from bdjax.types import Model, Variables


@pytree.dataclass
class KeptZeros:
    """θ(φ) = φ where the weight was not zero at the start, else 0.

    Weights are kernels and batch-norm scales: what pruning sets to zero and training never does. A pruned weight has
    no gradient, and so neither momentum, decay nor a share in SAM's perturbation.
    """

    def init(self, model: Model, variables: Variables) -> tuple[Any, Any]:
        """Return the parameters, and which of them may move."""
        del model
        flat = structure.flat(variables["params"])
        kept = {path: leaf != 0 if path[-1] in ("kernel", "scale") else jnp.bool_(True) for path, leaf in flat.items()}
        return variables["params"], structure.nested(kept)

    def apply(self, tuned: Any, frozen: Any) -> Any:
        """Return the tuned values with the pruned ones at zero."""
        return jax.tree.map(lambda value, kept: jnp.where(kept, value, 0), tuned, frozen)

    def factored(self, tuned: Any, frozen: Any) -> Any:
        """Return the same."""
        return self.apply(tuned, frozen)

    def constraint(self, frozen: Any) -> optax.GradientTransformation:
        """Return no constraint; a pruned weight does not count, wherever its value goes."""
        del frozen
        return optax.identity()
