"""ResNets with torchvision's names (He et al., Deep Residual Learning for Image Recognition, 2016)."""

from __future__ import annotations

from functools import partial
from typing import TypeAlias

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from bdjax.models._conv import conv, normal_fan_out
from bdjax.models._form import form
from bdjax.models._layers import (
    BatchNorm,
    Dense,
    LinenModel,
    check_images,
    check_options,
    pooled,
)
from bdjax.models._pooling import max_pool
from bdjax.models._sequential import Sequential
from bdjax.types import Model, Spec

_conv = partial(conv, kernel_init=normal_fan_out)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, the first with the stride."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool, valid: Array | None) -> Array:
        out = _conv(self.features, 3, stride=self.stride, name="conv1")(x)
        out = nn.relu(BatchNorm(name="bn1")(out, train=train, valid=valid))
        out = _conv(self.features, 3, name="conv2")(out)
        out = BatchNorm(name="bn2")(out, train=train, valid=valid)
        return nn.relu(out + _shortcut(x, out, self.stride, train=train, valid=valid))


class Bottleneck(nn.Module):
    """1×1, 3×3 with the stride, and 1×1 to four times the channels."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool, valid: Array | None) -> Array:
        out = _conv(self.features, 1, name="conv1")(x)
        out = nn.relu(BatchNorm(name="bn1")(out, train=train, valid=valid))
        out = _conv(self.features, 3, stride=self.stride, name="conv2")(out)
        out = nn.relu(BatchNorm(name="bn2")(out, train=train, valid=valid))
        out = _conv(4 * self.features, 1, name="conv3")(out)
        out = BatchNorm(name="bn3")(out, train=train, valid=valid)
        return nn.relu(out + _shortcut(x, out, self.stride, train=train, valid=valid))


Block: TypeAlias = type[BasicBlock] | type[Bottleneck]


def resnet(
    name: str, spec: Spec, block: Block, depths: tuple[int, ...], width: int, stem: str, dtype: str
) -> Model:
    """Create a ResNet with so many blocks in each stage; the rest is as in `resnet18`."""
    check_options(width, dtype)
    check_images(name, spec)
    stem = form(spec, stem=stem)
    return LinenModel(_ResNet(spec.num_classes, block, depths, width, stem), spec, dtype)


def _shortcut(x: Array, out: Array, stride: int, *, train: bool, valid: Array | None) -> Array:
    """Return what a block adds to its output: its input, projected where the two differ in shape."""
    if stride == 1 and x.shape[-1] == out.shape[-1]:
        return x
    projection = (partial(_conv, out.shape[-1], 1, stride=stride), partial(BatchNorm))
    return Sequential(projection, name="downsample")(x, train=train, valid=valid)


class _ResNet(nn.Module):
    num_classes: int
    block: Block
    depths: tuple[int, ...]
    width: int
    stem: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n k"]:
        small = self.stem == "cifar"
        x = _conv(self.width, 3 if small else 7, stride=1 if small else 2, name="conv1")(x)
        x = nn.relu(BatchNorm(name="bn1")(x, train=train, valid=valid))
        if not small:
            x = max_pool(x, 3, 2, 1)
        for number, depth in enumerate(self.depths):
            features = self.width * 2**number
            first = partial(self.block, features, 2 if number else 1)
            blocks = (first, *[partial(self.block, features, 1)] * (depth - 1))
            x = Sequential(blocks, name=f"layer{number + 1}")(x, train=train, valid=valid)
        return Dense(self.num_classes, name="fc")(pooled(x))
