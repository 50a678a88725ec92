"""Batch norm and convolution against worked values, NumPy and JAX's own gradients."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from quick import quick_jit

from bdjax.models._layers import BatchNorm, Dense, conv, pooled


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


# Batch norm


@functools.partial(quick_jit, static_argnames=("train", "momentum", "epsilon"))
def batch_norm(x, *, valid=None, train=True, statistics=None, **options):
    """Return the output and the running statistics after one pass of a fresh layer."""
    ones, zeros = jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1])
    variables = {
        "params": {"scale": ones, "bias": zeros},
        "batch_stats": statistics or {"mean": zeros, "var": ones},
    }
    out, changed = BatchNorm(**options).apply(
        variables, x, train=train, valid=valid, mutable=["batch_stats"]
    )
    return out, changed["batch_stats"]


def test_batch_of_1_2_3_4_moves_the_running_values_as_in_pytorch():
    _, running = batch_norm(jnp.array([[1.0], [2.0], [3.0], [4.0]]))
    assert running["mean"].item() == pytest.approx(0.25)
    # Unbiased; 1.025 would be the biased one
    assert running["var"].item() == pytest.approx(0.9 + 0.1 * 5 / 3)


def test_the_output_is_normalized_with_the_biased_variance():
    out, _ = batch_norm(jnp.array([[1.0], [2.0], [3.0], [4.0]]))
    np.testing.assert_allclose(out[:, 0], (np.arange(1, 5) - 2.5) / np.sqrt(1.25 + 1e-5), rtol=1e-6)


def test_images_are_normalized_over_rows_height_and_width():
    x = normal(4, 3, 2, 5) * 3 + 1
    out, running = batch_norm(x)
    np.testing.assert_allclose(out.mean((0, 1, 2)), np.zeros(5), atol=1e-6)
    np.testing.assert_allclose(out.std((0, 1, 2)), np.ones(5), atol=1e-4)
    np.testing.assert_allclose(running["mean"], 0.1 * np.mean(x, (0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * np.var(x, (0, 1, 2), ddof=1), rtol=1e-5)


def test_momentum_and_epsilon():
    x = jnp.array([[1.0], [3.0]])
    out, running = batch_norm(x, momentum=0.5, epsilon=3.0)
    np.testing.assert_allclose(out[:, 0], [-0.5, 0.5])  # variance 1, √(1 + 3) = 2
    assert (running["mean"].item(), running["var"].item()) == (1.0, 1.5)


def test_in_evaluation_the_running_values_are_used_and_kept():
    statistics = {"mean": jnp.array([2.0]), "var": jnp.array([4.0 - 1e-5])}
    out, after = batch_norm(jnp.array([[2.0], [4.0]]), train=False, statistics=statistics)
    np.testing.assert_allclose(out[:, 0], [0, 1], atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, after, statistics)


@pytest.mark.parametrize("filler", [0.0, 1e3])
def test_rows_that_are_not_valid_change_nothing(filler):
    x = normal(5, 3, 3, 2)
    padded = jnp.concatenate([x[:2], jnp.full((3, 3, 3, 2), filler), x[2:]])
    valid = jnp.array([True, True, False, False, False, True, True, True])
    (out, running), (padded_out, padded_running) = batch_norm(x), batch_norm(padded, valid=valid)
    np.testing.assert_allclose(padded_out[valid], out, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), padded_running, running)


def test_a_batch_without_a_valid_row_stays_finite():
    out, running = batch_norm(normal(2, 3), valid=jnp.zeros(2, bool))
    assert all(jnp.isfinite(array).all() for array in (out, running["mean"], running["var"]))


def test_statistics_of_bfloat16_are_computed_in_float32():
    x = normal(4096, 1).astype(jnp.bfloat16)
    out, running = batch_norm(x)
    assert out.dtype == jnp.bfloat16
    assert running["mean"].dtype == running["var"].dtype == jnp.float32
    np.testing.assert_allclose(running["mean"], 0.1 * np.asarray(x, np.float64).mean(0), atol=1e-6)


def test_the_gradient_through_batch_norm_is_rounded_once():
    """Of a cotangent that is almost constant nearly nothing is left; in bfloat16 that rest would be rounding errors."""
    x, rest = normal(64, 3), normal(64, 3)

    @quick_jit
    def pulled(x, cotangent):
        return jax.vjp(lambda x: batch_norm.__wrapped__(x)[0], x)[1](cotangent)[0]

    narrow, cotangent = x.astype(jnp.bfloat16), (1 + rest / 64).astype(jnp.bfloat16)
    expected = pulled(narrow.astype(jnp.float32), cotangent.astype(jnp.float32))
    ours = pulled(narrow, cotangent)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(ours, np.float32), expected, atol=2**-8 * float(abs(expected).max())
    )


# The moments' accuracy

SHAPE = (16, 8, 8, 4)
EVERY_ROW = np.ones(16, bool)
SOME_ROWS = np.arange(16) % 7 > 0  # without the first


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=SHAPE)


HARD = {
    "usual": (noise(0), EVERY_ROW),
    "large mean": (1e3 + 1e-2 * noise(0), EVERY_ROW),
    "larger mean": (1e4 + 1e-2 * noise(0), EVERY_ROW),
    "another mean in each channel": (10.0 ** np.arange(4) + noise(0), EVERY_ROW),
    "tiny variance": (1e-4 * noise(0), EVERY_ROW),
    "constant": (np.full(SHAPE, 1234.567), EVERY_ROW),
    "one pixel in all": (np.eye(1, 16 * 8 * 8 * 4, 1234).reshape(SHAPE), EVERY_ROW),
    "rows that do not count": (noise(0), SOME_ROWS),
    "huge rows that do not count": (
        np.where(SOME_ROWS[:, None, None, None], noise(0), 1e30),
        SOME_ROWS,
    ),
    "infinite rows that do not count": (
        np.where(SOME_ROWS[:, None, None, None], noise(0), np.inf),
        SOME_ROWS,
    ),
}


def normalized(x, valid):
    return batch_norm.__wrapped__(x, valid=valid)[0]


def normalized_in_two_passes(x, valid):
    weight = valid.astype(x.dtype)[:, None, None, None]
    count = weight.sum() * x.shape[1] * x.shape[2]
    mean = (x * weight).sum((0, 1, 2)) / count
    var = (jnp.square(x - mean) * weight).sum((0, 1, 2)) / count
    return (x - mean) / jnp.sqrt(var + 1e-5)


@functools.partial(quick_jit, static_argnums=0)
def value_and_derivatives(normalize, x, valid, cotangent, tangent):
    """Return output, gradient, derivative along the tangent, and H · tangent forward and reverse over reverse."""
    rows = valid[:, None, None, None]

    def loss(x):
        return jnp.where(rows, jnp.sin(normalize(x, valid) * cotangent), 0).sum()

    gradient = jax.grad(loss)
    along, product = (jax.jvp(function, (x,), (tangent,))[1] for function in (loss, gradient))
    again = jax.grad(lambda x: (gradient(x) * tangent).sum())(x)
    return [
        jnp.where(rows, array, 0)
        for array in (normalize(x, valid), gradient(x), along, product, again)
    ]


@pytest.mark.parametrize(("x", "valid"), HARD.values(), ids=HARD)
def test_the_output_and_its_derivatives_are_those_of_float64(x, valid):
    """To a few roundings of float32, with running values that are far from the batch's, as in the first steps."""
    narrow = [np.asarray(array, np.float32) for array in (x, noise(1), noise(2))]
    ours = value_and_derivatives(normalized, narrow[0], valid, *narrow[1:])
    narrow[0] = np.where(valid[:, None, None, None], narrow[0], 0)
    with jax.enable_x64(True):
        wide = [np.asarray(array, np.float64) for array in narrow]
        found = value_and_derivatives(normalized_in_two_passes, wide[0], valid, *wide[1:])
        expected = [np.asarray(array) for array in found]
    # The derivative along the tangent is a sum of 4,096 numbers of either sign.
    for number, tolerance in enumerate([3e-7, 2e-6, 1e-5, 2e-6, 2e-6]):
        scale = max(1.0, float(abs(expected[number]).max()))
        np.testing.assert_allclose(ours[number], expected[number], rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("valid", [EVERY_ROW, SOME_ROWS])
def test_a_batch_of_which_one_line_differs_is_the_worst_case(valid):
    """The shift is then √7 deviations away from the mean."""
    x = np.float32(1e-3 * noise(0))
    x[:, 4] += 1
    out = quick_jit(normalized)(x, valid)[valid]
    rows = np.float64(x[valid])
    expected = (rows - rows.mean((0, 1, 2))) / np.sqrt(rows.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(out, expected, atol=5e-6)


def test_batch_norm_under_vmap_is_a_loop():
    x, valid = (
        jnp.stack([normal(6, 3, 2, 4), 50 + normal(6, 3, 2, 4)]),
        jnp.array([[True] * 6, [False] + [True] * 5]),
    )

    def use(x, valid):
        return batch_norm.__wrapped__(x, valid=valid)

    mapped, single = quick_jit(jax.vmap(use))(x, valid), quick_jit(use)
    expected = jax.tree.map(lambda *results: jnp.stack(results), *map(single, x, valid))
    jax.tree.map(
        lambda ours, one: np.testing.assert_allclose(ours, one, rtol=2e-6, atol=2e-6),
        mapped,
        expected,
    )


@pytest.mark.parametrize("valid", [None, EVERY_ROW])
def test_of_a_batch_on_two_devices_only_sums_over_it_are_sent_around(valid):
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    place = functools.partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec("rows")))
    x = 100 + normal(*SHAPE)

    def pulled(x, valid):
        out, pull = jax.vjp(lambda x: batch_norm.__wrapped__(x, valid=valid)[0], x)
        return out, pull(jnp.sin(out))[0]

    compiled = quick_jit(pulled).lower(place(x), None if valid is None else place(valid)).compile()
    sent = re.findall(
        r"= (.*) (all-gather|all-to-all|collective-permute|all-reduce)\(", compiled.as_text()
    )
    assert {kind for _, kind in sent} == {"all-reduce"}
    assert not re.search(r"\d,\d", " ".join(shape for shape, _ in sent)), "a whole activation"
    found = compiled(place(x), None if valid is None else place(valid))
    jax.tree.map(
        lambda ours, one: np.testing.assert_allclose(ours, one, atol=2e-6),
        found,
        quick_jit(pulled)(x, valid),
    )


def test_a_training_pass_reduces_twice_forward_and_twice_backward():
    """Besides the line of which the shift is the mean."""

    def pulled(x, cotangent):
        return jax.vjp(lambda x: batch_norm.__wrapped__(x)[0], x)[1](cotangent)

    text = jax.jit(pulled).lower(normal(*SHAPE), normal(*SHAPE)).as_text()
    shapes = re.findall(r"stablehlo\.reduce\(.*: \(tensor<(16x[\dx]+)xf32>", text)
    assert sorted(shapes) == ["16x8x4", *["16x8x8x4"] * 4]


# Convolution

LAYOUT = ("NHWC", "HWIO", "NHWC")


def reference_convolution(
    image: np.ndarray, kernel: np.ndarray, stride: int, padding: int
) -> np.ndarray:
    """Convolve as PyTorch does, in loops."""
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = kernel.shape[0]
    rows, columns = ((length - size) // stride + 1 for length in padded.shape[1:3])
    out = np.zeros((image.shape[0], rows, columns, kernel.shape[3]))
    for row in range(rows):
        for column in range(columns):
            window = padded[
                :, row * stride : row * stride + size, column * stride : column * stride + size
            ]
            out[:, row, column] = np.einsum("nhwi,hwio->no", window, kernel)
    return out


@pytest.mark.parametrize(("side", "size", "stride"), [(6, 3, 2), (7, 3, 2), (6, 3, 1), (6, 1, 2)])
def test_convolution_pads_like_pytorch(side, size, stride):
    image, kernel = normal(2, side, side, 3), normal(size, size, 3, 4)
    ours = conv(4, size, stride=stride, name="conv").apply({"params": {"kernel": kernel}}, image)
    np.testing.assert_allclose(
        ours,
        reference_convolution(np.asarray(image), np.asarray(kernel), stride, size // 2),
        atol=1e-5,
    )


def test_same_padding_would_give_other_features():
    image, kernel = normal(2, 6, 6, 3), normal(3, 3, 3, 4)
    ours = conv(4, 3, stride=2, name="conv").apply({"params": {"kernel": kernel}}, image)
    same = lax.conv_general_dilated(image, kernel, (2, 2), "SAME", dimension_numbers=LAYOUT)
    assert same.shape == ours.shape
    assert abs(same - ours).max() > 0.1


# Initial values


def test_weights_start_uniform_within_one_over_root_fan_in():
    params = quick_jit(conv(64, 3, name="conv").init)(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))[
        "params"
    ]
    bound = 1 / np.sqrt(3 * 3 * 8)
    assert set(params) == {"kernel"}  # no bias
    assert abs(params["kernel"]).max() <= bound
    assert params["kernel"].std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_dense_layer():
    layer = Dense(3)
    variables = quick_jit(layer.init)(jax.random.key(0), jnp.zeros((1, 400)))
    assert abs(variables["params"]["kernel"]).max() <= 1 / 20
    assert abs(variables["params"]["bias"]).max() <= 1 / 20
    x = normal(2, 400)
    expected = np.asarray(x) @ np.asarray(variables["params"]["kernel"]) + np.asarray(
        variables["params"]["bias"]
    )
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


# Types


@pytest.mark.parametrize(
    ("layer", "shape"), [(conv(4, 3, name="layer"), (2, 6, 6, 3)), (Dense(4), (2, 3))]
)
def test_a_layer_computes_in_the_type_of_its_input_and_has_float32_gradients(layer, shape):
    x = normal(*shape).astype(jnp.bfloat16)
    variables = quick_jit(layer.init)(jax.random.key(0), x)
    grads = jax.eval_shape(
        jax.grad(lambda variables: layer.apply(variables, x).astype(jnp.float32).sum()), variables
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, grads))} == {jnp.dtype(jnp.float32)}
    ours, expected = (
        quick_jit(layer.apply)(variables, x.astype(dtype)) for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert (ours.dtype, expected.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(
        np.asarray(ours, np.float32), expected, atol=2**-6 * float(abs(expected).max())
    )


def test_the_gradient_of_a_bias_is_summed_in_float32():
    def loss(params, x):
        return jnp.sin(Dense(3).apply({"params": params}, x).astype(jnp.float32)).sum()

    program = jax.make_jaxpr(jax.grad(loss))(
        {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, jnp.ones((4096, 2), jnp.bfloat16)
    )
    sums = [line for line in str(program).splitlines() if "reduce_sum" in line]
    assert any("f32[3]" in line for line in sums)
    assert not any("bf16" in line for line in sums)


def test_pooling_is_in_float32():
    x = jnp.concatenate([jnp.full((1, 2, 2, 1), 256), jnp.full((1, 2, 2, 1), 258)], 1).astype(
        jnp.bfloat16
    )
    assert pooled(x).dtype == jnp.float32
    assert pooled(x).item() == 257  # no bfloat16 number


def test_images_are_normalized_in_float32_and_logits_and_features_are_float32():
    image = jnp.asarray(np.random.default_rng(0).random((2, 6, 6, 2), np.float32))
    spec = networks.TINY
    model = networks.of_layer(lambda x: x, spec, "bfloat16")
    logits, _ = model.apply({"params": {}, "batch_stats": {}}, image)
    normalized = (np.asarray(image) - np.float32(spec.modality.mean)) / np.float32(
        spec.modality.std
    )
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(
        logits, normalized.reshape(2, -1).astype(jnp.bfloat16).astype(np.float32)
    )
    network = networks.of_layer(Dense(3), spec, "bfloat16")
    assert (
        jax.eval_shape(network.features, networks.random_variables(network), image).dtype
        == jnp.float32
    )
