"""VGG networks with torchvision's names (Simonyan and Zisserman, Very Deep Convolutional Networks, 2015)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bdjax.models._conv import conv, normal_fan_out
from bdjax.models._dropout import Dropout
from bdjax.models._form import check_side, form
from bdjax.models._layers import (
    BatchNorm,
    Dense,
    LinenModel,
    check_images,
    check_options,
    pooled,
)
from bdjax.models._pooling import adaptive_avg_pool, max_pool
from bdjax.models._sequential import Layer, Sequential
from bdjax.types import Model, Spec

_dense = partial(Dense, kernel_init=nn.initializers.normal(0.01), bias_init=nn.initializers.zeros)


def vgg(
    name: str,
    spec: Spec,
    depths: tuple[int, ...],
    width: int,
    head: str,
    dtype: str,
    *,
    batch_norm: bool,
) -> Model:
    """Create a VGG with so many convolutions before each of its five poolings; the rest is as in `vgg16`."""
    check_options(width, dtype)
    check_images(name, spec)
    check_side(name, spec, 2 ** len(depths))
    head = form(spec, head=head)
    return LinenModel(_VGG(spec.num_classes, depths, width, head, batch_norm), spec, dtype)


class _VGG(nn.Module):
    num_classes: int
    depths: tuple[int, ...]
    width: int
    head: str
    batch_norm: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n k"]:
        x = Sequential(self._features(), name="features")(x, train=train, valid=valid)
        if self.head == "cifar":
            return _dense(self.num_classes, name="classifier")(pooled(x))
        # PyTorch flattens channel by channel
        x = adaptive_avg_pool(x, 7).transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        return Sequential(self._classifier(), name="classifier")(x, train=train)

    def _features(self) -> tuple[Layer, ...]:
        layers: list[Layer] = []
        for number, depth in enumerate(self.depths):
            features = self.width * min(2**number, 8)
            convolution = partial(conv, features, 3, bias=True, kernel_init=normal_fan_out)
            norm = [partial(BatchNorm)] if self.batch_norm else []
            layers += [convolution, *norm, nn.relu] * depth
            layers.append(_halved)
        return tuple(layers)

    def _classifier(self) -> tuple[Layer, ...]:
        hidden = partial(_dense, 64 * self.width)
        dropout = partial(Dropout, 0.5)
        last = partial(_dense, self.num_classes)
        return (hidden, nn.relu, dropout, hidden, _wide_relu, dropout, last)


def _halved(x: Array) -> Array:
    return max_pool(x, 2)


def _wide_relu(x: Array) -> Array:
    """Return what the last layer takes in, in float32, in which it then computes."""
    return nn.relu(x).astype(jnp.promote_types(x.dtype, jnp.float32))
