"""A convolution whose gradients stay fast inside a compiled loop on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_Pairs = tuple[tuple[int, int], ...]


def conv_general_dilated(
    image: Float[Array, "n h w i"],
    kernel: Float[Array, "kh kw i_of_group o"],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "n p q o"]:
    """Convolve as `jax.lax.conv_general_dilated` does; the argument of that name of `flax.linen.Conv`.

    XLA's CPU compiler brings a convolution into the form of its fast kernel only in the entry computation, not in the
    body of a loop. The forward pass of an NHWC/HWIO/NHWC convolution has that form from the start, the two gradients
    that JAX derives do not. So on the CPU both are written here in that layout; elsewhere this is JAX's own.

    Second derivatives, forward or reverse over reverse, are right everywhere, and JAX's own. Forward mode alone (`jvp`
    of something that is no gradient) does not work on the CPU.
    """
    plain = all(options.get(name) in (None, (1, 1)) for name in ("lhs_dilation", "rhs_dilation"))
    plain = plain and options.get("feature_group_count", 1) == 1 and options.get("precision") is None
    if jax.default_backend() != "cpu" or not plain:
        return lax.conv_general_dilated(image, kernel, window_strides, padding, **options)
    return _convolve(image, kernel, tuple(window_strides), tuple((low, high) for low, high in padding))


def _plain(image: Array, kernel: Array, strides: tuple[int, ...], padding: _Pairs) -> Array:
    return lax.conv_general_dilated(image, kernel, strides, padding, dimension_numbers=_LAYOUT)


_convolve = jax.custom_vjp(_plain, nondiff_argnums=(2, 3))


def _forward(image: Array, kernel: Array, strides: tuple[int, ...], padding: _Pairs) -> tuple[Array, Any]:
    # Not _convolve: forward mode over this gradient differentiates what stands here.
    return _plain(image, kernel, strides, padding), (image, kernel)


def _backward(strides: tuple[int, ...], padding: _Pairs, saved: Any, cotangent: Array) -> tuple[Array, Array]:
    image, kernel = saved
    return _image_gradient(image, kernel, strides, padding, cotangent), _kernel_gradient(
        image, kernel, strides, padding, cotangent
    )


def _image_gradient(image: Array, kernel: Array, strides: tuple[int, ...], padding: _Pairs, cotangent: Array) -> Array:
    """Convolve the dilated cotangent with the kernel turned by 180 degrees, its channels exchanged."""
    low = [size - 1 - pad[0] for size, pad in zip(kernel.shape[:2], padding, strict=True)]
    high = [
        image.shape[axis + 1] + kernel.shape[axis] - 1 - low[axis] - _dilated(cotangent.shape[axis + 1], strides[axis])
        for axis in range(2)
    ]
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    return lax.conv_general_dilated(
        cotangent, turned, (1, 1), list(zip(low, high, strict=True)), lhs_dilation=strides, dimension_numbers=_LAYOUT
    )


def _kernel_gradient(image: Array, kernel: Array, strides: tuple[int, ...], padding: _Pairs, cotangent: Array) -> Array:
    """Convolve the image with the dilated cotangent, batch and channels exchanged."""
    pads = [
        (pad[0], kernel.shape[axis] - 1 + _dilated(cotangent.shape[axis + 1], strides[axis]) - size - pad[0])
        for axis, (size, pad) in enumerate(zip(image.shape[1:3], padding, strict=True))
    ]
    gradient = lax.conv_general_dilated(
        image.transpose(3, 1, 2, 0),
        cotangent.transpose(1, 2, 0, 3),
        (1, 1),
        pads,
        rhs_dilation=strides,
        dimension_numbers=_LAYOUT,
    )
    return gradient.transpose(1, 2, 0, 3)


def _dilated(size: int, stride: int) -> int:
    return (size - 1) * stride + 1


_convolve.defvjp(_forward, _backward)
