"""SAM and ASAM on a quadratic loss, whose steps can be written down: in float64 with NumPy, and on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
import optax

from bdjax import optim

# Ε is a good part of θ, so that the steps tell of it
RHO, RATE, MOMENTUM, DECAY, STEPS = 20.0, 0.1, 0.9, 5e-4, 3
_SHAPES = {"kernel": (3, 3, 16, 32), "scale": (32,), "bias": (32,)}

Tree: TypeAlias = Mapping[str, Any]  # of NumPy's arrays, or of JAX's


def errors(seed: int) -> Iterator[tuple[str, float]]:
    """Yield, of SAM and ASAM, what is computed and its error relative to the largest number.

    The loss is ½ Σ aθ² with random a > 0, so its gradient is aθ.
    """
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in _SHAPES.items()}
    steep = {name: rng.uniform(0.1, 2, shape).astype(np.float32) for name, shape in _SHAPES.items()}
    for name, adaptive in (("SAM", False), ("ASAM", True)):
        expected = _perturbation(_product(_wide(steep), _wide(params)), _wide(params), adaptive)
        yield f"ε of {name}", _error(_epsilon(params, steep, adaptive), expected)
        steps = f"{STEPS} steps of {name} with decay and momentum"
        yield steps, _error(_trained(params, steep, adaptive), _expected(params, steep, adaptive))


def _expected(params: Tree, steep: Tree, adaptive: bool) -> Tree:
    """Return how far the parameters have moved after some steps, in float64."""
    start, steep = _wide(params), _wide(steep)
    at, velocity = dict(start), {name: np.zeros(shape) for name, shape in _SHAPES.items()}
    for _ in range(STEPS):
        epsilon = _perturbation(_product(steep, at), at, adaptive)
        for name in _SHAPES:
            grad = steep[name] * (at[name] + epsilon[name]) + DECAY * at[name]
            velocity[name] = MOMENTUM * velocity[name] + grad
        at = {name: at[name] - RATE * velocity[name] for name in _SHAPES}
    return {name: at[name] - start[name] for name in _SHAPES}


def _perturbation(grads: Tree, params: Tree, adaptive: bool) -> Tree:
    """Return ρ T² g / ‖T g‖ with T = 1 or |θ|."""
    scale = {
        name: abs(params[name]) if adaptive else np.ones(shape) for name, shape in _SHAPES.items()
    }
    norm = np.sqrt(sum(((scale[name] * grads[name]) ** 2).sum() for name in _SHAPES))
    return {name: RHO * scale[name] ** 2 * grads[name] / norm for name in _SHAPES}


def _product(one: Tree, other: Tree) -> Tree:
    return {name: one[name] * other[name] for name in _SHAPES}


def _wide(tree: Tree) -> Tree:
    return {name: leaf.astype(np.float64) for name, leaf in tree.items()}


def _epsilon(params: Tree, steep: Tree, adaptive: bool) -> Tree:
    """Return ε as bdjax computes it on the device."""

    @jax.jit
    def epsilon(params: Tree) -> Any:
        return optim.perturbation(_product(steep, params), params, RHO, adaptive=adaptive)

    return jax.device_get(epsilon(params))


def _trained(params: Tree, steep: Tree, adaptive: bool) -> Tree:
    """Return what `_expected` does, of bdjax's transformation in a chain of optax on the device."""
    decay = optax.add_decayed_weights(DECAY)
    tx = optax.chain(optim.sam(RHO, adaptive=adaptive), decay, optax.sgd(RATE, MOMENTUM))

    @jax.jit
    def step(params: Tree, state: optax.OptState) -> tuple[Tree, optax.OptState]:
        grads = _product(steep, params)
        updates, state = tx.update(grads, state, params, grad_fn=lambda at: _product(steep, at))
        moved: Any = optax.apply_updates(params, updates)
        return moved, state

    at, state = params, tx.init(params)
    for _ in range(STEPS):
        at, state = step(at, state)
    return {name: np.asarray(at[name], np.float64) - params[name] for name in _SHAPES}


def _error(found: Tree, expected: Tree) -> float:
    largest = max(abs(expected[name]).max() for name in _SHAPES)
    return max(float(abs(found[name] - expected[name]).max()) for name in _SHAPES) / float(largest)
