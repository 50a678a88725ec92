"""ConvNeXt-T with torchvision's names (Liu et al., A ConvNet for the 2020s, 2022)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from bdjax.checks import integer
from bdjax.models._conv import conv
from bdjax.models._dropout import StochasticDepth
from bdjax.models._form import check_side
from bdjax.models._gelu import gelu
from bdjax.models._layer_norm import LayerNorm
from bdjax.models._layers import Dense, LinenModel, check_images, check_options, pooled
from bdjax.models._sequential import Layer, Sequential
from bdjax.types import Model, Spec

_DROPPED = 0.1  # how often the last block is left out in training; the first never is
_SMALLEST = 32  # pixels a side, which the stem divides by 4, and each of three steps by 2

_normal = nn.initializers.normal(0.02)
_conv = partial(conv, bias=True, kernel_init=_normal)
_dense = partial(Dense, kernel_init=_normal, bias_init=nn.initializers.zeros)


def convnext_tiny(spec: Spec, width: int = 96, blocks: int = 3, dtype: str = "float32") -> Model:
    """Create torchvision's ConvNeXt-T: 4×4 patches, four stages of blocks with a 7×7 depthwise convolution, pooling.

    At 10 classes it has 27,827,818 parameters, and no batch norm: layer norm over the channels in its place.

    Args:
      spec: the images' specification; 32 pixels a side or more.
      width: channels of the first stage; the four have width · (1, 2, 4, 8).
      blocks: of a stage; the third has three times as many.
      dtype: in which the layers compute, ``"float32"`` or ``"bfloat16"``; variables, features and logits are float32.

    Raises:
      InputError: ``width`` or ``blocks`` below 1, an unknown ``dtype``, or a specification of other inputs or of
        smaller images.
    """
    check_options(width, dtype)
    integer(1, blocks=blocks)
    check_images("convnext_tiny", spec)
    check_side("convnext_tiny", spec, _SMALLEST)
    depths = (blocks, blocks, 3 * blocks, blocks)
    return LinenModel(_ConvNeXt(spec.num_classes, width, depths), spec, dtype)


class _ConvNeXt(nn.Module):
    num_classes: int
    width: int
    depths: tuple[int, ...]

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n k"]:
        del valid  # no row meets another
        x = pooled(Sequential(self._features(), name="features")(x, train=train))
        # Position 1 flattens maps of one pixel, which are flat here
        layers = (partial(LayerNorm), _same, partial(_dense, self.num_classes))
        return Sequential(layers, name="classifier")(x, train=train)

    def _features(self) -> tuple[Layer, ...]:
        stem = (partial(_conv, self.width, 4, stride=4, padding=0), partial(LayerNorm))
        layers: list[Layer] = [partial(Sequential, stem)]
        done, last = 0, sum(self.depths) - 1
        for number, depth in enumerate(self.depths):
            if number:
                halve = partial(_conv, self.width * 2**number, 2, stride=2, padding=0)
                layers.append(partial(Sequential, (partial(LayerNorm), halve)))
            rates = [_DROPPED * block / last for block in range(done, done + depth)]
            layers.append(partial(Sequential, tuple(partial(_Block, rate) for rate in rates)))
            done += depth
        return tuple(layers)


class _Block(nn.Module):
    """A depthwise convolution, layer norm and two dense layers on each pixel; scaled, and added to its input."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h w c"]:
        width = x.shape[-1]
        depthwise = partial(_conv, width, 7, groups=width)
        wide, narrow = partial(_dense, 4 * width), partial(_dense, width)
        # Position 1 moves the channels last in PyTorch
        layers = (depthwise, _same, partial(LayerNorm), wide, gelu, narrow)
        out = Sequential(layers, name="block")(x, train=train)
        scale = self.param("layer_scale", nn.initializers.constant(1e-6), (width, 1, 1))
        out = (out * scale.reshape(-1)).astype(x.dtype)
        return x + StochasticDepth(self.rate, name="stochastic_depth")(out, train=train)


def _same(x: Array) -> Array:
    return x
