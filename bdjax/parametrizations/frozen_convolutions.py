"""Weights are tuned but for the kernels of the last convolutions."""

from __future__ import annotations

import optax

from bdjax import pytree, structure
from bdjax.checks import InputError, integer
from bdjax.types import Frozen, Model, Params, Tuned, Variables


@pytree.dataclass
class FrozenConvolutions:
    """The kernels of the last N convolutions, in execution order, stay as they are; all else is tuned.

    Batch norms, biases and the classifier are tuned in every layer. In PreAct-ResNet18 the last five are those of its
    last stage, the shortcut's included.

    Attributes:
      last: N.

    References:
      NFT's supplement, table 13, which does not say what becomes of batch norm and the classifier.
    """

    last: int = pytree.static(default=1)

    def init(self, model: Model, variables: Variables) -> tuple[Tuned, Frozen]:
        """Return the parameters without the frozen kernels, and those.

        Raises:
          InputError: N is negative, or more than the network computes with.
        """
        integer(last=self.last)
        params = structure.flat(variables["params"])
        found = structure.convolutions(variables["params"])
        # Without those that are kept for a file only, as of auxiliary heads
        order = [path for path in structure.execution_order(model, variables) if path in found]
        if self.last > len(order):
            most = f"{len(order)}, the number of convolutions"
            raise InputError(f"frozen_convolutions must be at most {most}; got {self.last}.")
        frozen = {path: params.pop(path) for path in order[len(order) - self.last :]}
        return structure.nested(params), structure.nested(frozen)

    def apply(self, tuned: Tuned, frozen: Frozen) -> Params:
        """Return all parameters."""
        return structure.nested(structure.flat(tuned) | structure.flat(frozen))

    def factored(self, tuned: Tuned, frozen: Frozen) -> Params:
        """Return the same."""
        return self.apply(tuned, frozen)

    def constraint(self, frozen: Frozen) -> optax.GradientTransformation:
        """Return no constraint."""
        del frozen
        return optax.identity()
