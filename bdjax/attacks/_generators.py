"""Networks that make a trigger out of an image, and what learning one takes; the blocks stand here once.

All take and return batches in NHWC. Images of any size go in: where a network halves them more often than they can be
halved, they are padded at the lower right with their edge, and the result is cut back.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import flax.linen as nn
import jax
import jax.core
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from bdjax.models._convolution import conv_general_dilated
from bdjax.models._layers import BatchNorm
from bdjax.types import HParam, Params, Spec, Variables

# U(−b, b) with b = 1/√fan_in, PyTorch's default
_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_HE = nn.initializers.he_normal()
_ONE_EACH = ((1, 1), (1, 1))
Activation: TypeAlias = Callable[[Array], Array]


def levels(height: int, width: int) -> int:
    """Return how often a network halves the images: four times, or until the shorter side has 2 pixels."""
    return max(min(4, int(math.log2(min(height, width))) - 1), 0)


def _padded(x: Float[Array, "n h w c"], multiple: int) -> Float[Array, "n H W c"]:
    below, right = (-size % multiple for size in x.shape[1:3])
    return jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")


def _conv(
    features: int,
    size: int = 3,
    stride: int = 1,
    padding: Any = _ONE_EACH,
    init: Any = _UNIFORM,
    doubling: bool = False,
) -> nn.Conv:
    """Return a convolution; with ``doubling`` there is a zero after each pixel first: a transposed one of stride 2."""
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=padding,
        input_dilation=2 if doubling else 1,
        kernel_init=init,
        bias_init=nn.initializers.zeros,
        conv_general_dilated=conv_general_dilated,  # type: ignore[arg-type]
    )


def _resized(
    x: Float[Array, "n h w c"],
    size: tuple[int, ...],
    method: str,
) -> Float[Array, "n H W c"]:
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), method)


class UShape(nn.Module):
    """Input-aware's mask and pattern network: down and up three times, without skips; unbounded output.

    Two blocks (3×3 convolution, batch norm, ReLU) of width · (1, 2, 4) channels before each 2×2 max pooling, one in
    the middle, two after each bilinear doubling; the last has no ReLU. An odd size is pooled to its half rounded up.
    """

    channels: int
    width: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h w k"]:
        def block(x: Array, features: int, then: Activation = nn.relu) -> Array:
            return then(BatchNorm(momentum=0.95)(_conv(features)(x), train=train))

        sizes, widths = [], [self.width, 2 * self.width, 4 * self.width]
        for features in widths:
            x = block(block(x, features), features)
            sizes.append(x.shape[1:3])
            x = nn.max_pool(x, (2, 2), (2, 2), padding="SAME")
        x = block(x, widths[-1])
        for size, features, after in zip(
            sizes[::-1], widths[::-1], [*widths[1::-1], 0], strict=True
        ):
            x = block(_resized(x, size, "bilinear"), features)
            x = block(x, after) if after else block(x, self.channels, then=lambda x: x)
        return x


class Autoencoder(nn.Module):
    """LIRA's generator: 4×4 convolutions of stride 2, then as many transposed ones; tanh of the last.

    width · (1, 2, 4, 8) channels on the way down, batch norm and ReLU between the layers. There are `levels` of each.
    """

    width: int = 16

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h w c"]:
        _, height, width, channels = x.shape
        depth = levels(height, width)
        x = _padded(x, 2**depth)
        for level in range(depth):
            x = nn.relu(BatchNorm()(_conv(self.width * 2**level, size=4, stride=2)(x), train=train))
        for level in reversed(range(depth)):
            features = self.width * 2 ** (level - 1) if level else channels
            x = _conv(features, size=4, padding=((2, 2), (2, 2)), doubling=True)(x)
            x = nn.relu(BatchNorm()(x, train=train)) if level else x
        return jnp.tanh(x)[:, :height, :width]


class Encoder(nn.Module):
    """StegaStamp's encoder: hides bits in an image; its output, a sigmoid, is the image.

    The bits become a picture of 16×16×3 (at most as large as the image), which is brought to the image's size by
    repeating pixels and laid beside its channels. Then a U-Net of `levels` halvings with skips, of width · (1, 1, 2, 4,
    8) channels, 3×3 convolutions with ReLU and no normalization.
    """

    width: int = 32

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "n h w c"],
        bits: Float[Array, "n b"],
    ) -> Float[Array, "n h w c"]:
        _, height, width, channels = image.shape
        depth = levels(height, width)
        image = _padded(image, 2**depth)
        small = tuple(min(16, size) for size in image.shape[1:3])
        dense = nn.Dense(3 * math.prod(small), kernel_init=_HE, bias_init=nn.initializers.zeros)
        hidden = nn.relu(dense(bits))
        hidden = _resized(hidden.reshape(-1, *small, 3), image.shape[1:3], "nearest")
        given = jnp.concatenate([image - 0.5, hidden], axis=-1)
        features = [self.width * factor for factor in (1, 1, 2, 4, 8)[: depth + 1]]
        maps = [nn.relu(_conv(features[0], init=_HE)(given))]
        for wide in features[1:]:
            maps.append(nn.relu(_conv(wide, stride=2, init=_HE)(maps[-1])))
        x = maps.pop()
        for skip, wide in zip(maps[::-1], features[-2::-1], strict=True):
            x = _resized(x, skip.shape[1:3], "nearest")
            x = nn.relu(_conv(wide, size=2, padding=((0, 1), (0, 1)), init=_HE)(x))
            x = jnp.concatenate([skip, x] if skip is not maps[0] else [skip, x, given], axis=-1)
            x = nn.relu(_conv(wide, init=_HE)(x))
        x = nn.relu(_conv(self.width, init=_HE)(x))
        x = _conv(channels, size=1, padding=((0, 0), (0, 0)))(x)
        return nn.sigmoid(x)[:, :height, :width]


class Decoder(nn.Module):
    """StegaStamp's decoder: the bits' logits from an image; convolutions, two dense layers, no normalization."""

    count: int
    width: int = 32

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"]) -> Float[Array, "n b"]:
        x = image - 0.5
        for factor, stride in ((1, 2), (1, 1), (2, 2), (2, 1), (2, 2), (4, 2), (4, 2)):
            x = nn.relu(_conv(self.width * factor, stride=stride, init=_HE)(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(16 * self.width, kernel_init=_HE, bias_init=nn.initializers.zeros)(x))
        return nn.Dense(self.count, kernel_init=_UNIFORM, bias_init=nn.initializers.zeros)(x)


def init(
    module: nn.Module,
    key: Key[Array, ""],
    *shapes: tuple[int, ...],
    **keywords: bool,
) -> Variables:
    """Return a network's fresh variables; ``shapes`` are those of one row of each input."""
    fixed = tuple(sorted(keywords.items()))
    if isinstance(key, jax.core.Tracer):  # the caller compiles
        return _init(module, key, shapes, fixed)
    return _compiled_init()(module, key, shapes, fixed)


def _init(module: nn.Module, key: Key[Array, ""], shapes: Any, keywords: Any) -> Variables:
    return dict(module.init(key, *(jnp.zeros((1, *shape)) for shape in shapes), **dict(keywords)))


@functools.cache
def _compiled_init() -> Callable[..., Variables]:
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(_init, static_argnums=(0, 2, 3), compiler_options=options)


def in_training(
    module: nn.Module, params: Params, batch_stats: Any, x: Float[Array, "n h w c"]
) -> tuple[Float[Array, "n h w k"], Any]:
    """Return a network's output with the batch's statistics, and the running ones after the pass."""
    variables = {"params": params, "batch_stats": batch_stats}
    out, changed = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return out, changed["batch_stats"]


def adam_step(
    params: Params,
    grads: Params,
    state: optax.OptState,
    learning_rate: HParam,
    betas: tuple[float, float] = (0.9, 0.999),
) -> tuple[Params, Any]:
    """Return the parameters and Adam's state (of `adam_init`) after a step; the rate may be traced."""
    updates, state = optax.scale_by_adam(*betas).update(grads, state)
    params = jax.tree.map(lambda value, update: value - learning_rate * update, params, updates)
    return params, state


def adam_init(params: Params) -> optax.ScaleByAdamState:
    """Return Adam's state before the first step; its ``count`` is the number of steps."""
    return cast(optax.ScaleByAdamState, optax.scale_by_adam().init(params))


def statistics(spec: Spec) -> Float[Array, "2 c"]:
    """Return the mean and the standard deviation of each channel, as `normalized` takes them."""
    images: Any = spec.modality
    return jnp.array([images.mean, images.std], jnp.float32)


def normalized(
    image: Float[Array, "*n h w c"],
    statistics: Float[Array, "2 c"],
) -> Float[Array, "*n h w c"]:
    """Return (x − mean) / std for each channel."""
    return (image - statistics[0]) / statistics[1]
