"""The activation of transformers and of the networks that follow them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gelu(x: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """Return x · Φ(x), Φ the normal distribution function itself and not the usual tanh; computed in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jax.nn.gelu(wide, approximate=False).astype(x.dtype)
