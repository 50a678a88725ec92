"""A small convolutional network for tests and first experiments."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bdjax.models._layers import BatchNorm, Dense, LinenModel, check_options, conv, pooled
from bdjax.types import Model, Spec


def small_cnn(spec: Spec, width: int = 16, dtype: str = "float32") -> Model:
    """Create three 3×3 convolutions of width · (1, 2, 4) channels, each with batch norm and ReLU; pooling; dense.

    The second and third convolutions have stride 2. Compiles in about a second. Of clips [t, h, w, c] each frame is
    computed as an image, and what is pooled is averaged over time.

    Args:
      spec: of images or clips; any height and width.
      width: channels of the first convolution.
      dtype: in which the layers compute, ``"float32"`` or ``"bfloat16"``; variables, features and logits are float32.

    Raises:
      InputError: ``width`` below 1, or an unknown ``dtype``.
    """
    check_options(width, dtype)
    return LinenModel(_SmallCNN(num_classes=spec.num_classes, width=width), spec, dtype)


class _SmallCNN(nn.Module):
    num_classes: int
    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n *t h w c"], *, train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n k"]:
        clips = x.shape[:2] if x.ndim == 5 else None
        if clips is not None:
            x = x.reshape(-1, *x.shape[2:])
            valid = None if valid is None else jnp.repeat(valid, clips[1])
        for layer in range(3):
            stride = 1 if layer == 0 else 2
            x = conv(self.width * 2**layer, 3, stride=stride, name=f"conv{layer + 1}")(x)
            x = nn.relu(BatchNorm(name=f"bn{layer + 1}")(x, train=train, valid=valid))
        x = pooled(x)
        if clips is not None:
            x = x.reshape(*clips, -1).mean(1)
        return Dense(self.num_classes, name="linear")(x)
