"""Layer normalization as PyTorch does it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class LayerNorm(nn.Module):
    """Normalize the channels of each position on their own, with the biased variance; then scale and shift.

    Statistics and output are computed in float32, and the output has the type of x.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "n *d c"]) -> Float[Array, "n *d c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centered = wide - wide.mean(-1, keepdims=True)
        var = jnp.square(centered).mean(-1, keepdims=True)
        return (centered * jax.lax.rsqrt(var + self.epsilon) * scale + bias).astype(x.dtype)
