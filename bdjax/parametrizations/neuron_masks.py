"""Weights are frozen; one factor for each neuron is tuned."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from bdjax import optim, pytree, structure
from bdjax.checks import InputError, non_negative, unit_interval
from bdjax.optim._checks import check_each
from bdjax.types import Frozen, HParam, Model, Params, Tuned, Variables


@pytree.dataclass
class NeuronMasks:
    """γ(m) = m ⊙ γ̄ for the scale γ̄ of every batch norm but the first, with m = 1 at the start and μ(l) ≤ m ≤ 1.

    With ``first`` that of the first batch norm is masked too; with ``shifts`` the shifts (and biases) of what is masked
    have factors too, which are held at 1: noise on the tuned values is then noise on both.

    μ(l) = α exp(−β l), where l = 1, 2, … counts the masked layers in execution order: early layers stay near 1, deep
    ones are nearly free, and no neuron can vanish unless α = 0. The shifts of the batch norms are not masked. A factor
    on the convolution *before* a batch norm would be undone by the normalization, hence the scale.

    In a network without batch norm the scales of its other norms (layer norm, say) are masked, and the output filters
    of all kernels but the classifier's; of both together not the first. Biases are not masked.

    Attributes:
      alpha, beta: α in [0, 1] and β ≥ 0 of the lower bound.
      first, shifts: as above.
    """

    alpha: HParam = 0.8
    beta: HParam = 0.5
    first: bool = pytree.static(default=False)
    shifts: bool = pytree.static(default=False)

    def init(self, model: Model, variables: Variables) -> tuple[Tuned, Frozen]:
        """Return masks of ones under their layers' paths; and the frozen parameters with each layer's l.

        Raises:
          InputError: α or β is out of range, or the network has nothing to mask.
        """
        check_each(unit_interval, alpha=self.alpha)
        check_each(non_negative, beta=self.beta)
        params = structure.flat(variables["params"])
        layers = self._layers(model, variables)
        if not layers:
            least = "two batch norms or three kernels at least"
            if self.first:
                least = "a batch norm or two kernels at least"
            raise InputError(f"the network must have {least}, else there is no mask.")
        masks: dict[structure.Path, Array] = {}
        depth: dict[structure.Path, Array] = {}
        for number, path in enumerate(layers, 1):
            shift = (*path[:-1], "bias")
            tuned = [path, shift] if self.shifts and shift in params else [path]
            for each in tuned:
                masks[each] = jnp.ones_like(params[each], shape=params[each].shape[-1:])
                depth[each] = jnp.float32(number)
        frozen = {"params": variables["params"], "depth": structure.nested(depth)}
        return structure.nested(masks), frozen

    def apply(self, tuned: Tuned, frozen: Frozen) -> Params:
        """Return the parameters with the masked neurons scaled."""
        return structure.scaled(frozen["params"], structure.flat(tuned))

    def factored(self, tuned: Tuned, frozen: Frozen) -> Params:
        """Return the same."""
        return self.apply(tuned, frozen)

    def constraint(self, frozen: Frozen) -> optax.GradientTransformation:
        """Return the projection to [μ(l), 1], and of the factors of shifts to 1."""
        lower: dict[structure.Path, Float[Array, ""]] = {}
        for path, depth in structure.flat(frozen["depth"]).items():
            bound = self.alpha * jnp.exp(-self.beta * depth)
            lower[path] = jnp.ones_like(bound) if is_shift(path) else bound
        return optim.project(structure.nested(lower), 1.0)

    def _layers(self, model: Model, variables: Variables) -> list[structure.Path]:
        if scales := structure.batch_norms(model, variables):
            return scales if self.first else scales[1:]
        # Which would undo a factor on the kernel before it
        if structure.keeps_variances(variables):
            wanted = "have scales to be masked (use_scale=True)"
            raise InputError(f"the network's batch norms must {wanted}.")
        params, last = variables["params"], structure.classifier(model, variables)
        units = {**structure.kernels(params), **structure.norm_scales(params)}
        order = [path for path in structure.execution_order(model, variables) if path in units]
        return [path for path in (order if self.first else order[1:]) if path != last]


def is_shift(path: structure.Path) -> bool:
    """Return whether a factor is that of a shift or bias, which is no mask."""
    return path[-1] == "bias"
