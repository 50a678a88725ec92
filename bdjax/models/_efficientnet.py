"""EfficientNets with torchvision's names (Tan and Le, EfficientNet: Rethinking Model Scaling, 2019)."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from bdjax.models._dropout import Dropout
from bdjax.models._layers import Dense, LinenModel, check_images, check_options, pooled
from bdjax.models._mobile import (
    InvertedResidual,
    SqueezeExcite,
    conv_norm,
    divisor_of,
    rounded,
)
from bdjax.models._sequential import Layer, Sequential
from bdjax.types import Model, Spec


class _Stage(NamedTuple):
    expansion: int
    size: int
    stride: int
    features: int
    blocks: int


_STAGES = (
    _Stage(1, 3, 1, 16, 1),
    _Stage(6, 3, 2, 24, 2),
    _Stage(6, 5, 2, 40, 2),
    _Stage(6, 3, 2, 80, 3),
    _Stage(6, 5, 1, 112, 3),
    _Stage(6, 5, 2, 192, 4),
    _Stage(6, 3, 1, 320, 1),
)
_LEFT_OUT = 0.2  # of the last block's rows, were there one more; of the others in proportion to their position


class Compound(NamedTuple):
    """What a network of the family has of its own: its published width, and factors of the smallest's size."""

    width: int
    channels: float
    blocks: float
    dropout: float


def efficientnet(name: str, spec: Spec, compound: Compound, width: int, dtype: str) -> Model:
    """Create an EfficientNet; the rest is as in `efficientnet_b0`."""
    check_options(width, dtype)
    check_images(name, spec)
    factor = compound.channels * (width / compound.width)
    depths = tuple(math.ceil(stage.blocks * compound.blocks) for stage in _STAGES)
    module = _EfficientNet(spec.num_classes, width, factor, depths, compound.dropout)
    return LinenModel(module, spec, dtype)


class _EfficientNet(nn.Module):
    num_classes: int
    width: int
    factor: float
    depths: tuple[int, ...]
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n k"]:
        x = Sequential(self._features(), name="features")(x, train=train, valid=valid)
        last = partial(
            Dense,
            self.num_classes,
            kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform"),
            bias_init=nn.initializers.zeros,
        )
        head = (partial(Dropout, self.dropout), last)
        return Sequential(head, name="classifier")(pooled(x), train=train)

    def _features(self) -> tuple[Layer, ...]:
        layers: list[Layer] = [conv_norm(self.width, 3, stride=2, activation=nn.silu)]
        features, before = self.width, 0
        for stage, depth in zip(_STAGES, self.depths, strict=True):
            layers.append(self._stage(stage, depth, features, before))
            features, before = self._channels(stage.features), before + depth
        return (*layers, conv_norm(4 * features, 1, activation=nn.silu))

    def _stage(self, stage: _Stage, depth: int, inputs: int, before: int) -> partial[Sequential]:
        """Return the blocks of a stage, the first of ``inputs`` channels, after so many blocks."""
        blocks: list[Layer] = []
        features = self._channels(stage.features)
        for number in range(depth):
            block = partial(
                InvertedResidual,
                rounded(inputs * stage.expansion, divisor_of(self.width)),
                features,
                stage.size,
                1 if number else stage.stride,
                nn.silu,
                partial(SqueezeExcite, max(1, inputs // 4), nn.silu, nn.sigmoid),
                dropped=_LEFT_OUT * (before + number) / sum(self.depths),
            )
            blocks.append(block)
            inputs = features
        return partial(Sequential, tuple(blocks))

    def _channels(self, published: int) -> int:
        return rounded(published * self.factor, divisor_of(self.width))
