"""What a defense may tune: the contract of all parametrizations on all networks, and the known answers of each."""

from __future__ import annotations

import dataclasses
import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from networks import random_variables
from quick import quick_jit

from bdjax import models, parametrizations, structure
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.models._layers import Dense, LinenModel, conv
from bdjax.parametrizations import (
    FrozenConvolutions,
    Identity,
    KeptZeros,
    NeuronMasks,
    PrunedFilters,
    SingularValues,
    WeightMasks,
)
from bdjax.structure import FactoredKernel
from bdjax.train.adaptive import SharpnessAware
from bdjax.train.supervised import supervised
from bdjax.types import Model, Parametrization, Split

KEY = jax.random.key(0)
ALL = [thing for _, thing in inspect.getmembers(parametrizations, inspect.isclass)]
SPEC = image_spec("tiny", (8, 8, 3), 4, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


@functools.cache
def network(name: str) -> tuple[Model, dict]:
    """A narrow network with some weights at zero."""
    model = networks.create(name, networks.spec_for(name, SPEC), width=2)
    variables = random_variables(model)
    pruned = jax.tree.map(lambda x: jnp.where(jnp.abs(x) < 0.02, 0, x), variables["params"])
    return model, {**variables, "params": pruned}


def images(model: Model) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).random((3, *model.spec.shape), np.float32))


@functools.partial(quick_jit, static_argnums=0)
def logits_of(model, params, batch_stats, image):
    return model.apply({"params": params, "batch_stats": batch_stats}, image)[0]


@functools.partial(quick_jit, static_argnums=0)
def masked_step(transformation_of, tuned, frozen, updates):
    """The tuned values after the updates, put where the constraint wants them."""
    tx = transformation_of(frozen)
    return optax.apply_updates(tuned, tx.update(updates, tx.init(tuned), tuned)[0])


def assert_same(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def assert_close(got, expected, atol=1e-6):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=atol), got, expected)


def signature(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


# --- contract --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=ALL, ids=lambda kind: kind.__name__)
def kind(request) -> Parametrization:
    return request.param()


@pytest.fixture(params=networks.KINDS)
def name(request) -> str:
    return request.param


def nearby(tuned):
    """Other values to tune: between 0.7 and 1 where masks are, and shifted elsewhere."""
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda x: x - jnp.asarray(rng.uniform(0, 0.3, x.shape), x.dtype), tuned)


def test_the_contract_on_every_network(kind, name):
    """There and back to the bit; factored and plain parameters give the same logits; jit and vmap change nothing."""
    model, variables = network(name)
    assert isinstance(kind, Parametrization)

    @quick_jit
    def started(variables):
        tuned, frozen = kind.init(model, variables)
        return tuned, frozen, kind.apply(tuned, frozen)

    @quick_jit
    def moved(tuned, other, frozen):
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), tuned, other)
        mapped = jax.vmap(kind.apply, (0, None))(both, frozen)
        return kind.apply(other, frozen), kind.factored(other, frozen), mapped

    try:
        tuned, frozen, params = started(variables)
    except InputError as error:
        assert name not in networks.ALL_ROUND
        pytest.skip(str(error))
    assert signature(params) == signature(variables["params"])
    assert_same(params, variables["params"])
    other = nearby(tuned)
    params, factored, mapped = moved(tuned, other, frozen)
    assert_close(jax.tree.map(lambda x: x[0], mapped), variables["params"])
    assert_close(jax.tree.map(lambda x: x[1], mapped), params)
    logits = logits_of(model, params, variables["batch_stats"], images(model))
    assert (
        np.abs(
            logits - logits_of(model, variables["params"], variables["batch_stats"], images(model))
        ).max()
        > 1e-3
    )
    if not isinstance(kind, SingularValues):
        assert_same(factored, params)
    else:
        assert all(
            isinstance(kernel, structure.FactoredKernel) for kernel in kernels_of(factored).values()
        )
        expected = logits_of(model, params, variables["batch_stats"], images(model))
        np.testing.assert_allclose(
            logits_of(model, factored, variables["batch_stats"], images(model)),
            expected,
            atol=1e-4 * np.abs(expected).max(),
        )


def kernels_of(params):
    is_kernel = lambda x: isinstance(x, structure.FactoredKernel)  # noqa: E731
    return {
        str(path): leaf
        for path, leaf in jax.tree.leaves_with_path(params, is_leaf=is_kernel)
        if is_kernel(leaf)
    }


def test_where_it_starts_every_constraint_is_met(kind):
    model, variables = network("small_cnn")
    tuned, frozen = kind.init(model, variables)
    still = jax.tree.map(jnp.zeros_like, tuned)
    assert_same(masked_step(kind.constraint, tuned, frozen, still), tuned)


def test_gradients_are_those_of_what_is_tuned_only(kind):
    """Nothing that is frozen is reached by a gradient with respect to the tuned values, and all of these are."""
    model, variables = network("small_cnn")
    tuned, frozen = kind.init(model, variables)

    @quick_jit
    def gradient(tuned):
        def loss(tuned):
            params = kind.apply(tuned, frozen)
            return jnp.sum(
                logits_of.__wrapped__(model, params, variables["batch_stats"], images(model)) ** 2
            )

        return jax.grad(loss)(tuned)

    grads = gradient(tuned)
    assert signature(grads) == signature(tuned)
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(grads))


# --- singular values (O7, O7b) ---------------------------------------------------------------------------------------

M = np.array([[3.0, 0.0], [4.0, 5.0]])  # rows are outputs
SVD = SingularValues()


def decomposed(kernel):
    """The parametrization of a single kernel, and a function from a shift to the kernel."""
    *window, inputs, filters = kernel.shape
    layer = nn.Dense(filters, use_bias=False)
    if window:
        layer = nn.Conv(filters, tuple(window), use_bias=False)
    spec = image_spec("map", (4, 4, inputs), 3, (0.5,) * inputs, (0.25,) * inputs)
    variables = {"params": {"layer": {"kernel": jnp.asarray(kernel)}}, "batch_stats": {}}
    tuned, frozen = SVD.init(networks.of_layer(layer, spec), variables)
    return (
        tuned["layer"]["kernel"],
        frozen["factors"]["layer"]["kernel"],
        lambda d: SVD.apply({"layer": {"kernel": d}}, frozen)["layer"]["kernel"],
    )


def test_singular_values_by_hand():
    with jax.enable_x64(True):
        shift, factors, kernel_at = decomposed(M.T)
        np.testing.assert_array_equal(shift, [0, 0])
        np.testing.assert_allclose(factors.scale, np.sqrt([45, 5]), atol=1e-12)
        np.testing.assert_array_equal(kernel_at(shift).T, M)
        moved = [[3.1118034, -0.55901699], [3.21737621, 4.44098301]]
        np.testing.assert_allclose(kernel_at(jnp.array([-1, 0.5])).T, moved, atol=1e-7)
        np.testing.assert_allclose(
            kernel_at(jnp.array([0.0, -10])).T, [[1.5, 1.5], [4.5, 4.5]], atol=1e-12
        )


def test_gradient_with_respect_to_the_shift_by_hand():
    """u_jᵀ G v_j where σ + δ is positive, and 0 where it is not, or is 0."""
    with jax.enable_x64(True):
        shift, factors, kernel_at = decomposed(M.T)
        gradient = jax.grad(lambda d: jnp.sum(jnp.array([[1.0, 2], [3, 4]]) * kernel_at(d).T))
        np.testing.assert_allclose(gradient(shift), (5.36656315, -0.44721360), atol=1e-8)
        np.testing.assert_allclose(gradient(jnp.array([0.0, -10])), (5.36656315, 0), atol=1e-8)
        np.testing.assert_allclose(
            gradient(-factors.scale * jnp.array([0, 1])), (5.36656315, 0), atol=1e-8
        )
        _, _, nothing = decomposed(np.zeros((2, 2)))
        np.testing.assert_array_equal(jax.grad(lambda d: nothing(d).sum())(jnp.zeros(2)), [0, 0])


@pytest.mark.parametrize("shape", [(3, 3, 2, 5), (1, 1, 4, 3), (3, 3, 1, 12), (4, 6)])
def test_kernels_are_read_with_one_row_for_each_filter(shape):
    """As PyTorch's [out, in, h, w] reshaped to [out, −1], whose columns are only in another order."""
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    torch = np.moveaxis(kernel, (-1, -2), (0, 1)).reshape(shape[-1], -1)
    shift, factors, _ = decomposed(kernel)
    assert shift.shape == (min(torch.shape),)
    np.testing.assert_allclose(
        factors.scale, np.linalg.svd(torch, compute_uv=False), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(factors.multiplied(), kernel, atol=1e-5)


def test_baked_kernels_share_the_singular_vectors_and_stay_non_negative():
    """Behavioral test 4: UᵀM′V = diag(relu(σ + δ))."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 5)).astype(np.float32)
    _, factors, kernel_at = decomposed(kernel)
    shift = jnp.array([0.5, -10.0, -0.25, 2.0, -0.5])
    rows = kernel_at(shift).reshape(-1, 5).T
    inside = factors.u.T @ rows @ factors.v.reshape(-1, 5)
    np.testing.assert_allclose(inside, np.diag(np.maximum(factors.scale + shift, 0)), atol=1e-5)


@pytest.mark.parametrize("classes", [10, 43, 200])
def test_published_network_has_4315_shifts_and_one_for_each_class(classes):
    spec = image_spec("published", (32, 32, 3), classes, (0.5,) * 3, (0.5,) * 3)
    model = models.create("preact_resnet18", spec)
    shifts = jax.eval_shape(lambda: SVD.init(model, model.init(KEY)))[0]
    sizes = {"/".join(path): leaf.size for path, leaf in structure.flat(shifts).items()}
    assert sum(sizes.values()) == 4315 + classes
    assert len(sizes) == 21
    assert sizes["conv1/kernel"] == 27
    assert sizes["layer2_0/shortcut/kernel"] == 64
    assert sizes["layer4_1/conv2/kernel"] == 512
    assert sizes["linear/kernel"] == classes


# --- layers with a factored kernel (O26) -----------------------------------------------------------------------------

LAYERS = {
    "3x3": nn.Conv(5, (3, 3), strides=(1, 1), padding=((1, 1), (1, 1)), use_bias=False),
    "stride 2": nn.Conv(5, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)), use_bias=False),
    "strides 2 and 1, uneven padding": nn.Conv(5, (3, 2), strides=(2, 1), padding=((0, 2), (1, 0))),
    "1x1": nn.Conv(3, (1, 1), strides=(2, 2), padding=((0, 0), (0, 0)), use_bias=False),
    "bias": nn.Conv(5, (3, 3), strides=(1, 1), padding=((1, 1), (1, 1))),
    "flax's own defaults": nn.Conv(5, (3, 3)),
    "valid": nn.Conv(5, (3, 3), strides=2, padding="VALID"),
    "dilated": nn.Conv(5, (3, 3), kernel_dilation=2),
    "grouped": nn.Conv(6, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)), feature_group_count=2),
    "depthwise": nn.Conv(4, (3, 3), feature_group_count=4, use_bias=False),
    "dense": Dense(3),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_factored_layer_is_the_layer(layer):
    """For any stride, padding and window: the kernel itself at δ = 0, the multiplied kernel elsewhere."""
    spec = image_spec("tiny", (6, 5, 4), 3, (0.0,) * 4, (1.0,) * 4)
    model = networks.of_layer(LAYERS[layer], spec)
    variables = random_variables(model)
    image = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 5, 4)), jnp.float32)
    tuned, frozen = SVD.init(model, variables)
    rng = np.random.default_rng(2)
    other = jax.tree.map(lambda x: jnp.asarray(rng.uniform(-0.5, 0.5, x.shape), x.dtype), tuned)
    for shift in (tuned, other):
        plain, factored = (
            model.apply({**variables, "params": form(shift, frozen)}, image)[0]
            for form in (SVD.apply, SVD.factored)
        )
        np.testing.assert_allclose(factored, plain, atol=3e-6)
    assert np.abs(plain - model.apply(variables, image)[0]).max() > 1e-3


def test_factored_layers_compute_in_the_type_of_the_network():
    model = models.create("small_cnn", SPEC, width=2, dtype="bfloat16")
    variables = random_variables(model)
    tuned, frozen = SVD.init(model, variables)
    shift = jax.tree.map(lambda x: x - 0.1, tuned)
    plain, factored = (
        logits_of(model, form(shift, frozen), variables["batch_stats"], images(model))
        for form in (SVD.apply, SVD.factored)
    )
    assert factored.dtype == jnp.float32
    np.testing.assert_allclose(factored, plain, atol=0.05)
    jaxpr = jax.make_jaxpr(logits_of.__wrapped__, static_argnums=0)(
        model, SVD.factored(shift, frozen), variables["batch_stats"], images(model)
    )
    convolutions = [
        line
        for line in str(jaxpr).splitlines()
        if "convolution[" in line or "conv_general_dilated[" in line
    ]
    assert convolutions
    assert all("bf16" in line for line in convolutions)


@pytest.mark.parametrize(
    "layer", [conv(2, 1, name="layer"), nn.Conv(2, (1, 1), dtype=jnp.bfloat16), Dense(2)]
)
def test_the_gradient_of_a_singular_value_is_summed_in_float32(layer):
    """Over 4096 pixels that count 1 each, where bfloat16 stops at 256; of pooled pixels, over 16 images."""
    model = networks.of_layer(
        layer, image_spec("ones", (16, 16, 2), 2, (0.0,) * 2, (1.0,) * 2), "bfloat16"
    )
    variables = random_variables(model)

    @quick_jit
    @jax.grad
    # The weights are an argument, or XLA multiplies one of them by their number
    def summed(params, image, weight):
        return (model.apply({**variables, "params": params}, image)[0] * weight).sum()

    eye = jnp.eye(2)
    whole = jax.tree.map(jnp.zeros_like, variables["params"]["layer"])
    kernel = FactoredKernel(eye.reshape(whole["kernel"].shape), jnp.ones(2), eye)
    params, image = {"layer": {**whole, "kernel": kernel}}, jnp.ones((16, 16, 16, 2))
    weight = jnp.ones(jax.eval_shape(model.apply, {**variables, "params": params}, image)[0].shape)
    grads = summed(params, image, weight)["layer"]
    np.testing.assert_array_equal(grads["kernel"].scale, weight.size / 2)
    np.testing.assert_array_equal(grads.get("bias", weight.size / 2), weight.size / 2)
    sums = [
        line
        for line in str(jax.make_jaxpr(summed.__wrapped__)(params, image, weight)).splitlines()
        if "reduce_sum[axes" in line
    ]
    assert any("f32[2]" in line for line in sums)
    assert not any("bf16[2]" in line for line in sums)


# --- masks (O10, O21) ------------------------------------------------------------------------------------------------

MU = (
    0.485225, 0.294304, 0.178504, 0.108268, 0.065668, 0.039830, 0.024158, 0.014653, 0.008887, 0.005390, 0.003269,
    0.001983, 0.001203, 0.000730, 0.000442,
)  # fmt: skip
MASKED = (
    "layer1_0/bn2", "layer1_1/bn1", "layer1_1/bn2", "layer2_0/bn1", "layer2_0/bn2", "layer2_1/bn1", "layer2_1/bn2",
    "layer3_0/bn1", "layer3_0/bn2", "layer3_1/bn1", "layer3_1/bn2", "layer4_0/bn1", "layer4_0/bn2", "layer4_1/bn1",
    "layer4_1/bn2",
)  # fmt: skip


def test_published_network_has_3328_masks_in_15_layers():
    spec = image_spec("published", (32, 32, 3), 10, (0.5,) * 3, (0.5,) * 3)
    model = models.create("preact_resnet18", spec)
    masks = jax.eval_shape(lambda: NeuronMasks().init(model, model.init(KEY)))[0]
    paths = {"/".join(path[:-1]): leaf.size for path, leaf in structure.flat(masks).items()}
    assert set(paths) == set(MASKED)
    assert sum(paths.values()) == 3328


def test_lower_bounds_fall_with_the_depth_in_execution_order():
    model, variables = network("preact_resnet18")
    kind = NeuronMasks()
    masks, frozen = kind.init(model, variables)
    far = jax.tree.map(lambda x: 9 * x, masks)
    up = masked_step(kind.constraint, masks, frozen, far)
    down = masked_step(kind.constraint, masks, frozen, jax.tree.map(jnp.negative, far))
    lowest = {"/".join(path[:-1]): leaf for path, leaf in structure.flat(down).items()}
    for layer, expected in zip(MASKED, MU, strict=True):
        np.testing.assert_allclose(lowest[layer], expected, atol=1e-6)
    assert_same(up, masks)


def test_masks_scale_the_batch_norms_but_the_first_and_nothing_else():
    model, variables = network("small_cnn")
    masks, frozen = NeuronMasks().init(model, variables)
    assert set(masks) == {"bn2", "bn3"}
    masks["bn3"]["scale"] = jnp.linspace(0.2, 1, 8)
    params = NeuronMasks().apply(masks, frozen)
    expected = {**variables["params"], "bn3": dict(variables["params"]["bn3"])}
    expected["bn3"]["scale"] = expected["bn3"]["scale"] * jnp.linspace(0.2, 1, 8)
    assert_same(params, expected)


def test_a_factor_before_a_batch_norm_is_undone_and_on_its_scale_it_is_not():
    """O21, in training mode."""
    model, variables = network("small_cnn")
    images = jnp.asarray(np.random.default_rng(0).random((16, 8, 8, 3)), jnp.float32)

    @quick_jit
    def trained(params):
        return model.apply({**variables, "params": params}, images, train=True)[0]

    halves = {}
    for kind in (PrunedFilters(), NeuronMasks()):
        tuned, frozen = kind.init(model, variables)
        halves[type(kind)] = trained(kind.apply(jax.tree.map(lambda x: x / 2, tuned), frozen))
    before = trained(variables["params"])
    assert np.abs(halves[PrunedFilters] - before).max() < 1e-3
    assert np.abs(halves[NeuronMasks] - before).max() > 1e-2


def test_without_batch_norm_the_filters_between_the_first_and_the_last_kernel_are_masked():
    """Their biases are not."""
    model = networks.plain()
    variables = random_variables(model)
    masks, frozen = NeuronMasks(alpha=0.5, beta=1.0).init(model, variables)
    assert signature(masks) == {
        "deeper": {"kernel": ((4,), jnp.float32)},
        "hidden": {"kernel": ((5,), jnp.float32)},
    }
    masks["deeper"]["kernel"] = jnp.linspace(0, 1, 4)
    params = NeuronMasks().apply(masks, frozen)
    expected = {layer: dict(leaves) for layer, leaves in variables["params"].items()}
    expected["deeper"]["kernel"] = expected["deeper"]["kernel"] * jnp.linspace(0, 1, 4)
    assert_same(params, expected)
    lower = jax.tree.map(float, frozen["depth"])
    assert lower == {"deeper": {"kernel": 1.0}, "hidden": {"kernel": 2.0}}


# --- what was pruned -------------------------------------------------------------------------------------------------


def test_zeros_are_kept_through_sam_momentum_and_decay():
    """Exactly, at every step; a bias is no weight, and leaves zero."""
    model = networks.backwards()
    variables = random_variables(model)
    params = {layer: dict(leaves) for layer, leaves in variables["params"].items()}
    params["x"]["kernel"] = params["x"]["kernel"].at[..., :2].set(0)
    params["y"]["scale"] = params["y"]["scale"].at[1].set(0)
    params["a"]["kernel"] = params["a"]["kernel"].at[0].set(0)
    params["a"]["bias"] = jnp.zeros(3)
    variables = {**variables, "params": params}
    learner = supervised(
        batch_size=6, learning_rate=0.1, momentum=0.9, weight_decay=0.1, augment="none",
        transformation=SharpnessAware(0.5), parametrization=KeptZeros(),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    batch = Split(
        jnp.asarray(rng.random((6, 6, 6, 2)), jnp.float32), jnp.arange(6) % 3, jnp.ones(6, bool)
    )
    state = learner.init(KEY, model, variables, batch)
    update = quick_jit(lambda state: learner.update(KEY, model, state, batch)[0])
    for _ in range(3):
        state = update(state)
        after = learner.finalize(model, state)["params"]
        for path, leaf in structure.flat(after).items():
            before = structure.flat(params)[path]
            if path[-1] == "bias":
                assert leaf.all()
            else:
                np.testing.assert_array_equal(leaf == 0, before == 0, err_msg=str(path))


# --- pruned filters --------------------------------------------------------------------------------------------------


def test_pruned_filters_take_their_biases_along_and_leave_dense_layers():
    model = networks.plain()
    variables = random_variables(model)
    kept, frozen = PrunedFilters().init(model, variables)
    assert set(kept) == {"first", "deeper"}
    kept["first"]["kernel"] = jnp.array([1.0, 0, 1])
    params = PrunedFilters().apply(kept, frozen)
    expected = {layer: dict(leaves) for layer, leaves in variables["params"].items()}
    expected["first"] = jax.tree.map(lambda x: x * jnp.array([1.0, 0, 1]), expected["first"])
    assert_same(params, expected)


# --- structure -------------------------------------------------------------------------------------------------------


def paths(found) -> list[str]:
    return ["/".join(path) for path in found]


def test_execution_order_is_not_that_of_the_names():
    model = networks.backwards()
    variables = random_variables(model)
    order = paths(structure.execution_order(model, variables))
    layers = list(dict.fromkeys(path.split("/")[0] for path in order))
    assert layers == ["z", "y", "x", "w", "a"]
    assert len(order) == len(set(order)) == len(jax.tree.leaves(variables["params"]))
    assert paths(structure.batch_norms(model, variables)) == ["y/scale", "w/scale"]
    assert structure.classifier(model, variables) == ("a", "kernel")
    assert set(paths(structure.kernels(variables["params"]))) == {
        "z/kernel",
        "x/kernel",
        "a/kernel",
    }
    assert set(paths(structure.convolutions(variables["params"]))) == {"z/kernel", "x/kernel"}


@pytest.mark.parametrize("wrap", [nn.jit, nn.remat])
def test_execution_order_inside_a_compiled_or_rematerialized_part(wrap):
    model = LinenModel(networks.Wrapped(wrap), networks.TINY)
    variables = jax.eval_shape(model.init, KEY)
    expected = paths(
        structure.execution_order(networks.backwards(), random_variables(networks.backwards()))
    )
    assert paths(structure.execution_order(model, variables)) == [
        f"inner/network/{path}" for path in expected
    ]


def test_every_parameter_of_every_network_is_read_once_in_order(name):
    model, variables = network(name)
    order = structure.execution_order(model, variables)
    assert set(order) == set(structure.flat(variables["params"]))
    assert len(order) == len(set(order))
    if name in ("preact_resnet18", "small_cnn"):
        assert order[0] == ("conv1", "kernel")
        assert structure.classifier(model, variables) == ("linear", "kernel")
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), variables)
    seen = []
    jax.vmap(lambda v: seen.append(structure.execution_order(model, v)) or 0)(stacked)
    assert seen == [order]  # of traced arrays too


def test_batch_norms_of_the_networks():
    small, deep = (
        paths(structure.batch_norms(*network(name))) for name in ("small_cnn", "preact_resnet18")
    )
    assert small == ["bn1/scale", "bn2/scale", "bn3/scale"]
    assert deep == [f"{layer}/scale" for layer in ("layer1_0/bn1", *MASKED)]
    plain = networks.plain()
    assert structure.batch_norms(plain, random_variables(plain)) == []


@pytest.mark.parametrize("which", [*networks.KINDS, "backwards", "plain"])
def test_features_are_what_the_classifier_takes_in(which):
    if which in networks.KINDS:
        model, variables = network(which)
    else:
        model = getattr(networks, which)()
        variables = random_variables(model)
    image = jnp.asarray(np.random.default_rng(0).random((3, *model.spec.shape)), jnp.float32)
    layer = structure.flat(variables["params"])
    path = structure.classifier(model, variables)

    @quick_jit
    def both(variables, image):
        return model.features(variables, image), model.apply(variables, image)[0]

    features, logits = both(variables, image)
    np.testing.assert_allclose(
        features @ layer[path] + layer[(*path[:-1], "bias")], logits, atol=1e-5
    )


def test_scaled_multiplies_the_named_leaves_along_their_last_axis():
    params = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "b": jnp.ones(2)}
    got = structure.scaled(params, {("a", "kernel"): jnp.array([1.0, 2, 3]), ("c",): jnp.zeros(1)})
    assert_same(
        got, {"a": {"kernel": jnp.array([[1.0, 2, 3]] * 2), "bias": jnp.ones(3)}, "b": jnp.ones(2)}
    )
    assert structure.nested(structure.flat(params)).keys() == params.keys()


def test_parametrizations_are_trees_whose_floats_are_leaves():
    assert jax.tree.leaves(NeuronMasks(0.5, 1.0)) == [0.5, 1.0]
    assert all(dataclasses.is_dataclass(kind) for kind in ALL)
    assert {
        FrozenConvolutions,
        Identity,
        KeptZeros,
        NeuronMasks,
        PrunedFilters,
        SingularValues,
        WeightMasks,
    } == set(ALL)


def test_rounding_in_the_decomposition_is_no_direction():
    """A filter that was pruned leaves the matrix without full rank; its singular value must not move."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype(np.float32)
    kernel[..., [1, 4]] = 0
    frozen = {"params": {"layer": {"kernel": jnp.asarray(kernel)}}, "batch_stats": {}}
    spec = image_spec("map", (4, 4, 4), 3, (0.5,) * 4, (0.25,) * 4)
    model = networks.of_layer(nn.Conv(6, (3, 3), use_bias=False), spec)
    shift, factors = SVD.init(model, frozen)
    grads = jax.grad(lambda at: jnp.sum(SVD.apply(at, factors)["layer"]["kernel"] * kernel))(shift)[
        "layer"
    ]["kernel"]
    assert sorted(np.asarray(grads) == 0) == [False] * 4 + [True] * 2
    grown = SVD.apply({"layer": {"kernel": 0.5 * jnp.sign(grads)}}, factors)
    np.testing.assert_allclose(grown["layer"]["kernel"][..., [1, 4]], 0, atol=1e-6)
