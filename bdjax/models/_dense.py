"""The dense layer of bdjax's own networks."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key


def uniform_fan_in(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Array:
    """U(−b, b), b = 1/√fan_in: PyTorch's default for convolutions and dense layers."""
    bound = 1 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Dense(nn.Module):
    """A dense layer; by default with PyTorch's initialization of weights and bias."""

    features: int
    kernel_init: Initializer = uniform_fan_in
    bias_init: Initializer | None = None  # by default U(−b, b) as the kernel's

    @nn.compact
    def __call__(self, x: Float[Array, "n *t d"]) -> Float[Array, "n *t k"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bound = 1 / math.sqrt(x.shape[-1])
        bias = self.param(
            "bias",
            self.bias_init
            or (lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)),
            (self.features,),
        )
        # Nothing here or in a convolution asks for a float32 result (`preferred_element_type`): all backends accumulate
        # in float32 and round once, and a float32 cotangent would make the products of the way back float32.
        return (x @ kernel.astype(x.dtype) + bias).astype(x.dtype)
