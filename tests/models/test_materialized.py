"""An array that is computed once: the same values under every transformation, and what the compiler makes of it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bdjax.models._materialized import materialized


def loss(x, through=materialized):
    return (through(jnp.sin(x)).swapaxes(0, 1) ** 3).sum()


def test_derivatives_and_maps_are_those_without_it():
    def use(through, x):
        value = functools.partial(loss, through=through)
        product = jax.jvp(jax.grad(value), (x,), (jnp.cos(x),))[1]
        return value(x), product, jax.vmap(jax.grad(lambda row: value(row[None])), 1, 1)(x.T)

    x = jnp.arange(12.0).reshape(3, 4)
    jax.tree.map(np.testing.assert_array_equal, use(materialized, x), use(lambda x: x, x))


def lowered(x: jax.Array) -> str:
    return jax.jit(jax.grad(loss)).lower(x).as_text()


def test_the_layout_is_asked_for_in_a_program_for_one_device_only():
    x = jnp.ones((4, 6))
    assert lowered(x).count("LayoutConstraint") == 2  # forward and backward
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    assert "LayoutConstraint" not in lowered(
        jax.device_put(x, NamedSharding(mesh, PartitionSpec("rows")))
    )


def test_what_computes_it_is_fused_with_no_reader():
    def use(x, through):
        y = through(jnp.sin(x))
        return y.T + 1, jnp.cos(y)

    def sines(through):
        return (
            jax.jit(functools.partial(use, through=through))
            .lower(jnp.ones((64, 32)))
            .compile()
            .as_text()
            .count(" sine(")
        )

    assert sines(materialized) == 1
    assert sines(lambda x: x) > 1
