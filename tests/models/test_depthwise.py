"""The depthwise convolution's values and derivatives of every kind are those of JAX's own."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from quick import quick_jit

from bdjax.models._depthwise import conv_general_dilated

LAYOUT = ("NHWC", "HWIO", "NHWC")
CASES = {
    "3x3": ((5, 4), 3, 1, 1),
    "5x5, stride": ((4, 3), 5, 2, 2),
    "a pixel": ((1, 1), 3, 2, 1),
}


def of(convolve, size: int, stride: int, pad: int, channels: int = 2):
    return functools.partial(
        convolve,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=LAYOUT,
        feature_group_count=channels,
    )


def is_own(convolve, image, kernel) -> bool:
    program = jax.make_jaxpr(convolve)(image, kernel)
    return any(e.primitive.name == "bdjax_depthwise_convolution" for e in program.eqns)


@functools.partial(quick_jit, static_argnums=0)
def everything(convolve, image, kernel):
    """Return the value, the gradient, a product with the Hessian, and gradients of examples and of several kernels."""

    def loss(image, kernel):
        return jnp.sin(convolve(image, kernel)).sum()

    gradient = jax.grad(loss, (0, 1))
    several = jnp.stack([kernel, 1 - kernel])
    return (
        convolve(image, kernel),
        jax.jvp(gradient, (image, kernel), (jnp.cos(image), jnp.cos(kernel))),
        jax.vmap(lambda x: gradient(x[None], kernel))(image),
        jax.vmap(gradient, (None, 0))(image, several),
        jax.vmap(gradient)(jnp.stack([image, 1 - image]), several),
    )


@pytest.mark.parametrize("case", CASES)
def test_values_and_derivatives_are_those_of_jax(case):
    lengths, size, stride, pad = CASES[case]
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(2, *lengths, 2)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, 1, 2)), jnp.float32)
    ours, theirs = (
        of(f, size, stride, pad) for f in (conv_general_dilated, lax.conv_general_dilated)
    )
    assert is_own(ours, image, kernel) == (jax.default_backend() == "cpu")
    found, expected = everything(ours, image, kernel), everything(theirs, image, kernel)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), found, expected
    )


def test_a_sum_of_bfloat16_is_rounded_once():
    image = jnp.ones((1, 16, 16, 1), jnp.bfloat16)
    kernel = jnp.full((17, 17, 1, 1), 1.0, jnp.bfloat16)
    out = of(conv_general_dilated, 17, 1, 0, 1)(
        jnp.pad(image, ((0, 0), (1, 0), (1, 0), (0, 0))), kernel
    )
    assert out.dtype == jnp.bfloat16
    assert float(out[0, 0, 0, 0]) == 256


@pytest.mark.parametrize("channels", [(4, 2, 4), (4, 1, 8)])
def test_other_groups_are_left_to_jax(channels):
    inputs, of_group, outputs = channels
    image, kernel = jnp.ones((1, 4, 4, inputs)), jnp.ones((3, 3, of_group, outputs))
    convolve = of(conv_general_dilated, 3, 1, 1, inputs // of_group)
    assert not is_own(convolve, image, kernel)
    assert convolve(image, kernel).shape == (1, 4, 4, outputs)
