"""MobileNetV2 (Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from bdjax.models._dropout import Dropout
from bdjax.models._form import form as chosen
from bdjax.models._layers import (
    BatchNorm,
    Dense,
    LinenModel,
    check_images,
    check_options,
    pooled,
)
from bdjax.models._mobile import conv_norm, divisor_of, mobile_conv, rounded
from bdjax.models._mobile_cifar import CifarMobileNetV2, Stage, Stages
from bdjax.models._sequential import Layer, Sequential
from bdjax.types import Model, Spec

_STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)


def mobilenet_v2(spec: Spec, width: int = 32, form: str = "auto", dtype: str = "float32") -> Model:
    """Create a MobileNetV2: 17 inverted residuals whose projections have no activation.

    At width 32 and 10 classes it has 2,236,682 parameters, and 2,296,922 in the form for small images.

    Args:
      spec: the images' specification; any height and width.
      width: channels of the first convolution, to which all others are in proportion, as multiples of 8 (of the width,
        where that is below 8). The last convolution has 1,280, or in proportion from width 32 on.
      form: "imagenet" is torchvision's network, with ReLU6 and a dropout of 0.2; "cifar" that of the defenses' papers,
        with ReLU, without dropout, with two strides fewer, and with projections where the channels change; "auto" is
        "cifar" for images of up to 64 pixels a side and "imagenet" for larger ones.
      dtype: in which the layers compute, ``"float32"`` or ``"bfloat16"``; variables, features and logits are float32.

    Raises:
      InputError: ``width`` below 1, an unknown ``form`` or ``dtype``, or a specification of other inputs.
    """
    check_options(width, dtype)
    check_images("mobilenet_v2", spec)
    stages, last = _scaled(width)
    network = {"imagenet": _MobileNetV2, "cifar": CifarMobileNetV2}[chosen(spec, form=form)]
    return LinenModel(network(spec.num_classes, width, stages, last), spec, dtype)


def _scaled(width: int) -> tuple[Stages, int]:
    """Return the stages and the channels of the last convolution."""
    divisor, factor = divisor_of(width), width / 32
    stages: list[Stage] = []
    for stage in _STAGES:
        stages.append(stage._replace(features=rounded(stage.features * factor, divisor)))
    return tuple(stages), rounded(1280 * max(1, factor), divisor)


class _Block(nn.Module):
    """Expansion by 1×1, depthwise convolution, projection; the input is added where the shape is the same."""

    expansion: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool, valid: Array | None) -> Array:
        hidden = self.expansion * x.shape[-1]
        layers: list[Layer] = []
        if self.expansion != 1:
            layers.append(conv_norm(hidden, 1, activation=nn.relu6))
        depthwise = conv_norm(hidden, 3, stride=self.stride, groups=hidden, activation=nn.relu6)
        projection = (partial(mobile_conv, self.features, 1), partial(BatchNorm))
        out = Sequential((*layers, depthwise, *projection), name="conv")(
            x, train=train, valid=valid
        )
        return x + out if self.stride == 1 and x.shape[-1] == self.features else out


class _MobileNetV2(nn.Module):
    num_classes: int
    width: int
    stages: Stages
    last: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n k"]:
        x = Sequential(self._features(), name="features")(x, train=train, valid=valid)
        last = partial(
            Dense,
            self.num_classes,
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.zeros,
        )
        return Sequential((partial(Dropout, 0.2), last), name="classifier")(pooled(x), train=train)

    def _features(self) -> tuple[Layer, ...]:
        layers: list[Layer] = [conv_norm(self.width, 3, stride=2, activation=nn.relu6)]
        for expansion, features, blocks, stride in self.stages:
            layers.append(partial(_Block, expansion, features, stride))
            layers += [partial(_Block, expansion, features, 1)] * (blocks - 1)
        return (*layers, conv_norm(self.last, 1, activation=nn.relu6))
