"""Weights are frozen but for the singular values of every kernel."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import optax
from jaxtyping import Array, Float

from bdjax import pytree, structure
from bdjax.structure import FactoredKernel
from bdjax.types import Frozen, Model, Params, Tuned, Variables


@pytree.dataclass
class SingularValues:
    """M(δ) = U diag(relu(σ + δ)) Vᵀ for every kernel, M̄ = U diag(σ) Vᵀ its thin decomposition, with δ = 0 at the start.

    M̄ has one row for each output filter: [h, w, in, out] is read as [out, h·w·in]. A kernel that is several side by
    side, as attention's to queries, keys and values (`bdjax.structure.fused`), is as many matrices: U has their vectors
    in blocks. U, V, σ, norms and biases are frozen. It is computed as M̄ + U diag(relu(σ + δ) − σ) Vᵀ, which is M̄ to the
    bit at δ = 0. The derivative of relu at 0 is 0, so a singular value that is zero, or was pushed there, has no
    gradient.

    References:
      SFT paper (Karim et al.), sec. 4.2, with its scale s = 1.
    """

    def init(self, model: Model, variables: Variables) -> tuple[Tuned, Frozen]:
        """Return zeros, min(out, h·w·in) under each kernel's path, and the frozen parameters with U, σ, V."""
        several = structure.fused(model, variables)
        factors: dict[structure.Path, FactoredKernel] = {}
        shifts: dict[structure.Path, Array] = {}
        for path, kernel in structure.kernels(variables["params"]).items():
            factors[path] = _side_by_side(kernel, several.get(path, (kernel.shape[-1],)))
            shifts[path] = jnp.zeros_like(factors[path].scale)
        frozen = {"params": variables["params"], "factors": structure.nested(factors)}
        return structure.nested(shifts), frozen

    def apply(self, tuned: Tuned, frozen: Frozen) -> Params:
        """Return the parameters with all kernels multiplied out."""
        params = structure.flat(frozen["params"])
        factors = structure.flat(frozen["factors"])
        for path, shift in structure.flat(tuned).items():
            kernel = factors[path]
            change = dataclasses.replace(kernel, scale=_shifted(kernel.scale, shift) - kernel.scale)
            params[path] = params[path] + change.multiplied().astype(params[path].dtype)
        return structure.nested(params)

    def factored(self, tuned: Tuned, frozen: Frozen) -> Params:
        """Return the parameters with all kernels as `FactoredKernel`, for gradients of single examples."""
        params = structure.flat(frozen["params"])
        factors = structure.flat(frozen["factors"])
        for path, shift in structure.flat(tuned).items():
            kernel = factors[path]
            params[path] = dataclasses.replace(kernel, scale=_shifted(kernel.scale, shift))
        return structure.nested(params)

    def constraint(self, frozen: Frozen) -> optax.GradientTransformation:
        """Return no constraint; relu keeps the singular values non-negative."""
        del frozen
        return optax.identity()


def _shifted(scale: Float[Array, " r"], shift: Float[Array, " r"]) -> Float[Array, " r"]:
    return jax.nn.relu(scale + shift)


def _side_by_side(kernel: Float[Array, "*window out"], widths: tuple[int, ...]) -> FactoredKernel:
    """Return V, σ, U of kernels that stand side by side with so many filters, each decomposed on its own."""
    if len(widths) == 1:
        return _decomposed(kernel)
    ends = list(itertools.accumulate(widths))[:-1]
    parts = [_decomposed(part) for part in jnp.split(kernel, ends, -1)]
    v = jnp.concatenate([part.v for part in parts], -1)
    scale = jnp.concatenate([part.scale for part in parts])
    return FactoredKernel(v, scale, jax.scipy.linalg.block_diag(*[part.u for part in parts]))


def _decomposed(kernel: Float[Array, "*window out"]) -> FactoredKernel:
    rows = kernel.reshape(-1, kernel.shape[-1]).T
    u, scale, vt = jnp.linalg.svd(rows, full_matrices=False)
    # What is left by rounding is no direction: a filter that was pruned to zero must not grow again.
    scale = jnp.where(scale > jnp.finfo(scale.dtype).eps * max(rows.shape) * scale[0], scale, 0)
    return FactoredKernel(vt.T.reshape(*kernel.shape[:-1], -1), scale, u)
