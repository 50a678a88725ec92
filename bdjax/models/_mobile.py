"""What MobileNets and EfficientNets are built of: inverted residuals, squeeze-and-excitation, channels that scale."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from bdjax.models._conv import conv, normal_fan_out
from bdjax.models._dropout import StochasticDepth
from bdjax.models._layers import BatchNorm, pooled
from bdjax.models._sequential import Layer, Sequential

Activation: TypeAlias = Callable[[Array], Array]
Maps: TypeAlias = Float[Array, "n h w c"]

NORM = partial(BatchNorm)
mobile_conv = partial(conv, kernel_init=normal_fan_out)


def rounded(channels: float | int, divisor: int) -> int:
    """Return the multiple of the divisor that is nearest, or the next one where that takes more than a tenth away.

    It is at least the divisor. The rule is that of the published code, with 8 as the divisor.
    """
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest


def divisor_of(width: int) -> int:
    """Return what channels are a multiple of: 8, and the width of a network that is narrower."""
    return min(8, width)


def conv_norm(
    features: int,
    size: int,
    *,
    activation: Activation | None,
    stride: int = 1,
    groups: int = 1,
    norm: partial[BatchNorm] = NORM,
) -> partial[Sequential]:
    """Return a convolution without bias, its batch norm and the activation, as positions "0", "1" and none."""
    convolution = partial(mobile_conv, features, size, stride=stride, groups=groups)
    layers: tuple[Layer, ...] = (convolution, norm)
    return partial(Sequential, layers if activation is None else (*layers, activation))


class SqueezeExcite(nn.Module):
    """Multiply each channel by a factor that two 1×1 convolutions make of the means of all (Hu et al., 2018).

    Attributes:
      squeezed: channels between the two.
      activation: between the two.
      gate: of what comes out of the second.
    """

    squeezed: int
    activation: Activation
    gate: Activation

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        means = pooled(x)[:, None, None].astype(x.dtype)
        means = self.activation(mobile_conv(self.squeezed, 1, bias=True, name="fc1")(means))
        factors = self.gate(mobile_conv(x.shape[-1], 1, bias=True, name="fc2")(means))
        # In float32, as the gradient of a factor is a sum over pixels
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return (x.astype(wide) * factors.astype(wide)).astype(x.dtype)


class InvertedResidual(nn.Module):
    """Expansion by 1×1, depthwise convolution, squeeze-and-excitation, projection by 1×1; all in "block".

    Attributes:
      expanded: channels of the depthwise convolution; the expansion is left out where the input has as many.
      features: channels of the output, to which the input is added where the two have one shape.
      size: of the depthwise convolution's window.
      squeeze: the squeeze-and-excitation, or None.
      norm: the batch norms.
      dropped: the probability with which an image's block is left out in training.
    """

    expanded: int
    features: int
    size: int
    stride: int
    activation: Activation
    squeeze: partial[SqueezeExcite] | None = None
    norm: partial[BatchNorm] = NORM
    dropped: float = 0.0

    @nn.compact
    def __call__(self, x: Maps, *, train: bool, valid: Array | None) -> Float[Array, "n p q k"]:
        layer = partial(conv_norm, activation=self.activation, norm=self.norm)
        layers: list[Layer] = []
        if self.expanded != x.shape[-1]:
            layers.append(layer(self.expanded, 1))
        layers.append(layer(self.expanded, self.size, stride=self.stride, groups=self.expanded))
        if self.squeeze is not None:
            layers.append(self.squeeze)
        layers.append(conv_norm(self.features, 1, activation=None, norm=self.norm))
        out = Sequential(tuple(layers), name="block")(x, train=train, valid=valid)
        if self.stride != 1 or x.shape[-1] != self.features:
            return out
        return x + StochasticDepth(self.dropped)(out, train=train)
