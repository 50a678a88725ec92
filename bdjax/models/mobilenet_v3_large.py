"""MobileNetV3-Large (Howard et al., Searching for MobileNetV3, 2019)."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bdjax.models._dropout import Dropout
from bdjax.models._layers import (
    BatchNorm,
    Dense,
    LinenModel,
    check_images,
    check_options,
    pooled,
)
from bdjax.models._mobile import (
    InvertedResidual,
    SqueezeExcite,
    conv_norm,
    divisor_of,
    rounded,
)
from bdjax.models._sequential import Layer, Sequential
from bdjax.types import Model, Spec


class _Setting(NamedTuple):
    size: int
    expanded: int
    features: int
    squeezes: bool
    swishes: bool
    stride: int


_BLOCKS = (
    _Setting(3, 16, 16, False, False, 1),
    _Setting(3, 64, 24, False, False, 2),
    _Setting(3, 72, 24, False, False, 1),
    _Setting(5, 72, 40, True, False, 2),
    _Setting(5, 120, 40, True, False, 1),
    _Setting(5, 120, 40, True, False, 1),
    _Setting(3, 240, 80, False, True, 2),
    _Setting(3, 200, 80, False, True, 1),
    _Setting(3, 184, 80, False, True, 1),
    _Setting(3, 184, 80, False, True, 1),
    _Setting(3, 480, 112, True, True, 1),
    _Setting(3, 672, 112, True, True, 1),
    _Setting(5, 672, 160, True, True, 2),
    _Setting(5, 960, 160, True, True, 1),
    _Setting(5, 960, 160, True, True, 1),
)
_norm = partial(BatchNorm, momentum=0.99, epsilon=1e-3)  # PyTorch's momentum is 1 − 0.99
_conv_norm = partial(conv_norm, activation=nn.hard_swish, norm=_norm)
_dense = partial(Dense, kernel_init=nn.initializers.normal(0.01), bias_init=nn.initializers.zeros)


def mobilenet_v3_large(spec: Spec, width: int = 16, dtype: str = "float32") -> Model:
    """Create torchvision's MobileNetV3-Large: 15 inverted residuals, eight of them with squeeze-and-excitation.

    At width 16 and 10 classes it has 4,214,842 parameters. Its batch norms have ε = 0.001 and move their running values
    by a hundredth of the batch's. Dropout is 0.2 before the classifier.

    Args:
      spec: the images' specification; any height and width.
      width: channels of the first convolution, to which all others are in proportion, as multiples of 8 (of the width,
        where that is below 8).
      dtype: in which the layers compute, ``"float32"`` or ``"bfloat16"``; variables, features and logits are float32.

    Raises:
      InputError: ``width`` below 1, an unknown ``dtype``, or a specification of other inputs.
    """
    check_options(width, dtype)
    check_images("mobilenet_v3_large", spec)
    return LinenModel(_MobileNetV3(spec.num_classes, width), spec, dtype)


class _MobileNetV3(nn.Module):
    num_classes: int
    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n k"]:
        x = Sequential(self._features(), name="features")(x, train=train, valid=valid)
        hidden = partial(_dense, self._channels(1280))
        head = (hidden, _wide_hard_swish, partial(Dropout, 0.2), partial(_dense, self.num_classes))
        x = pooled(x).astype(x.dtype)
        return Sequential(head, name="classifier")(x, train=train)

    def _features(self) -> tuple[Layer, ...]:
        layers: list[Layer] = [_conv_norm(self.width, 3, stride=2)]
        layers += [self._block(setting) for setting in _BLOCKS]
        last = 6 * self._channels(_BLOCKS[-1].features)
        return (*layers, _conv_norm(last, 1))

    def _block(self, setting: _Setting) -> partial[InvertedResidual]:
        expanded = self._channels(setting.expanded)
        squeeze = None
        if setting.squeezes:
            squeezed = rounded(expanded // 4, divisor_of(self.width))
            squeeze = partial(SqueezeExcite, squeezed, nn.relu, nn.hard_sigmoid)
        return partial(
            InvertedResidual,
            expanded,
            self._channels(setting.features),
            setting.size,
            setting.stride,
            nn.hard_swish if setting.swishes else nn.relu,
            squeeze,
            _norm,
        )

    def _channels(self, published: int) -> int:
        return rounded(published * self.width / 16, divisor_of(self.width))


def _wide_hard_swish(x: Array) -> Array:
    """Return what the last layer takes in, in float32, in which it then computes."""
    return nn.hard_swish(x).astype(jnp.promote_types(x.dtype, jnp.float32))
