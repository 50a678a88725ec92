"""MobileNets, EfficientNets and DenseNets: what they are made of, and the numbers of PyTorch on the same weights.

The weights are those of `parity.variables`; the stored numbers are PyTorch's.
"""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from networks import random_variables
from quick import quick_jit
from small_defenses import create, fed, signature

from bdjax import models, structure
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.models._densenet import _DenseNet
from bdjax.models._layers import Dense, LinenModel, pooled
from bdjax.models._mobile import InvertedResidual, SqueezeExcite, conv_norm, rounded
from bdjax.models._names import key_of, to_torch
from bdjax.models._sequential import Sequential
from bdjax.parametrizations import PrunedFilters, SingularValues
from bdjax.train import programs
from bdjax.train.supervised import mean_loss
from bdjax.types import Model, Split

KEY = jax.random.key(0)
LABEL = np.asarray([0, 2, 1, 2], np.int32)
IMAGENET = {"form": "imagenet"}


def spec_of(side: int, classes: int):
    return image_spec("sized", (side, side, 3), classes, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


# Parameters with 10, 43, 200 and 1000 classes; tensors of a state dict; batch norms; convolutions, and those with bias
COUNTS: dict[str, tuple[tuple[int, ...], int, int, int, int]] = {
    "mobilenet_v2": ((2_236_682, 2_278_955, 2_480_072, 3_504_872), 314, 52, 52, 0),
    "mobilenet_v3_large": ((4_214_842, 4_257_115, 4_458_232, 5_483_032), 312, 46, 62, 16),
    "efficientnet_b0": ((4_020_358, 4_062_631, 4_263_748, 5_288_548), 360, 49, 81, 32),
    "efficientnet_b1": ((6_525_994, 6_568_267, 6_769_384, 7_794_184), 508, 69, 115, 46),
    "efficientnet_b2": ((7_715_084, 7_761_581, 7_982_794, 9_109_994), 508, 69, 115, 46),
    "efficientnet_b3": ((10_711_602, 10_762_323, 11_003_632, 12_233_232), 574, 78, 130, 52),
    "densenet121": ((6_964_106, 6_997_931, 7_158_856, 7_978_856), 727, 121, 120, 0),
    "densenet161": ((26_494_090, 26_566_987, 26_913_800, 28_681_000), 967, 161, 160, 0),
    "mobilenet_v2 cifar": ((2_296_922,), 344, 57, 57, 0),
}


@functools.cache
def shapes(form: str) -> dict[str, Any]:
    name, *cifar = form.split()
    options = IMAGENET if form == "mobilenet_v2" else {}
    assert not cifar or name == "mobilenet_v2"
    return jax.eval_shape(models.create(name, spec_of(32, 10), **options).init, KEY)


@pytest.mark.parametrize("form", COUNTS)
def test_exact_counts(form):
    parameters, tensors, norms, convolutions, biased = COUNTS[form]
    leaves = structure.flat(shapes(form)["params"])
    ten = sum(int(np.prod(leaf.shape)) for leaf in leaves.values())
    (features,) = {leaf.shape[0] for leaf in leaves.values() if leaf.shape[1:] == (10,)}
    for count, classes in zip(parameters, (10, 43, 200, 1000), strict=False):
        assert ten + (features + 1) * (classes - 10) == count
    found = structure.convolutions(shapes(form)["params"])
    assert len(found) == convolutions
    assert sum((*path[:-1], "bias") in leaves for path in found) == biased
    kept = structure.flat(shapes(form)["batch_stats"])
    assert sum(path[-1] == "var" for path in kept) == norms
    assert len(leaves) + len(kept) + norms == tensors  # one for the number of batches


@pytest.mark.parametrize(
    ("form", "keys"),
    [
        ("mobilenet_v2", "features.0.0.weight features.1.conv.1.weight features.17.conv.3.bias"),
        ("mobilenet_v3_large", "features.4.block.2.fc1.bias classifier.0.weight classifier.3.bias"),
        ("efficientnet_b3", "features.1.0.block.1.fc2.weight features.8.1.running_var"),
        ("densenet121", "features.norm5.bias features.transition1.norm.weight classifier.weight"),
        ("mobilenet_v2 cifar", "layers.0.shortcut.0.weight layers.16.bn3.running_mean linear.bias"),
    ],
)
def test_keys(form, keys):
    found = {key_of(path) for tree in shapes(form).values() for path in structure.flat(tree)}
    assert set(keys.split()) <= found


@pytest.mark.parametrize("form", [form for form in COUNTS if form != "mobilenet_v2 cifar"])
def test_keys_and_shapes_are_torchvisions(form):
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        theirs = torchvision.models.get_model(form, num_classes=10).state_dict()
    expected = {key: tuple(leaf.shape) for key, leaf in theirs.items() if leaf.ndim}
    found = {}
    for tree in shapes(form).values():
        for path, leaf in structure.flat(tree).items():
            found[key_of(path)] = to_torch(np.broadcast_to(0, leaf.shape), path).shape
    assert found == expected


@pytest.mark.parametrize(
    ("channels", "divisor", "expected"),
    [(35.2, 8, 32), (38.4, 8, 40), (10, 8, 16), (11, 8, 16), (9, 8, 16), (8.8, 8, 8), (1, 2, 2)],
)
def test_channels_are_rounded_to_a_multiple(channels, divisor, expected):
    assert rounded(channels, divisor) == expected


def test_a_form_is_chosen_by_the_size_of_the_images():
    for side, chosen in ((64, "cifar"), (65, "imagenet")):
        given = models.create("mobilenet_v2", spec_of(side, 3), form=chosen)
        assert given == models.create("mobilenet_v2", spec_of(side, 3))
    with pytest.raises(InputError, match="form must be one of auto, imagenet, cifar; got 'x'"):
        models.create("mobilenet_v2", spec_of(32, 3), form="x")


def test_images_that_a_densenet_halves_away_are_refused():
    shallow = _DenseNet(3, (1, 1, 1, 1), 2)
    jax.eval_shape(LinenModel(shallow, spec_of(29, 3)).init, KEY)
    with pytest.raises(InputError, match="the images must be larger for this network"):
        jax.eval_shape(LinenModel(shallow, spec_of(28, 3)).init, KEY)
    with pytest.raises(InputError, match="'densenet121' takes 29×29 pixels or more; sized has 28"):
        models.create("densenet121", spec_of(28, 3))


# What they compute

# The first row's logits in evaluation
STORED: dict[str, list[float]] = {
    "mobilenet_v2": [-0.23269065584527143, -0.24694960875533412, 0.047908224570433144],
    "mobilenet_v3_large": [-0.5127485094067709, -0.13369601827544414, 0.12114683038184376],
    "efficientnet_b0": [-0.08744952883290869, -0.06485498363158873, 0.22031212258393518],
    "densenet121": [0.30527738881016553, -0.0619619142507952, -0.19627385609759035],
}


@functools.cache
def small(name: str) -> Model:
    """Return the network at a small width, and of DenseNet's many equal layers two in each block."""
    if name == "densenet121":
        return LinenModel(_DenseNet(3, (2, 2, 2, 2), 4), spec_of(32, 3))
    if name == "mobilenet_v2":
        return models.create(name, spec_of(32, 3), width=2, **IMAGENET)
    return models.create(name, spec_of(32, 3), width=8)


def theirs_of(name: str, classes: int) -> Any:
    """Return torchvision's network of that width."""
    import torchvision.models as zoo

    if name == "mobilenet_v2":
        return zoo.MobileNetV2(classes, width_mult=1 / 16, round_nearest=2, dropout=0.0)
    if name == "densenet121":
        return zoo.DenseNet(2, (2, 2, 2, 2), 4, num_classes=classes)
    if name == "mobilenet_v3_large":
        blocks, last = zoo.mobilenetv3._mobilenet_v3_conf(name, width_mult=0.5)
        return zoo.MobileNetV3(blocks, last, classes, dropout=0.0)
    blocks, last = zoo.efficientnet._efficientnet_conf(name, width_mult=0.25, depth_mult=1.0)
    return zoo.EfficientNet(blocks, 0.0, 0.0, classes, last_channel=last)


@functools.partial(quick_jit, static_argnums=0)
def passes(model, variables, image):
    trained, changed = model.apply(variables, image, train=True)
    return model.apply(variables, image)[0], trained, changed


@functools.partial(quick_jit, static_argnums=0)
def gradient(model, variables, image):
    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, image, train=True)
        return mean_loss(model.spec.task, logits, Split(image, LABEL, None))

    return jax.grad(loss)(variables["params"])


@functools.cache
def wide(name: str) -> tuple[Any, ...]:
    """Return the model, and its variables and images in float64.

    Between the two lies a chain of batch norms over few values, which makes of a rounding of float32 a thousandth.
    """
    model = small(name)
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda x: jnp.asarray(np.float64(x)), parity.variables(model))
        return model, variables, jnp.asarray(np.float64(parity.image(model)))


@pytest.mark.parametrize("name", STORED)
def test_the_stored_numbers_of_pytorch(name):
    with jax.enable_x64(True):
        evaluated = quick_jit(lambda *args: small(name).apply(*args)[0])(*wide(name)[1:])
    np.testing.assert_allclose(evaluated[0], STORED[name], rtol=1e-6)


@pytest.mark.parametrize("name", STORED)
def test_equals_pytorch_in_evaluation_training_gradient_and_statistics(name):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    model, variables, image = wide(name)
    theirs = theirs_of(name, 3).double()
    parity.load(theirs, variables)
    with jax.enable_x64(True):
        evaluated, trained, statistics = passes(model, variables, image)
    given = parity.torch_input(model, np.asarray(image))
    with torch.no_grad():
        expected = theirs.eval()(given).numpy()
    print(name, expected[0].tolist())
    np.testing.assert_allclose(evaluated, expected, rtol=1e-6, atol=1e-6)
    logits = theirs.train()(given)
    print(logits[0].tolist())
    np.testing.assert_allclose(trained, logits.detach().numpy(), rtol=1e-6, atol=1e-6)
    state = theirs.state_dict()
    print(sum(float(leaf.sum()) for key, leaf in state.items() if "running" in key))
    for path, leaf in structure.flat(statistics).items():
        np.testing.assert_allclose(leaf, state[key_of(path)].numpy(), atol=1e-6)
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABEL).long()).backward()
    with jax.enable_x64(True):
        found = structure.flat(gradient(model, variables, image))
    expected = {key: leaf.grad.numpy() for key, leaf in theirs.named_parameters()}
    assert {key_of(path) for path in found} == set(expected)
    scale = max(np.abs(leaf).max() for leaf in expected.values())
    for path, leaf in found.items():
        ours = to_torch(np.asarray(leaf), path)
        np.testing.assert_allclose(ours, expected[key_of(path)], rtol=1e-5, atol=1e-7 * scale)


# What the methods take of them, shown on a short network of the same blocks

SQUEEZE = partial(SqueezeExcite, 2, nn.relu, nn.hard_sigmoid)
FIRST, SECOND = (
    ("features", "1", "block", "1", "0", "kernel"),
    ("features", "2", "block", "1", "0", "kernel"),
)


class Short(nn.Module):
    """Depthwise convolutions of both sizes, squeeze-and-excitation, a residual sum, every activation."""

    @nn.compact
    def __call__(self, x, *, train: bool, valid=None):
        layers = (
            conv_norm(4, 3, activation=nn.relu6),
            partial(InvertedResidual, 8, 4, 3, 1, nn.hard_swish, SQUEEZE, dropped=0.5),
            partial(InvertedResidual, 12, 6, 5, 2, nn.silu, SQUEEZE),
        )
        x = Sequential(layers, name="features")(x, train=train, valid=valid)
        return Dense(4, name="classifier")(pooled(x))


def short(dtype: str = "float32") -> LinenModel:
    return LinenModel(Short(), spec_of(8, 4), dtype)


@pytest.fixture(scope="module")
def batch() -> Split:
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.integers(0, 256, (48, 8, 8, 3)), jnp.uint8)
    return Split(image, jnp.arange(48, dtype=jnp.int32) % 4, jnp.ones(48, bool))


@pytest.mark.parametrize("stage", ["fast_sft", "fine_pruning", "ft_sam", "grad_prune", "nft"])
def test_a_defense_keeps_tree_shapes_and_dtypes(stage, batch):
    """In bfloat16, where a type is easily lost; nothing is compiled."""
    model = short("bfloat16")

    def purify(variables):
        for stage_ in create(stage).stages:
            learner, seen = fed(stage_, batch)
            state = learner.init(KEY, model, stage_.begin(KEY, model, variables), seen)
            if learner.epochs:
                state, _ = programs.epoch(KEY, learner, model, state, seen)
            variables = learner.finalize(model, state)
        return variables

    before = jax.eval_shape(lambda: model.init(KEY))
    assert signature(jax.eval_shape(purify, before)) == signature(before)


def test_singular_values_of_a_depthwise_kernel_are_those_of_its_filters(batch):
    """A row for each filter, as PyTorch keeps it: [c, h · w]; and computed in its parts it is the same network."""
    model, kind = short(), SingularValues()
    variables = random_variables(model)
    tuned, frozen = kind.init(model, variables)
    assert structure.flat(tuned)[FIRST].shape == (8,)
    rows = np.asarray(structure.flat(variables["params"])[FIRST]).reshape(9, 8).T
    found = structure.flat(frozen["factors"])[FIRST].scale
    np.testing.assert_allclose(found, np.linalg.svd(rows, compute_uv=False), rtol=1e-4)
    shifted = jax.tree.map(lambda x: x + 0.1, tuned)
    image = batch.input[:4] / 255

    @quick_jit
    def logits(params):
        return model.apply({**variables, "params": params}, image)[0]

    whole, parts = kind.apply(shifted, frozen), kind.factored(shifted, frozen)
    np.testing.assert_allclose(logits(parts), logits(whole), atol=1e-4)
    assert not np.allclose(logits(whole), logits(variables["params"]), atol=1e-2)


def test_a_filter_of_any_convolution_is_pruned_with_its_bias():
    model, kind = short(), PrunedFilters()
    variables = random_variables(model)
    kept, frozen = kind.init(model, variables)
    leaves = structure.flat(kept)
    squeezed = (*FIRST[:3], "2", "fc1", "kernel")
    assert {FIRST, SECOND, squeezed} <= set(leaves)
    assert leaves[SECOND].shape == (12,)
    for path in (FIRST, squeezed):
        leaves[path] = leaves[path].at[1].set(0)
    params = structure.flat(kind.apply(structure.nested(leaves), frozen))
    assert [bool(params[FIRST][..., n].any()) for n in range(3)] == [True, False, True]
    bias = params[(*squeezed[:-1], "bias")]
    assert (bool(bias[0] != 0), float(bias[1])) == (True, 0.0)


def test_a_block_is_left_out_of_whole_rows_in_training(batch):
    """And counts twice for the others, at a probability of a half."""
    block = InvertedResidual(8, 3, 3, 1, nn.relu, dropped=0.5)
    x = batch.input[:16] / 255
    variables = block.init(KEY, x, train=False, valid=None)
    run = quick_jit(
        lambda rngs: block.apply(
            variables, x, train=True, valid=None, rngs=rngs, mutable=["batch_stats"]
        )[0]
    )
    plain = block.clone(dropped=0.0).apply(
        variables, x, train=True, valid=None, mutable=["batch_stats"]
    )[0]
    added, expected = run({"dropout": KEY}) - x, 2 * (plain - x)
    left_out = (added == 0).all((1, 2, 3))
    assert 0 < left_out.sum() < 16
    np.testing.assert_allclose(added[~left_out], expected[~left_out], atol=1e-5)
