"""Pooling, dropout and the order of layers: hand-worked values, and PyTorch's own where it is installed."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from bdjax.checks import InputError
from bdjax.models._conv import conv, normal_fan_out
from bdjax.models._dropout import Dropout, StochasticDepth
from bdjax.models._layers import BatchNorm
from bdjax.models._pooling import adaptive_avg_pool, avg_pool, max_pool
from bdjax.models._sequential import Sequential

KEY = jax.random.key(0)
ROW = jnp.asarray([1.0, 2, 3, 4, 5, 6]).reshape(1, 1, 6, 1)


def of_row(pooled) -> list[float]:
    return np.ravel(pooled).tolist()


def test_a_last_window_that_ends_beyond_the_map_is_kept_in_ceil_mode():
    assert of_row(max_pool(ROW, (1, 3), (1, 2))) == [3, 5]
    assert of_row(max_pool(ROW, (1, 3), (1, 2), ceil_mode=True)) == [3, 5, 6]
    assert of_row(avg_pool(ROW, (1, 3), (1, 2), ceil_mode=True)) == [2, 4, 5.5]


def test_padding_is_no_maximum_and_counts_in_a_mean_as_asked_for():
    assert of_row(max_pool(-ROW, (1, 3), (1, 2), (0, 1))) == [-1, -2, -4]
    assert of_row(avg_pool(ROW, (1, 3), (1, 3), (0, 1))) == [1, 4]
    without = avg_pool(ROW, (1, 3), (1, 3), (0, 1), count_include_pad=False)
    assert of_row(without) == [1.5, 4]


def test_shares_of_an_axis_that_is_not_divided_evenly_overlap():
    assert of_row(adaptive_avg_pool(ROW, (1, 4))) == [1.5, 2.5, 4.5, 5.5]
    assert of_row(adaptive_avg_pool(ROW, 1)) == [3.5]
    assert of_row(adaptive_avg_pool(ROW[:, :, :1], (2, 3))) == [1] * 6


def test_the_gradient_of_a_maximum_goes_to_the_first_of_equals_and_what_is_no_number_stays():
    x = jnp.zeros((1, 2, 2, 1))
    gradient = jax.grad(lambda x: max_pool(x, 2).sum())(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0], [0, 0]])
    for place in range(4):
        assert jnp.isnan(max_pool(x.reshape(1, 4).at[0, place].set(jnp.nan).reshape(x.shape), 2))


def test_a_map_that_is_smaller_than_a_window_is_refused():
    with pytest.raises(InputError, match=r"images must be larger for .*2 pixels, and 1 are left"):
        max_pool(ROW, 2)


def test_means_of_bfloat16_are_summed_in_float32():
    x = jnp.concatenate([jnp.full((1, 32, 32, 1), 2), jnp.full((1, 32, 32, 1), 4)], 1)
    for pooled in (avg_pool(x.astype(jnp.bfloat16), (64, 32)), adaptive_avg_pool(x * 1.0, 1)):
        assert pooled.item() == 3


@pytest.mark.parametrize(
    ("size", "stride", "padding", "ceil_mode"),
    [(3, 2, 1, False), (3, 2, 0, True), (2, 2, 0, True), (3, 1, 1, False), (3, 3, 1, True)],
)
def test_pooling_equals_pytorch(size, stride, padding, ceil_mode):
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype(np.float32)
    theirs = torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
    of_torch = torch.nn.functional
    how = {"ceil_mode": ceil_mode}
    image = jnp.asarray(image)
    pairs = [
        (
            max_pool(image, size, stride, padding, **how),
            of_torch.max_pool2d(theirs, size, stride, padding, **how),
        )
    ]
    for counted in (True, False):
        pairs.append(
            (
                avg_pool(image, size, stride, padding, count_include_pad=counted, **how),
                of_torch.avg_pool2d(
                    theirs, size, stride, padding, count_include_pad=counted, **how
                ),
            )
        )
    pairs += [
        (adaptive_avg_pool(image, side), of_torch.adaptive_avg_pool2d(theirs, side))
        for side in ((7, 3), (5, 9))
    ]
    for ours, expected in pairs:
        np.testing.assert_allclose(ours, expected.numpy().transpose(0, 2, 3, 1), atol=1e-6)


# Dropout


def test_dropout_keeps_the_mean_and_stochastic_depth_drops_whole_rows():
    x = jnp.ones((1000, 2, 2, 2))
    for layer in (Dropout(0.25), StochasticDepth(0.25)):
        out = np.asarray(layer.apply({}, x, train=True, rngs={"dropout": KEY}))
        assert set(np.unique(out)) == {0, np.float32(1 / 0.75)}
        assert out.mean() == pytest.approx(1, abs=0.06)  # three deviations of a thousand rows
        alike = (out == out[:, :1, :1, :1]).all()
        assert alike == isinstance(layer, StochasticDepth)
        np.testing.assert_array_equal(layer.apply({}, x, train=False), x)


# Convolutions and the order of layers


def test_layers_are_named_by_their_positions_and_given_what_they_take():
    part = functools.partial
    layers = Sequential((part(conv, 2, 1), part(BatchNorm), nn.relu, part(Dropout, 0.5)))
    x = jnp.asarray([[[[1.0]]], [[[3.0]]]])
    variables = {
        "params": {
            "0": {"kernel": jnp.asarray([[[[1.0, -1.0]]]])},
            "1": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
        },
        "batch_stats": {"1": {"mean": jnp.zeros(2), "var": jnp.ones(2)}},
    }
    out, changed = layers.apply(
        variables, x, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"]
    )
    assert set(np.unique(np.round(out, 3))) <= {0, 2}  # ±1 rectified, and doubled where it is kept
    np.testing.assert_allclose(changed["batch_stats"]["1"]["mean"], [0.2, -0.2], rtol=1e-6)
    assert layers.apply(variables, x, train=False).shape == (2, 1, 1, 2)


@pytest.mark.parametrize(
    "how",
    [
        {"size": (1, 7), "stride": 2},
        {"size": 3, "dilation": 2, "bias": True},
        {"size": 3, "groups": 4, "padding": 0},
        {"size": (2, 3), "groups": 2, "padding": (0, 2), "stride": (1, 3)},
    ],
    ids=str,
)
def test_convolutions_equal_pytorch(how):
    torch = pytest.importorskip("torch")
    layer = conv(8, **how)
    image = np.random.default_rng(0).normal(size=(2, 9, 8, 4)).astype(np.float32)
    variables = quick_jit(layer.init)(KEY, jnp.asarray(image))
    given = {**how, "bias": None}
    size = given.pop("size")
    if "padding" not in given:
        rows, columns = size if isinstance(size, tuple) else (size, size)
        step = how.get("dilation", 1)
        given["padding"] = (step * (rows // 2), step * (columns // 2))
    kernel = torch.from_numpy(np.array(variables["params"]["kernel"]).transpose(3, 2, 0, 1).copy())
    theirs = torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
    expected = torch.nn.functional.conv2d(theirs, kernel, **given).numpy().transpose(0, 2, 3, 1)
    ours = layer.apply(variables, jnp.asarray(image))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert ("bias" in variables["params"]) == how.get("bias", False)


def test_convolutions_are_drawn_with_the_variance_of_their_outputs():
    kernel = normal_fan_out(KEY, (3, 3, 64, 32))
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 32)), rel=0.02)
