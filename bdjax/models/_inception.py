"""What the Inception networks share."""

from __future__ import annotations

import flax.linen as nn
from flax.typing import Initializer
from jaxtyping import Array, Bool, Float

from bdjax.models._conv import Size, conv
from bdjax.models._dense import uniform_fan_in
from bdjax.models._layers import BatchNorm


class Unit(nn.Module):
    """A convolution without bias, batch norm with ε = 0.001, and ReLU.

    Attributes:
      features: output channels.
      size, stride, padding: of the convolution, as `bdjax.models._conv.conv` takes them.
      kernel_init: of its kernel.
    """

    features: int
    size: Size
    stride: int = 1
    padding: Size | None = None
    kernel_init: Initializer = uniform_fan_in

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n p q d"]:
        x = conv(
            self.features,
            self.size,
            stride=self.stride,
            padding=self.padding,
            kernel_init=self.kernel_init,
            name="conv",
        )(x)
        return nn.relu(BatchNorm(epsilon=1e-3, name="bn")(x, train=train, valid=valid))


def share(channels: int, width: int, published: int) -> int:
    """Return the channels of a layer, one at least, where the first has ``width`` of them and not as published."""
    return max(1, channels * width // published)
