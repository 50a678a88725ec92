"""DenseNets with torchvision's names (Huang et al., Densely Connected Convolutional Networks, 2017)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bdjax.models._conv import conv
from bdjax.models._form import check_side
from bdjax.models._layers import (
    BatchNorm,
    Dense,
    LinenModel,
    check_images,
    check_options,
    pooled,
)
from bdjax.models._pooling import avg_pool, max_pool
from bdjax.types import Model, Spec

_conv = partial(conv, kernel_init=nn.initializers.variance_scaling(2.0, "fan_in", "normal"))
_SMALLEST = 29  # pixels of a side that five halvings leave one of


def densenet(name: str, spec: Spec, depths: tuple[int, ...], width: int, dtype: str) -> Model:
    """Create a DenseNet with so many layers in each dense block; the rest is as in `densenet121`."""
    check_options(width, dtype)
    check_images(name, spec)
    check_side(name, spec, _SMALLEST)
    return LinenModel(_DenseNet(spec.num_classes, depths, width), spec, dtype)


class _DenseNet(nn.Module):
    num_classes: int
    depths: tuple[int, ...]
    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n k"]:
        features = _Features(self.depths, self.width, name="features")
        x = nn.relu(features(x, train=train, valid=valid))
        last = Dense(self.num_classes, bias_init=nn.initializers.zeros, name="classifier")
        return last(pooled(x))


class _Features(nn.Module):
    depths: tuple[int, ...]
    width: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool, valid: Array | None) -> Array:
        x = _conv(self.width, 7, stride=2, name="conv0")(x)
        x = nn.relu(BatchNorm(name="norm0")(x, train=train, valid=valid))
        x = max_pool(x, 3, 2, 1)
        growth = max(1, self.width // 2)
        for number, depth in enumerate(self.depths, start=1):
            block = _DenseBlock(depth, growth, name=f"denseblock{number}")
            x = block(x, train=train, valid=valid)
            if number < len(self.depths):
                x = _Transition(name=f"transition{number}")(x, train=train, valid=valid)
        return BatchNorm(name="norm5")(x, train=train, valid=valid)


class _DenseBlock(nn.Module):
    """Layers that each take in all that came before, and add ``growth`` channels to it."""

    depth: int
    growth: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool, valid: Array | None) -> Array:
        for number in range(1, self.depth + 1):
            layer = _DenseLayer(self.growth, name=f"denselayer{number}")
            x = jnp.concatenate([x, layer(x, train=train, valid=valid)], -1)
        return x


class _DenseLayer(nn.Module):
    """1×1 to four times the growth, and 3×3 to the growth, each after its batch norm and ReLU."""

    growth: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool, valid: Array | None) -> Array:
        x = nn.relu(BatchNorm(name="norm1")(x, train=train, valid=valid))
        x = _conv(4 * self.growth, 1, name="conv1")(x)
        x = nn.relu(BatchNorm(name="norm2")(x, train=train, valid=valid))
        return _conv(self.growth, 3, name="conv2")(x)


class _Transition(nn.Module):
    """Half the channels, and half the rows and columns."""

    @nn.compact
    def __call__(self, x: Array, *, train: bool, valid: Array | None) -> Array:
        channels = x.shape[-1] // 2
        x = nn.relu(BatchNorm(name="norm")(x, train=train, valid=valid))
        return avg_pool(_conv(channels, 1, name="conv")(x), 2)
