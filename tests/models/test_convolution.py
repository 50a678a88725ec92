"""The convolution's values and derivatives of every kind are those of JAX's own."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from quick import quick_jit

from bdjax.models import _convolution
from bdjax.models._convolution import conv_general_dilated

LAYOUT = ("NHWC", "HWIO", "NHWC")
jax_own = functools.partial(lax.conv_general_dilated, dimension_numbers=LAYOUT)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), actual, expected
    )


# Shapes

CASES = {
    "3x3": ((8, 8), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1)),
    "stride": ((8, 8), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), (1, 1)),
    "odd": ((7, 5), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), (1, 1)),
    "1x1": ((8, 7), (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), (1, 1)),
    "1x1 cropped": ((8, 7), (1, 1), (2, 2), ((0, -2), (0, 0)), (1, 1), (1, 1)),
    "wide padding": ((6, 6), (1, 1), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1)),
    "uneven": ((9, 8), (5, 2), (3, 1), ((0, 2), (1, 0)), (1, 1), (1, 1)),
    "cropped": ((8, 9), (2, 4), (2, 3), ((-1, 1), (2, -2)), (1, 1), (1, 1)),
    "dilated": ((6, 5), (2, 3), (2, 1), ((1, 0), (3, -1)), (2, 3), (3, 2)),
    "no position": ((2, 5), (3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1)),
}


def value_and_gradients(convolve, image, kernel, cotangent):
    value, pull = jax.vjp(convolve, image, kernel)
    return value, pull(cotangent)


def assert_jax_own(lengths, sizes, strides, padding, dilation, kernel_dilation, channels=(3, 4)):
    options = {
        "window_strides": strides,
        "padding": padding,
        "lhs_dilation": dilation,
        "rhs_dilation": kernel_dilation,
    }
    image, kernel = normal(2, *lengths, channels[0]), normal(*sizes, *channels)
    ours, own = (
        functools.partial(convolve, **options) for convolve in (conv_general_dilated, jax_own)
    )
    cotangent = normal(*jax.eval_shape(own, image, kernel).shape)
    use = quick_jit(value_and_gradients, static_argnums=0)
    assert_close(use(ours, image, kernel, cotangent), use(own, image, kernel, cotangent))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients(case):
    assert_jax_own(*case)


@pytest.mark.parametrize("channels", [(3, 20), (20, 3), (20, 20)], ids=str)
def test_values_and_gradients_of_many_channels(channels):
    assert_jax_own(*CASES["3x3"], channels)


@pytest.fixture
def always_of_products(monkeypatch):
    """Let sizes decide nothing: matrix products wherever they can be."""
    monkeypatch.setattr(_convolution, "_MANY_PRODUCTS", 0)
    monkeypatch.setattr(_convolution, "_LARGE_TAP", 0)
    monkeypatch.setattr(_convolution, "_FEW_PIXELS", 100)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_of_matrix_products(always_of_products, case):
    assert_jax_own(*case)


@pytest.mark.parametrize(
    ("image", "kernel", "stride"),
    [
        ((4, 2, 2, 32), (3, 3, 32, 32), 1),  # all three by products but the kernel's gradient
        ((4, 1, 1, 32), (3, 3, 32, 64), 2),
        ((8, 32, 32, 16), (3, 3, 16, 64), 1),  # the kernel's gradient alone
    ],
)
def test_matrix_products_take_the_place_of_slow_convolutions(image, kernel, stride):
    pads = ((1, 1), (1, 1))
    operands = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (image, kernel)]

    def loss(*of):
        return conv_general_dilated(*of, (stride, stride), pads).sum()

    lowered = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*operands).as_text()
    convolutions = len(re.findall(r"stablehlo.convolution\(", lowered))
    assert convolutions == (2 if image[1] > 2 else 1)


def test_mapped_kernel_gradients_of_products_are_those_of_one_by_one(always_of_products):
    image, kernel, cotangent = normal(3, 2, 8, 8, 4), normal(3, 3, 3, 4, 5), normal(3, 2, 8, 8, 5)

    def gradient(image, kernel, cotangent):
        convolve = functools.partial(
            conv_general_dilated, image, window_strides=(1, 1), padding=((1, 1), (1, 1))
        )
        return jax.vjp(convolve, kernel)[1](cotangent)

    mapped = jax.jit(jax.vmap(gradient))(image, kernel, cotangent)
    alone = [gradient(*of) for of in zip(image, kernel, cotangent, strict=True)]
    assert_close(mapped, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone))


def pairs(low: int, high: int):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@settings(max_examples=5, deadline=None)
@given(
    pairs(4, 7),
    pairs(1, 4),
    pairs(1, 3),
    st.tuples(pairs(-1, 3), pairs(-1, 3)),
    pairs(1, 3),
    pairs(1, 3),
)
def test_values_and_gradients_of_any_shape(
    lengths, sizes, strides, padding, dilation, kernel_dilation
):
    assert_jax_own(lengths, sizes, strides, padding, dilation, kernel_dilation)


# Uses


def loss(convolve, image, kernel):
    return jnp.sum(jnp.sin(convolve(image, kernel, (2, 2), ((1, 1), (1, 1)))))


def gradients(convolve, image, kernel):
    return jax.grad(functools.partial(loss, convolve), (0, 1))(image, kernel)


def squared_norm(convolve, image, kernel):
    return sum(jnp.sum(grad**2) for grad in gradients(convolve, image, kernel))


def forward(convolve, image, kernel):
    return jax.jvp(
        functools.partial(loss, convolve), (image, kernel), (jnp.cos(image), jnp.cos(kernel))
    )


def forward_over_reverse(convolve, image, kernel):
    return jax.jvp(
        functools.partial(gradients, convolve), (image, kernel), (jnp.cos(image), jnp.cos(kernel))
    )


def reverse_over_reverse(convolve, image, kernel):
    return jax.grad(functools.partial(squared_norm, convolve), (0, 1))(image, kernel)


def reverse_over_forward(convolve, image, kernel):
    return jax.grad(lambda image, kernel: forward(convolve, image, kernel)[1], (0, 1))(
        image, kernel
    )


def third_order(convolve, image, kernel):
    def use(image, kernel):
        return reverse_over_reverse(convolve, image, kernel)

    return jax.jvp(use, (image, kernel), (jnp.cos(image), jnp.cos(kernel)))[1]


def rematerialized(convolve, image, kernel):
    return jax.grad(jax.checkpoint(functools.partial(loss, convolve)), (0, 1))(image, kernel)


def inside_scan(convolve, image, kernel):
    def descend(kernel, _):
        grads = gradients(convolve, image, kernel)
        return kernel - 0.1 * grads[1], grads[0].sum()

    return lax.scan(descend, kernel, length=3)


def map_of_images(convolve, image, kernel):
    images = jnp.stack([image, 2 * image], 2)
    return jax.vmap(functools.partial(gradients, convolve), (2, None), 1)(images, kernel)


def map_of_kernels(convolve, image, kernel):
    kernels = jnp.stack([kernel, 2 * kernel], -1)
    return jax.vmap(functools.partial(gradients, convolve), (None, -1))(image, kernels)


def of_each_example(convolve, image, kernel):
    return jax.vmap(lambda row: gradients(convolve, row[None], kernel))(image)


def of_each_example_and_kernel(convolve, image, kernel):
    kernels = jnp.stack([kernel, 2 * kernel], 1)
    return jax.vmap(lambda kernel: of_each_example(convolve, image, kernel), 1)(kernels)


def penalty_on_each_example(convolve, image, kernel):
    def penalty(image, kernel):
        return sum(jnp.sum(grad**4) for grad in of_each_example(convolve, image, kernel))

    return jax.grad(penalty, (0, 1))(image, kernel)


@pytest.mark.parametrize(
    "use",
    [
        forward,
        forward_over_reverse,
        reverse_over_reverse,
        reverse_over_forward,
        third_order,
        rematerialized,
        inside_scan,
        map_of_images,
        map_of_kernels,
        of_each_example_and_kernel,
        penalty_on_each_example,
    ],
)
def test_derivatives_where_they_are_used(use):
    image, kernel = 0.3 * normal(3, 7, 5, 2), 0.3 * normal(3, 3, 2, 4)
    ours, own = (
        quick_jit(use, static_argnums=0)(convolve, image, kernel)
        for convolve in (conv_general_dilated, jax_own)
    )
    assert_close(ours, own)


def test_every_convolution_of_a_second_derivative_is_in_the_fast_layout():
    image, kernel = normal(2, 6, 6, 3), normal(3, 3, 3, 4)
    text = (
        jax.jit(reverse_over_reverse, static_argnums=0)
        .lower(conv_general_dilated, image, kernel)
        .as_text()
    )
    layouts = [
        line.split("dim_numbers = ")[1].split(",window")[0]
        for line in text.splitlines()
        if "convolution(" in line
    ]
    assert len(layouts) >= 5
    assert {layout.replace(" ", "").split("]")[0] for layout in layouts} == {"[b,0,1,f"}
    assert all("x[0, 1, i, o]->[b, 0, 1, f]" in layout for layout in layouts)


def test_an_empty_map():
    image, kernel = jnp.zeros((0, 1, 6, 6, 3)), normal(3, 3, 3, 4)
    grads = jax.vmap(lambda image: gradients(conv_general_dilated, image, kernel))(image)
    assert [grad.shape for grad in grads] == [(0, 1, 6, 6, 3), (0, 3, 3, 3, 4)]


# bfloat16


def narrow(x: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16)


@pytest.mark.parametrize(
    "use", [forward_over_reverse, inside_scan, map_of_images, penalty_on_each_example]
)
def test_bfloat16_has_the_values_and_types_of_jax_own(use):
    image, kernel = narrow(0.3 * normal(3, 7, 5, 2)), narrow(0.3 * normal(3, 3, 2, 4))
    ours, own = (
        quick_jit(use, static_argnums=0)(convolve, image, kernel)
        for convolve in (conv_general_dilated, jax_own)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(own), strict=True):
        assert a.dtype == b.dtype == jnp.bfloat16
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=0.02 * abs(b).max())


@pytest.mark.parametrize("maps", [0, 1])
def test_bfloat16_is_accumulated_in_float32(maps):
    """Each value is a sum of 512 ones, which in bfloat16 stops at 256; also with several problems in one."""

    @quick_jit
    def use(image, kernel):
        derivatives = functools.partial(
            value_and_gradients, lambda x, w: conv_general_dilated(x, w, (1, 1), [(0, 0)] * 2)
        )
        for _ in range(maps):
            derivatives = jax.vmap(derivatives)
        return derivatives(image, kernel, jnp.ones_like(image))

    shape = (2,) * maps
    found = use(
        jnp.ones((*shape, 8, 8, 8, 512), jnp.bfloat16),
        jnp.ones((*shape, 1, 1, 512, 512), jnp.bfloat16),
    )
    for array in jax.tree.leaves(found):
        np.testing.assert_array_equal(array, 512)


def test_two_types_are_refused():
    with pytest.raises(TypeError, match="same dtypes"):
        conv_general_dilated(
            normal(1, 4, 4, 2), narrow(normal(3, 3, 2, 2)), (1, 1), ((1, 1), (1, 1))
        )


# What is left to JAX


@pytest.mark.parametrize(
    "options",
    [
        {"feature_group_count": 3},
        {"precision": "highest"},
        {"dimension_numbers": ("NHWC", "HWOI", "NHWC")},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_kinds_of_convolution_are_jax_own(options):
    image, kernel = (
        normal(2, 7, 7, 3),
        normal(3, 3, 1 if "feature_group_count" in options else 3, 3),
    )
    options = {"dimension_numbers": LAYOUT} | options
    ours, own = (
        convolve(image, kernel, (1, 1), ((1, 1), (1, 1)), **options)
        for convolve in (conv_general_dilated, lax.conv_general_dilated)
    )
    np.testing.assert_array_equal(ours, own)


def test_the_gradient_inside_shard_map_is_summed_over_devices():
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    image, kernel = normal(4, 6, 6, 3), normal(3, 3, 3, 4)

    def spread(image, kernel):
        rows = PartitionSpec("rows")
        return jax.shard_map(
            functools.partial(gradients, conv_general_dilated),
            mesh=mesh,
            in_specs=(rows, PartitionSpec()),
            out_specs=(rows, PartitionSpec()),
        )(image, kernel)

    assert_close(
        quick_jit(spread)(image, kernel),
        quick_jit(gradients, static_argnums=0)(jax_own, image, kernel),
    )


@pytest.mark.parametrize("size", [1, 3])
def test_of_a_batch_on_two_devices_only_the_gradient_by_the_kernel_is_sent_around(size):
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    image = jax.device_put(normal(4, 6, 6, 3), NamedSharding(mesh, PartitionSpec("rows")))
    program = quick_jit(gradients, static_argnums=0).lower(
        conv_general_dilated, image, normal(size, size, 3, 4)
    )
    sent = re.findall(
        r" (all-gather|all-to-all|collective-permute|all-reduce)\(", program.compile().as_text()
    )
    assert sent == ["all-reduce"]
