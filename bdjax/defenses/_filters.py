"""The filters of layers: ranked by a gradient, and taken out one by one."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bdjax import structure
from bdjax.curvature.chunks import accumulate, weighted_sum
from bdjax.defenses._triggered import Images
from bdjax.types import Model, Params, Variables


def saliency(model: Model, variables: Variables, images: Images, chunk: int) -> Params:
    """Return ξ = ‖∂L_u/∂W_i‖₁ / numel(W_i) of every filter, a tree of one array for each kernel.

    L_u is the summed loss on the triggered images, with batch norm in evaluation mode.
    """
    load = model.spec.modality.load

    def loss(params: Params, some: tuple[Array, Array], weight: Array) -> Array:
        image, label = some
        output, _ = model.apply({**variables, "params": params}, load(image))
        return weighted_sum(weight, model.spec.task.loss(output, label))

    def gradient(some: tuple[Array, Array], weight: Array) -> Params:
        return jax.grad(loss)(variables["params"], some, weight)

    grads = accumulate(gradient, (images.triggered, images.label), chunk=chunk)
    found: dict[structure.Path, Array] = {}
    for path, grad in structure.kernels(grads).items():
        found[path] = jnp.abs(grad).mean(tuple(range(grad.ndim - 1)))
    return structure.nested(found)


def without_largest(kept: Any, saliency: Params, params: Params) -> Any:
    """Return the filters that are kept when the one with the largest ξ, of those that are not zero, is taken out."""
    flat, ranked = structure.flat(kept), structure.flat(saliency)
    kernels = structure.kernels(params)
    candidates = []
    for path in flat:
        nonzero = (kernels[path] != 0).any(tuple(range(kernels[path].ndim - 1)))
        candidates.append(jnp.where(nonzero, ranked[path], -jnp.inf))
    largest = jnp.concatenate(candidates).argmax()
    remaining = jnp.concatenate([*flat.values()]).at[largest].set(0)
    ends = list(itertools.accumulate(x.size for x in flat.values()))
    return structure.nested(dict(zip(flat, jnp.split(remaining, ends[:-1]), strict=True)))
