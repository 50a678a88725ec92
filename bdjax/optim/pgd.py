"""Adversarial inputs: projected gradient ascent on the loss within a small cube around each image."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from bdjax.types import HParam


def pgd(
    key: Key[Array, ""],
    loss_fn: Callable[[Float[Array, "*shape"]], Float[Array, ""]],
    image: Float[Array, "*shape"],
    epsilon: HParam = 1 / 255,
    steps: int = 2,
    step_size: HParam | None = None,
    random_start: bool = True,
) -> Float[Array, "*shape"]:
    """Return images near the given ones whose loss is higher: l∞ projected gradient ascent.

    x₀ = Π(image + ε U(−1, 1)), or the image itself, and x_{k+1} = Π(x_k + a sign ∇ loss(x_k)), where Π(x) is the point
    nearest to x that is within ε of the image in every pixel and in [0, 1]. ``steps`` gradient evaluations; a gradient
    of a later loss does not see them.

    Args:
      key: decides the random start.
      loss_fn: images to the batch's loss, its sum or mean alike (only the gradient's signs count). Whoever trains
        decides in it what the pass does about batch statistics.
      image: one image or a batch in [0, 1].
      epsilon: ε ≥ 0; may be traced. NFT's "perturbation norm of 1" is read as 1/255.
      steps: static.
      step_size: a; 2.5 ε / steps by default, so that every point of the ball can be reached from any; may be traced.
      random_start: static; without it the key is not used.

    References:
      Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018, section 2.1; NFT's
      supplement, section 3.4 (two steps).
    """
    size = 2.5 * epsilon / max(steps, 1) if step_size is None else step_size
    low, high = jnp.maximum(image - epsilon, 0), jnp.minimum(image + epsilon, 1)
    ascent = jax.grad(loss_fn)

    def step(_: Array, x: Array) -> Array:
        return jnp.clip(x + size * jnp.sign(ascent(x)), low, high)

    start = jnp.clip(image, low, high)
    if random_start:
        start = jnp.clip(
            image + epsilon * jax.random.uniform(key, image.shape, image.dtype, -1, 1), low, high
        )
    return jax.lax.stop_gradient(jax.lax.fori_loop(0, steps, step, start))
