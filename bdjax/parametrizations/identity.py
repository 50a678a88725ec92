"""All weights are tuned."""

from __future__ import annotations

from typing import Any

import optax

from bdjax import pytree
from bdjax.types import Model, Variables


@pytree.dataclass
class Identity:
    """θ(φ) = φ."""

    def init(self, model: Model, variables: Variables) -> tuple[Any, Any]:
        """Return the parameters, and nothing that is frozen."""
        del model
        return variables["params"], ()

    def apply(self, tuned: Any, frozen: Any) -> Any:
        """Return the tuned values."""
        del frozen
        return tuned

    def factored(self, tuned: Any, frozen: Any) -> Any:
        """Return the tuned values."""
        return self.apply(tuned, frozen)

    def constraint(self, frozen: Any) -> optax.GradientTransformation:
        """Return no constraint."""
        del frozen
        return optax.identity()
