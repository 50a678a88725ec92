"""The Fisher information of a model: its trace and its diagonal, from gradients of single examples.

F(θ) = E[∇ log p_θ(y|x) ∇ log p_θ(y|x)ᵀ], so Tr F = E‖∇ℓ‖² with ℓ = −log p_θ(y|x): a mean over *examples*, which the
squared norm of a batch's gradient is not. With the labels of the data it is the empirical Fisher information; with
labels drawn from the model (`sampled_labels`) it is the true one.

Everything here takes ``loss_fn(params, example) → ℓ`` for one example, and examples as a tree with a leading axis.
Examples must not see each other, so batch norm belongs in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from bdjax.curvature.chunks import accumulate, weighted_sum
from bdjax.types import Examples, Params, Tree

LossFn: TypeAlias = Callable[[Params, Examples], Array]
Valid: TypeAlias = Bool[Array, " n"] | None

ESTIMATORS = ("per_sample", "sign_sketch", "batch_sq")


def trace(
    loss_fn: LossFn,
    params: Params,
    examples: Examples,
    *,
    estimator: str = "per_sample",
    key: Key[Array, ""] | None = None,
    valid: Valid = None,
    chunk: int = 32,
) -> Float[Array, ""]:
    """Return Tr F = (1/n) Σ_i ‖∇ℓ_i‖², or an estimate of it; differentiable.

    * ``per_sample``: exact. The gradients of ``chunk`` examples are in memory at once, also while differentiating.
    * ``sign_sketch``: (1/n) ‖∇ Σ_i r_i ℓ_i‖² with random signs r. Unbiased: E[r_i r_j] is 1 for i = j and 0 else. One
      gradient of the batch.
    * ``batch_sq``: ‖∇ (1/n) Σ_i ℓ_i‖². Biased: gradients that cancel in the batch count for nothing.

    Args:
      loss_fn: the loss of one example.
      params: where; any tree.
      examples: a tree with a leading axis n.
      estimator: one of `ESTIMATORS`.
      key: for ``sign_sketch``.
      valid: which examples count; None is all of them.
      chunk: of ``per_sample``.
    """
    weight = _weight(valid, examples)
    if estimator == "per_sample":

        @jax.checkpoint  # around the square as well: its derivative is the gradient, which would be kept
        def squares(some: Examples, weight: Float[Array, " chunk"]) -> Array:
            norms = jax.vmap(lambda example: _square(jax.grad(loss_fn)(params, example)))(some)
            return weighted_sum(weight, norms)

        return accumulate(squares, examples, chunk=chunk, valid=valid) / jnp.maximum(
            weight.sum(), 1
        )
    mix, count = _mix(estimator, key, weight)
    return _square(jax.grad(lambda at: _mixed_loss(loss_fn, at, examples, mix))(params)) / count


def trace_gradient(
    loss_fn: LossFn,
    params: Params,
    examples: Examples,
    *,
    estimator: str = "per_sample",
    key: Key[Array, ""] | None = None,
    valid: Valid = None,
    chunk: int = 32,
) -> Params:
    """Return the gradient of `trace`, a tree like ``params``, faster than by differentiating it.

    ∇‖∇ℓ‖² = 2 H ∇ℓ is a Hessian-vector product, forward mode over the gradient. To differentiate `trace` is reverse
    mode over it, which takes longer and keeps more. Arguments as for `trace`.
    """
    weight = _weight(valid, examples)
    if estimator == "per_sample":

        def product(example: Examples) -> Params:
            return _hessian_times_gradient(lambda at: loss_fn(at, example), params)

        def products(some: Examples, weight: Float[Array, " chunk"]) -> Params:
            return jax.tree.map(lambda x: weighted_sum(weight, x), jax.vmap(product)(some))

        total = accumulate(products, examples, chunk=chunk, valid=valid)
        count = jnp.maximum(weight.sum(), 1)
    else:
        mix, count = _mix(estimator, key, weight)
        total = _hessian_times_gradient(lambda at: _mixed_loss(loss_fn, at, examples, mix), params)
    return jax.tree.map(lambda x: 2 * x / count, total)


def diagonal(
    loss_fn: LossFn, params: Params, examples: Examples, *, valid: Valid = None, chunk: int = 32
) -> Params:
    """Return diag F = (1/n) Σ_i (∇ℓ_i)², a tree like ``params``.

    The gradients of ``chunk`` examples are in memory at once. Arguments as for `trace`; not for differentiation.
    """

    def squares(some: Examples, weight: Float[Array, " chunk"]) -> tuple[Params, Array]:
        grads = jax.vmap(jax.grad(loss_fn), (None, 0))(params, some)
        return jax.tree.map(lambda g: weighted_sum(weight, jnp.square(g)), grads), weight.sum()

    total, count = accumulate(squares, examples, chunk=chunk, valid=valid)
    return jax.tree.map(lambda square: square / jnp.maximum(count, 1), total)


def sampled_labels(key: Key[Array, ""], logits: Float[Array, "n k"]) -> Int[Array, " n"]:
    """Return labels drawn from softmax(logits): with them, `trace` and `diagonal` are those of the true Fisher."""
    return jax.random.categorical(key, jax.lax.stop_gradient(logits))


def _weight(valid: Valid, examples: Examples) -> Float[Array, " n"]:
    rows = jax.tree.leaves(examples)[0].shape[0]
    return jnp.ones(rows) if valid is None else valid.astype(jnp.float32)


def _mix(
    estimator: str, key: Key[Array, ""] | None, weight: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """Return how a batch's losses are weighted, and by what the gradient's squared norm is divided."""
    count = jnp.maximum(weight.sum(), 1)
    if estimator == "batch_sq":
        return weight / count, jnp.ones(())
    if estimator != "sign_sketch":
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}; got {estimator!r}.")
    if key is None:
        raise ValueError("the estimator 'sign_sketch' needs a key.")
    return weight * jax.random.rademacher(key, weight.shape, weight.dtype), count


def _mixed_loss(
    loss_fn: LossFn, params: Params, examples: Examples, mix: Float[Array, " n"]
) -> Float[Array, ""]:
    return jnp.sum(mix * jax.vmap(loss_fn, (None, 0))(params, examples))


def _hessian_times_gradient(loss: Callable[[Params], Array], params: Params) -> Params:
    return jax.jvp(jax.grad(loss), (params,), (jax.grad(loss)(params),))[1]


def _square(tree: Tree) -> Float[Array, ""]:
    return optax.tree.norm(tree, squared=True)
