"""A convolution that is fast inside a compiled loop on the CPU, as are its derivatives of every order.

XLA's CPU compiler brings a convolution into the form of its fast kernel only in the entry computation, not in the body
of a loop. A convolution in the layout NHWC/HWIO/NHWC has that form from the start; the derivatives that JAX takes of it
have not. So here is a primitive of its own. With image x, kernel w and cotangent y it stands for the trilinear form

    T(x, w, y) = Σ_{n,p,k,i,o} x̂[n, p·stride + k·kernel_step − low, i] · w[k, i, o] · y[n, p, o],

written for one spatial axis, where x̂[j·image_step] = x[j] and x̂ is zero elsewhere. The derivative of T by one of the
three is a bilinear function of the other two: by y it is the convolution of x and w, by x and by w its two gradients.
Bilinear functions differentiate to sums of themselves in forward mode, and the transposes of these three in reverse
mode are one another. Hence one primitive is closed under differentiation, and only its lowering knows of layouts.

Each array has a leading axis m of independent problems, which `jax.vmap` over both operands makes longer. A map over
one operand alone makes that axis longer which this operand shares with the result: n, i or o.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType
from jaxtyping import Array, Float

from bdjax.models._materialized import materialized
from bdjax.types import Leaf

_FEW = 16  # channels of a result that fill one vector register, measured with AVX-512
# Where matrix products are faster than XLA's kernel, on two cores: a kernel's gradient above so many products of
# numbers (2 to 9 times, with 64 channels at 32×32 or 112×112), and what is convolved of at most so many pixels a side
# (10 to 80 times, with 128 to 512 channels at 2×2) above so many numbers in a tap of the kernel.
_MANY_PRODUCTS = 10_000_000
_FEW_PIXELS, _LARGE_TAP = 2, 1024
_LAYOUT = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC"))


def conv_general_dilated(
    image: Float[Array, "n h w i"],
    kernel: Float[Array, "kh kw i_of_group o"],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = _LAYOUT,
    **options: Any,
) -> Float[Array, "n p q o"]:
    """Convolve as `jax.lax.conv_general_dilated` does; the argument of that name of `flax.linen.Conv`.

    It is JAX's own on accelerators, with groups, with a given precision, in another layout, and where a mesh axis is
    manual or explicit (`jax.shard_map`), as then the types of arrays say more than a primitive can follow.
    """
    own = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        **options,
    )
    plain = all(value in (None, 1) for value in options.values())
    layout = lax.conv_dimension_numbers(image.shape, kernel.shape, dimension_numbers)
    if jax.default_backend() != "cpu" or not plain or layout != _LAYOUT:
        return own(image, kernel)
    if not (is_auto(image) and is_auto(kernel)):
        return own(image, kernel)
    geometry = _Geometry(
        image=image.shape[1:3],
        kernel=kernel.shape[:2],
        out=jax.eval_shape(own, image, kernel).shape[1:3],
        stride=tuple(window_strides),
        low=tuple(low for low, _ in padding),
        image_step=tuple(lhs_dilation or (1, 1)),
        kernel_step=tuple(rhs_dilation or (1, 1)),
    )
    return _derivative("out", image[None], kernel[None], geometry)[0]


def is_auto(x: Array) -> bool:
    """Whether the compiler alone decides how an array lies on the mesh."""
    return set(jax.typeof(x).sharding.mesh.axis_types) <= {AxisType.Auto}


_Pair: TypeAlias = tuple[int, ...]  # of a number for rows and one for columns


class _Geometry(NamedTuple):
    """The sizes of the three arrays of T, and how they meet; each for rows and columns."""

    image: _Pair
    kernel: _Pair
    out: _Pair
    stride: _Pair
    low: _Pair
    image_step: _Pair
    kernel_step: _Pair


_AXES = {"image": "mnhwi", "kernel": "mhwio", "out": "mnhwo"}
_OPERANDS = {
    "out": ("image", "kernel"),
    "image": ("out", "kernel"),
    "kernel": ("image", "out"),
}

_primitive = Primitive("bdjax_convolution")


def _derivative(by: str, left: Array, right: Array, geometry: _Geometry) -> Array:
    """Return the derivative of T by one array, given the other two in the order of `_OPERANDS`."""
    return _primitive.bind(left, right, by=by, geometry=geometry)


def _shape(left: Leaf, right: Leaf, by: str, geometry: _Geometry) -> tuple[int, ...]:
    sizes: dict[str, int] = {}
    for role, array in zip(_OPERANDS[by], (left, right), strict=True):
        sizes |= zip(_AXES[role], array.shape, strict=True)
    sizes |= zip("hw", getattr(geometry, by), strict=True)
    return tuple(sizes[axis] for axis in _AXES[by])


# How it is computed


def _value(left: Array, right: Array, *, by: str, geometry: _Geometry) -> Array:
    if not (left.size and right.size):
        return jnp.zeros(_shape(left, right, by, geometry), left.dtype)
    compute = functools.partial(
        {"out": _out, "image": _image, "kernel": _kernel}[by], geometry=geometry
    )
    if len(left) == 1:
        return compute(left[0], right[0])[None]
    # JAX's grouped convolution: as fast as small matrix products, and it needs the least memory
    if by == "kernel" and not _is_large(left[0], right[0], geometry):
        return jax.vmap(compute)(left, right)
    # One after the other: grouped, the convolution and its gradient by the image are slower.
    return lax.map(lambda pair: compute(*pair), (left, right))


def _out(image: Array, kernel: Array, geometry: _Geometry) -> Array:
    g = geometry
    if _of_pixels(g):
        image, g = _met(image, g), g._replace(stride=(1, 1))
    return _convolve(image, kernel, g.out, g.stride, g.low, g.image_step, g.kernel_step)


def _image(cotangent: Array, kernel: Array, geometry: _Geometry) -> Array:
    """Convolve the cotangent with the kernel turned by 180 degrees, its channels exchanged."""
    g = geometry
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    lows: list[int] = []
    for size, step, before in zip(g.kernel, g.kernel_step, g.low, strict=True):
        lows.append(_span(size, step) - 1 - before)
    low = tuple(lows)
    return _convolve(cotangent, turned, g.image, g.image_step, low, g.stride, g.kernel_step)


def _kernel(image: Array, cotangent: Array, geometry: _Geometry) -> Array:
    """Convolve the image with the cotangent, batch and channels exchanged."""
    g = geometry
    if _of_pixels(g):  # no position meets another, so that the sum over all is one matrix product
        image = _met(image, g)
        image = materialized(image.reshape(-1, image.shape[-1]))
        cotangent = materialized(cotangent.reshape(-1, cotangent.shape[-1]))
        return (image.T @ cotangent)[None, None]
    if _is_large(image, cotangent, g):
        return _kernel_of_products(image, cotangent, g)
    image, cotangent = materialized(image), materialized(cotangent)
    image, cotangent = image.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3)
    gradient = _convolve(image, cotangent, g.kernel, g.kernel_step, g.low, g.image_step, g.stride)
    return gradient.transpose(1, 2, 0, 3)


def _is_large(image: Array, cotangent: Array, geometry: _Geometry) -> bool:
    """Tell whether a kernel's gradient is large enough to be made by matrix products."""
    products = cotangent.size * image.shape[-1] * math.prod(geometry.kernel)
    return products >= _MANY_PRODUCTS and not _of_pixels(geometry)


def _kernel_of_products(image: Array, cotangent: Array, geometry: _Geometry) -> Array:
    """Return the kernel's gradient row by row: a row's taps lie side by side in one matrix of pixels."""
    g = geometry
    starts = [range(0, k * step, step) for k, step in zip(g.kernel, g.kernel_step, strict=True)]
    ends = [_span(p, s) for p, s in zip(g.out, g.stride, strict=True)]
    padded = _padded(image, g.low, [ends[a] + starts[a][-1] for a in (0, 1)], g.image_step)
    (tall, wide), (down, across) = ends, g.stride
    values = materialized(cotangent.reshape(-1, cotangent.shape[-1]))
    rows: list[Array] = []
    for i in starts[0]:
        taps = [padded[:, i : i + tall : down, j : j + wide : across] for j in starts[1]]
        side_by_side = jnp.concatenate(taps, 3)
        pixels = materialized(side_by_side.reshape(-1, side_by_side.shape[3]))
        rows.append(pixels.T @ values)
    return jnp.stack(rows).reshape(*g.kernel, image.shape[-1], cotangent.shape[-1])


def _padded(image: Array, low: _Pair, size: Sequence[int], step: _Pair) -> Array:
    """Pad an image to a size, with low zeros before and step − 1 between its pixels."""
    spans = [_span(pixels, s) for pixels, s in zip(image.shape[1:3], step, strict=True)]
    pads = [(low[a], size[a] - spans[a] - low[a], step[a] - 1) for a in (0, 1)]
    return lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), *pads, (0, 0, 0)])


def _of_pixels(geometry: _Geometry) -> bool:
    """Tell a 1×1 convolution without padding, with or without a stride."""
    g = geometry
    if not (g.kernel == g.image_step == (1, 1) and g.low == (0, 0)):
        return False
    return all(_span(p, s) <= x for p, s, x in zip(g.out, g.stride, g.image, strict=True))


def _met(image: Array, geometry: _Geometry) -> Array:
    """Return the pixels that such a convolution takes in."""
    (p, q), (down, across) = geometry.out, geometry.stride
    return image[:, : _span(p, down) : down, : _span(q, across) : across]


def _convolve(
    image: Array,
    kernel: Array,
    out: _Pair,
    stride: _Pair,
    low: _Pair,
    image_step: _Pair,
    kernel_step: _Pair,
) -> Array:
    """Convolve in the layout of the fast kernel, with the padding at the end that gives the size asked for."""
    few = max(image.shape[1:3]) <= _FEW_PIXELS and math.prod(kernel.shape[2:]) >= _LARGE_TAP
    if few and (stride == (1, 1) or image_step == (1, 1)):
        return _tap_by_tap(image, kernel, out, stride, low, image_step, kernel_step)
    pads: list[tuple[int, int]] = []
    for axis in (0, 1):
        taken = _span(out[axis], stride[axis]) + _span(kernel.shape[axis], kernel_step[axis]) - 1
        there = _span(image.shape[1 + axis], image_step[axis])
        pads.append((low[axis], taken - there - low[axis]))
    convolve = functools.partial(
        lax.conv_general_dilated, padding=pads, lhs_dilation=image_step, dimension_numbers=_LAYOUT
    )
    plain = {1} == {*stride, *image_step, *kernel_step}
    if not (plain and out[1] % 2 == 0 and kernel.shape[3] <= _FEW):
        return convolve(image, kernel, stride, rhs_dilation=kernel_step)
    # Two neighboring columns as one, with twice the channels: so many more values a load of the fast kernel.
    left = jnp.pad(kernel, ((0, 0), (0, 1), (0, 0), (0, 0)))
    right = jnp.pad(kernel, ((0, 0), (1, 0), (0, 0), (0, 0)))
    pairs = convolve(image, jnp.concatenate([left, right], 3), (1, 2))
    return pairs.reshape(*pairs.shape[:2], out[1], kernel.shape[3])


def _tap_by_tap(
    image: Array,
    kernel: Array,
    out: _Pair,
    stride: _Pair,
    low: _Pair,
    image_step: _Pair,
    kernel_step: _Pair,
) -> Array:
    """Convolve by a matrix product for each tap of the kernel, of those pixels alone that it meets."""
    total = jnp.zeros((image.shape[0], *out, kernel.shape[3]), image.dtype)
    met = [
        [
            _meeting(tap * kernel_step[axis] - low[axis], image.shape[1 + axis], out[axis], *steps)
            for tap in range(kernel.shape[axis])
        ]
        for axis, steps in enumerate(zip(image_step, stride, strict=True))
    ]
    for i, rows in enumerate(met[0]):
        for j, columns in enumerate(met[1]):
            if rows is not None and columns is not None:
                pixels = image[:, rows.taken, columns.taken]
                pads = ((0, 0, 0), rows.placed, columns.placed, (0, 0, 0))
                total += lax.pad(pixels @ kernel[i, j], jnp.zeros((), image.dtype), pads)
    return total


class _Meeting(NamedTuple):
    """The pixels of an axis that a tap takes in, and how `jax.lax.pad` brings them to where they are added."""

    taken: slice
    placed: tuple[int, int, int]


def _meeting(
    offset: int, pixels: int, outputs: int, image_step: int, stride: int
) -> _Meeting | None:
    """Return where pixel · image_step = output · stride + offset, None where it never is; a step is one."""
    pairs = [
        (pixel, output)
        for pixel in range(pixels)
        for output in range(outputs)
        if pixel * image_step == output * stride + offset
    ]
    if not pairs:
        return None
    (first, begin), (last, end) = pairs[0], pairs[-1]
    taken = slice(first, last + 1, stride)
    return _Meeting(taken, (begin, outputs - 1 - end, image_step - 1))


def _span(size: int, step: int) -> int:
    """Return the length of so many values with step − 1 zeros between them."""
    return (size - 1) * step + 1 if size else 0


# How it transforms


@_primitive.def_abstract_eval
def _type(left: Leaf, right: Leaf, *, by: str, geometry: _Geometry) -> Leaf:
    return left.update(shape=_shape(left, right, by, geometry), weak_type=False)


def _transpose(of: int, cotangent: Array, *operands: Leaf, by: str, geometry: _Geometry) -> Array:
    """Transpose ∂T/∂c, a function of a and b, in its operand a: that is ∂T/∂a, a function of c and b."""
    role, other = _OPERANDS[by][of], _OPERANDS[by][1 - of]
    given = {by: cotangent, other: operands[1 - of]}
    left, right = _OPERANDS[role]
    return _derivative(role, given[left], given[right], geometry)


def _batch(
    operands: Sequence[Array], mapped: Sequence[int | None], *, by: str, geometry: _Geometry
) -> tuple[Array, int]:
    """Merge the mapped axis into m, or for one mapped operand into the axis that it shares with the result."""
    roles = [role for role, at in zip(_OPERANDS[by], mapped, strict=True) if at is not None]
    axis = "m" if len(roles) == 2 else _shared_axis(roles[0], by)
    merged, parts = list(operands), ()
    for index, (role, at) in enumerate(zip(_OPERANDS[by], mapped, strict=True)):
        if at is not None:
            where = _AXES[role].index(axis)
            array = jnp.moveaxis(operands[index], at, where)
            parts = array.shape[where : where + 2]
            merged[index] = lax.collapse(array, where, where + 2)
    left, right = merged
    result = _derivative(by, left, right, geometry)
    where = _AXES[by].index(axis)
    return result.reshape(*result.shape[:where], *parts, *result.shape[where + 1 :]), where


def _shared_axis(role: str, by: str) -> str:
    (axis,) = {"n", "i", "o"} & set(_AXES[role]) & set(_AXES[by])
    return axis


_primitive.def_impl(jax.jit(_value, static_argnames=("by", "geometry")))
mlir.register_lowering(_primitive, mlir.lower_fun(_value, multiple_results=False))
ad.defbilinear(_primitive, functools.partial(_transpose, 0), functools.partial(_transpose, 1))
batching.primitive_batchers[_primitive] = _batch
