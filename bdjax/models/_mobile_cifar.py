"""MobileNetV2 for images of 32×32, with the names that the defenses' papers give it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, TypeAlias

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from bdjax.models._conv import conv
from bdjax.models._layers import BatchNorm, Dense, pooled
from bdjax.models._sequential import Sequential


class Stage(NamedTuple):
    """Blocks of one size, of which the first has the stride."""

    expansion: int
    features: int
    blocks: int
    stride: int


Stages: TypeAlias = tuple[Stage, ...]


class CifarMobileNetV2(nn.Module):
    """Two strides fewer, ReLU, an expansion in each block, and a projection wherever the channels change.

    Attributes:
      stages: as for ImageNet; the second has no stride here.
      last: channels of the last convolution.
    """

    num_classes: int
    width: int
    stages: Stages
    last: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n k"]:
        x = conv(self.width, 3, name="conv1")(x)
        x = nn.relu(BatchNorm(name="bn1")(x, train=train, valid=valid))
        blocks: list[partial[_Block]] = []
        for number, (expansion, features, depth, stride) in enumerate(self.stages):
            blocks.append(partial(_Block, expansion, features, 1 if number == 1 else stride))
            blocks += [partial(_Block, expansion, features, 1)] * (depth - 1)
        x = Sequential(tuple(blocks), name="layers")(x, train=train, valid=valid)
        x = conv(self.last, 1, name="conv2")(x)
        x = nn.relu(BatchNorm(name="bn2")(x, train=train, valid=valid))
        return Dense(self.num_classes, name="linear")(pooled(x))


class _Block(nn.Module):
    """Expansion by 1×1, depthwise convolution, projection; with stride 1 the input is added, projected if it has to."""

    expansion: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool, valid: Array | None) -> Array:
        hidden = self.expansion * x.shape[-1]
        out = conv(hidden, 1, name="conv1")(x)
        out = nn.relu(BatchNorm(name="bn1")(out, train=train, valid=valid))
        out = conv(hidden, 3, stride=self.stride, groups=hidden, name="conv2")(out)
        out = nn.relu(BatchNorm(name="bn2")(out, train=train, valid=valid))
        out = conv(self.features, 1, name="conv3")(out)
        out = BatchNorm(name="bn3")(out, train=train, valid=valid)
        if self.stride != 1:
            return out
        if x.shape[-1] != self.features:
            projection = (partial(conv, self.features, 1), partial(BatchNorm))
            x = Sequential(projection, name="shortcut")(x, train=train, valid=valid)
        return x + out
