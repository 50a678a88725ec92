"""Convolutions as PyTorch makes them."""

from __future__ import annotations

import math
from typing import Any, TypeAlias, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from bdjax.models._convolution import conv_general_dilated
from bdjax.models._dense import uniform_fan_in

Size: TypeAlias = int | tuple[int, int]  # one for both axes, or that of rows and that of columns


def conv(
    features: int,
    size: Size,
    *,
    stride: Size = 1,
    padding: Size | None = None,
    dilation: Size = 1,
    groups: int = 1,
    bias: bool = False,
    kernel_init: Initializer = uniform_fan_in,
    name: str | None = None,
) -> nn.Conv:
    """Return a convolution that computes in the type of its input.

    Padding is explicit and the same on both sides: XLA's SAME pads (0, 1) at stride 2, PyTorch (1, 1).

    Args:
      features: output channels.
      size: of the window in pixels, as are ``stride``, ``dilation`` and ``padding``; a pair is of rows and columns.
      padding: zeros on each side; by default those that keep the size of the image at stride 1, of an odd window.
      groups: of channels that are convolved apart; ``groups`` = channels is a depthwise convolution.
      bias: whether one is added; it starts at zero, as in all networks of torchvision.
    """
    (down, across), window = pair(stride), pair(size)
    steps = pair(dilation)
    if padding is None:
        padding = (steps[0] * (window[0] // 2), steps[1] * (window[1] // 2))
    rows, columns = pair(padding)
    return nn.Conv(
        features,
        window,
        strides=(down, across),
        padding=((rows, rows), (columns, columns)),
        kernel_dilation=steps,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=kernel_init,
        promote_dtype=cast(Any, _in_the_type_of_the_input),
        conv_general_dilated=conv_general_dilated,
        name=name,
    )


def normal_fan_out(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Float[Array, "h w i o"]:
    """N(0, 2/fan_out), fan_out = h·w·o: He et al.'s, as torchvision's networks draw their convolutions."""
    height, width, _, features = shape
    deviation = math.sqrt(2 / (height * width * features))
    return deviation * jax.random.normal(key, shape, dtype)


def pair(size: Size) -> tuple[int, int]:
    """Return the number for rows and that for columns."""
    return size if isinstance(size, tuple) else (size, size)


def _in_the_type_of_the_input(
    x: Array, *parameters: Array | None, dtype: DTypeLike | None
) -> tuple[Array | None, ...]:
    """Cast a layer's parameters to the type of its input; Flax's own rule is the wider of the two."""
    del dtype
    return x, *(None if leaf is None else leaf.astype(x.dtype) for leaf in parameters)
