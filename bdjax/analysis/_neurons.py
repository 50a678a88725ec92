"""The neurons of a layer, one for each output filter of its kernel: norms, gradients, and the order of two of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from bdjax import optim, structure
from bdjax.data import splits
from bdjax.data.augment import as_float
from bdjax.structure import Path
from bdjax.train.supervised import mean_loss
from bdjax.types import HParam, Model, Params, Split, Variables

Loss: TypeAlias = Callable[[Params], Float[Array, ""]]


class Correlation(NamedTuple):
    """Pearson's coefficient and Spearman's, which is Pearson's of the ranks; NaN where one side is constant."""

    pearson: Float[Array, ""]
    rank: Float[Array, ""]


def norms(kernel: Float[Array, "*rest k"]) -> Float[Array, " k"]:
    """Return ‖W_k‖₂ of every output filter, the last axis; a bias is not part of it.

    >>> import jax.numpy as jnp
    >>> norms(jnp.array([[3.0, 0.0], [4.0, -2.0]])).tolist()
    [5.0, 2.0]
    """
    return jnp.sqrt(jnp.square(kernel).sum(tuple(range(kernel.ndim - 1))))


def correlation(x: Float[Array, " k"], y: Float[Array, " k"]) -> Correlation:
    """Return how two properties of neurons go together, in [−1, 1]; neurons that tie share their mean rank."""
    ranks = _pearson(jax.scipy.stats.rankdata(x), jax.scipy.stats.rankdata(y))
    return Correlation(_pearson(x, y), ranks)


def training_loss(model: Model, variables: Variables, batch: Split) -> Loss:
    """Return a batch's mean loss as a function of the parameters, with batch norm as in a training step.

    That is, normalized by the statistics of the batch itself, whose images are neither augmented nor mixed.
    """

    rows = jax.tree.map(jnp.asarray, batch)

    def loss(params: Params) -> Array:
        here = {**variables, "params": params}
        logits, _ = model.apply(here, as_float(rows.input), train=True, valid=rows.valid)
        return mean_loss(model.spec.task, logits, rows)

    return loss


def neuron_gradient_norms(
    loss: Loss, params: Params, layer: Path, rho: HParam | None = None, *, adaptive: bool = False
) -> Float[Array, " k"]:
    """Return ‖∂L/∂W_k‖₂ of every neuron of a layer: at θ, or at θ + ε with the ε of SAM or ASAM of radius ρ.

    Args:
      loss: of the parameters.
      params: θ; ε perturbs all of them, not the layer alone.
      layer: path of its kernel.
      rho: ρ ≥ 0, may be traced; None is θ itself.
      adaptive: ASAM.
    """
    grads = jax.grad(loss)(params)
    if rho is not None:
        sam = optim.sam(rho, adaptive=adaptive)
        grads, _ = sam.update(grads, sam.init(params), params, grad_fn=jax.grad(loss))
    return norms(structure.flat(grads)[layer])


def first_batch(key: Key[Array, ""], split: Split, size: int) -> Split:
    """Draw a batch of a split's valid rows, all of them if there are fewer."""
    order = np.asarray(jax.random.permutation(key, len(split.label)))
    return splits.take(split, order[np.asarray(split.valid)[order]][:size])


def _pearson(x: Array, y: Array) -> Array:
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / jnp.sqrt((x * x).sum() * (y * y).sum())
