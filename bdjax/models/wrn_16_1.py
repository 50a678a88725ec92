"""Wide ResNets (Zagoruyko and Komodakis, Wide Residual Networks, 2016)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from bdjax.checks import InputError, integer
from bdjax.models._conv import conv, normal_fan_out
from bdjax.models._layers import (
    BatchNorm,
    Dense,
    LinenModel,
    check_images,
    check_options,
    pooled,
)
from bdjax.models._sequential import Sequential
from bdjax.types import Model, Spec

_conv = partial(conv, kernel_init=normal_fan_out)


def wrn_16_1(
    spec: Spec, depth: int = 16, factor: int = 1, width: int = 16, dtype: str = "float32"
) -> Model:
    """Create WRN-16-1, or a wide ResNet of another depth and factor: three stages of pre-activation blocks.

    At the defaults and 10 classes it has 175,066 parameters. Its names are those of the files of NAD and ABL
    ("block1.layer.0.conv1.weight"). There is no dropout in it, as there.

    Args:
      spec: the images' specification; any height and width.
      depth: layers, 6 · b + 4 for b blocks in each stage.
      factor: how many times wider than a plain ResNet; the stages have width · factor · (1, 2, 4) channels.
      width: channels of the first convolution.
      dtype: in which the layers compute, ``"float32"`` or ``"bfloat16"``; variables, features and logits are float32.

    Raises:
      InputError: a depth that is not 6 · b + 4, a factor or width below 1, an unknown ``dtype``, or a specification of
        other inputs.
    """
    integer(1, factor=factor)
    integer(10, depth=depth)
    check_options(width, dtype)
    check_images("wrn_16_1", spec)
    blocks, rest = divmod(depth - 4, 6)
    if rest:
        raise InputError(f"depth must be 6 · b + 4, as 10, 16, 22, 28 or 40 are; got {depth}.")
    return LinenModel(_WideResNet(spec.num_classes, blocks, factor, width), spec, dtype)


class _Block(nn.Module):
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool, valid: Array | None) -> Array:
        out = nn.relu(BatchNorm(name="bn1")(x, train=train, valid=valid))
        if x.shape[-1] != self.features:
            x = _conv(self.features, 1, stride=self.stride, name="convShortcut")(out)
        out = _conv(self.features, 3, stride=self.stride, name="conv1")(out)
        out = nn.relu(BatchNorm(name="bn2")(out, train=train, valid=valid))
        return x + _conv(self.features, 3, name="conv2")(out)


class _Stage(nn.Module):
    features: int
    stride: int
    blocks: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool, valid: Array | None) -> Array:
        first = partial(_Block, self.features, self.stride)
        blocks = (first, *[partial(_Block, self.features, 1)] * (self.blocks - 1))
        return Sequential(blocks, name="layer")(x, train=train, valid=valid)


class _WideResNet(nn.Module):
    num_classes: int
    blocks: int
    factor: int
    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n k"]:
        x = _conv(self.width, 3, name="conv1")(x)
        for number in range(3):
            features = self.width * self.factor * 2**number
            stage = _Stage(features, 2 if number else 1, self.blocks, name=f"block{number + 1}")
            x = stage(x, train=train, valid=valid)
        x = nn.relu(BatchNorm(name="bn1")(x, train=train, valid=valid))
        return Dense(self.num_classes, bias_init=nn.initializers.zeros, name="fc")(pooled(x))
