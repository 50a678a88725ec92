"""All weights are tuned."""

from __future__ import annotations

import optax

from bdjax import pytree
from bdjax.types import Frozen, Model, Params, Tuned, Variables


@pytree.dataclass
class Identity:
    """θ(φ) = φ."""

    def init(self, model: Model, variables: Variables) -> tuple[Tuned, Frozen]:
        """Return the parameters, and nothing that is frozen."""
        del model
        return variables["params"], ()

    def apply(self, tuned: Tuned, frozen: Frozen) -> Params:
        """Return the tuned values."""
        del frozen
        return tuned

    def factored(self, tuned: Tuned, frozen: Frozen) -> Params:
        """Return the tuned values."""
        return self.apply(tuned, frozen)

    def constraint(self, frozen: Frozen) -> optax.GradientTransformation:
        """Return no constraint."""
        del frozen
        return optax.identity()
