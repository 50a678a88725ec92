"""Gradients at the worst of some noise on the parameters, as an optax gradient transformation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from bdjax.checks import integer, non_negative, unit_interval
from bdjax.optim._checks import check_each
from bdjax.optim._masks import refuse_masked
from bdjax.types import HParam


class AdversarialNoiseState(NamedTuple):
    """What the gradients at the noise have cost."""

    gradient_evaluations: Int[Array, ""]


def adversarial_noise(
    epsilon: HParam, *, alpha: HParam = 0.2, steps: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Mix the gradient g(θ) with that at the worst noise found: α g(θ) + (1 − α) g(θ + δ).

    δ starts anew in every step, uniform in [−ε, ε] for each number, and then climbs ``steps`` times:
    δ ← δ + (ε / steps) sign g(θ + δ). It is not put back into the box, so |δ| ≤ 2ε, and at most ε
    where the gradient is exactly 0. On factors of weights, noise is relative to the weights.

    ``update`` takes the keywords ``grad_fn(params) → grads``, of the *same* batch's loss, and
    ``key``, which decides the start. steps + 1 extra gradient evaluations a step.

    Order: first in a chain, like `sam`.

    Args:
      epsilon: ε ≥ 0; may be traced. With 0 the gradient is that of the plain loss.
      alpha: α in [0, 1], the plain gradient's share; may be traced.
      steps: of the climb, at least 1.

    Raises:
      InputError: a value out of range, or parameters hidden by `optax.masked`.

    Example, on the loss w³, whose gradient is the steeper the larger w is:

      >>> import jax, jax.numpy as jnp
      >>> from bdjax import optim
      >>> tx, w = optim.adversarial_noise(epsilon=0.5, alpha=0.2), jnp.array(1.0)
      >>> grad, key = jax.grad(lambda w: w**3), jax.random.key(0)
      >>> mixed, _ = tx.update(grad(w), tx.init(w), w, grad_fn=grad, key=key)
      >>> bool(mixed > grad(w))
      True

    References:
      Wu and Wang, Adversarial Neuron Pruning Purifies Backdoored Deep Models, NeurIPS 2021.
    """

    check_each(non_negative, epsilon=epsilon)
    check_each(unit_interval, alpha=alpha)
    check_each(functools.partial(integer, 1), steps=steps)

    def init(params: optax.Params) -> AdversarialNoiseState:
        refuse_masked("optim.adversarial_noise", params)
        return AdversarialNoiseState(jnp.int32(0))

    def update(
        updates: optax.Updates,
        state: AdversarialNoiseState,
        params: optax.Params | None = None,
        *,
        grad_fn: Callable[[Any], Any] | None = None,
        key: Key[Array, ""] | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, AdversarialNoiseState]:
        del extra
        if params is None or grad_fn is None or key is None:
            raise ValueError(
                "optim.adversarial_noise needs params, grad_fn and key: "
                "call update(grads, state, params, grad_fn=…, key=…)."
            )
        refuse_masked("optim.adversarial_noise", params)

        noise, size = _uniform_like(key, params, epsilon), epsilon / steps

        def higher(n: Array, g: Array) -> Array:
            return (n + size * jnp.sign(g)).astype(n.dtype)

        for _ in range(steps):
            noise = jax.tree.map(higher, noise, grad_fn(optax.apply_updates(params, noise)))
        worst = grad_fn(optax.apply_updates(params, noise))
        mixed = jax.tree.map(
            lambda u, w: (alpha * u + (1 - alpha) * w).astype(u.dtype), updates, worst
        )
        return mixed, AdversarialNoiseState(state.gradient_evaluations + steps + 1)

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))


def _uniform_like(key: Key[Array, ""], tree: Any, epsilon: HParam) -> Any:
    """Return a tree like another, with numbers drawn from [−ε, ε)."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        (epsilon * jax.random.uniform(own, leaf.shape, leaf.dtype, -1, 1)).astype(leaf.dtype)
        for own, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)
