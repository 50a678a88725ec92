"""The same numbers as torchvision's networks on the same weights: stored ones, and PyTorch's where it is installed.

The weights are those of `parity.variables`; the stored numbers are PyTorch's.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from quick import quick_jit

from bdjax import models, structure
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.models._names import key_of, to_torch
from bdjax.train.supervised import mean_loss
from bdjax.types import Model, Split

KEY = jax.random.key(0)
LABEL = np.asarray([0, 2, 1, 2], np.int32)


def spec_of(side: int, classes: int):
    return image_spec("sized", (side, side, 3), classes, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


# What they are made of

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("resnet18", {"stem": "imagenet"}),
    "resnet34": ("resnet34", {"stem": "imagenet"}),
    "resnet50": ("resnet50", {"stem": "imagenet"}),
    "resnet18 cifar": ("resnet18", {}),
    "resnet34 cifar": ("resnet34", {}),
    "resnet50 cifar": ("resnet50", {}),
    "vgg16": ("vgg16", {"head": "imagenet"}),
    "vgg16_bn": ("vgg16_bn", {"head": "imagenet"}),
    "vgg19": ("vgg19", {"head": "imagenet"}),
    "vgg19_bn": ("vgg19_bn", {"head": "imagenet"}),
    "vgg19_bn cifar": ("vgg19_bn", {}),
    "wrn_16_1": ("wrn_16_1", {}),
}
# Parameters with 10, 43, 200 and 1000 classes; tensors of a state dict; batch norms; convolutions
COUNTS: dict[str, tuple[tuple[int, ...], int, int, int]] = {
    "resnet18": ((11_181_642, 11_198_571, 11_279_112, 11_689_512), 122, 20, 20),
    "resnet34": ((21_289_802, 21_306_731, 21_387_272, 21_797_672), 218, 36, 36),
    "resnet50": ((23_528_522, 23_596_139, 23_917_832, 25_557_032), 320, 53, 53),
    "resnet18 cifar": ((11_173_962, 11_190_891, 11_271_432), 122, 20, 20),
    "resnet34 cifar": ((21_282_122, 21_299_051, 21_379_592), 218, 36, 36),
    "resnet50 cifar": ((23_520_842, 23_588_459, 23_910_152), 320, 53, 53),
    "vgg16": ((134_301_514, 134_436_715, 135_079_944, 138_357_544), 32, 0, 13),
    "vgg16_bn": ((134_309_962, 134_445_163, 135_088_392, 138_365_992), 97, 13, 13),
    "vgg19": ((139_611_210, 139_746_411, 140_389_640, 143_667_240), 38, 0, 16),
    "vgg19_bn": ((139_622_218, 139_757_419, 140_400_648, 143_678_248), 118, 16, 16),
    "vgg19_bn cifar": ((20_040_522,), 114, 16, 16),
    "wrn_16_1": ((175_066, 177_211, 187_416), 82, 13, 15),
}


@functools.cache
def shapes(form: str, classes: int) -> dict[str, Any]:
    name, options = FORMS[form]
    return jax.eval_shape(models.create(name, spec_of(32, classes), **options).init, KEY)


def size(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("form", COUNTS)
def test_exact_counts(form):
    parameters, tensors, norms, convolutions = COUNTS[form]
    found = shapes(form, 10)
    leaves = structure.flat(found["params"])
    (classifier,) = {path[:-1] for path, leaf in leaves.items() if 10 in leaf.shape}
    features = leaves[(*classifier, "kernel")].shape[0]
    for count, classes in zip(parameters, (10, 43, 200, 1000), strict=False):
        assert size(found["params"]) + (features + 1) * (classes - 10) == count
    last = (10, 43, 200, 1000)[len(parameters) - 1]
    assert size(shapes(form, last)["params"]) == parameters[-1]
    kept = structure.flat(found["batch_stats"])
    assert len(structure.convolutions(found["params"])) == convolutions
    assert sum(path[-1] == "var" for path in kept) == norms
    assert len(leaves) + len(kept) + norms == tensors  # one for the number of batches


@pytest.mark.parametrize(
    ("form", "keys"),
    [
        ("resnet18", "conv1.weight bn1.running_var layer2.0.downsample.0.weight fc.bias"),
        ("resnet50", "layer1.0.downsample.1.running_mean layer4.2.bn3.bias layer3.5.conv2.weight"),
        ("vgg16", "features.0.bias features.28.weight classifier.0.weight classifier.6.bias"),
        (
            "vgg19_bn",
            "features.1.running_var features.49.weight features.50.bias classifier.3.bias",
        ),
        ("vgg19_bn cifar", "features.0.weight classifier.weight"),
        ("wrn_16_1", "block1.layer.1.bn2.running_mean block2.layer.0.convShortcut.weight bn1.bias"),
    ],
)
def test_keys(form, keys):
    variables = shapes(form, 10)
    found = [key_of(path) for tree in variables.values() for path in structure.flat(tree)]
    assert len(found) == len(set(found))
    assert set(keys.split()) <= set(found)


@pytest.mark.parametrize(("name", "option"), [("resnet18", "stem"), ("vgg16", "head")])
def test_a_form_is_chosen_by_the_size_of_the_images(name, option):
    for side, chosen in ((64, "cifar"), (65, "imagenet")):
        given, auto = (
            models.create(name, spec_of(side, 3), **{option: value}) for value in (chosen, "auto")
        )
        assert given == auto
    with pytest.raises(InputError, match=f"{option} must be one of auto, imagenet, cifar; got 'x'"):
        models.create(name, spec_of(32, 3), **{option: "x"})


def test_images_that_are_halved_away_are_refused():
    with pytest.raises(InputError, match="'vgg16' takes 32×32 pixels or more; sized has 31×31"):
        models.create("vgg16", spec_of(31, 3))


@pytest.mark.parametrize(("option", "value"), [("depth", 15), ("depth", 4), ("factor", 0)])
def test_wide_resnets_of_no_depth_are_refused(option, value):
    with pytest.raises(InputError, match=f"{option} must be .*got {value}"):
        models.create("wrn_16_1", spec_of(32, 3), **{option: value})


def test_dropout_in_training_draws_from_the_key():
    """All of it is in the head, which halves what it takes in."""
    model = models.create("vgg16", spec_of(32, 3), width=1, head="imagenet")
    variables, image = parity.variables(model), jnp.asarray(parity.image(model))

    @quick_jit
    def logits(key):
        return model.apply(variables, image, train=True, key=key)[0]

    one, again, other = logits(KEY), logits(KEY), logits(jax.random.key(1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


# What they compute

# The first row's logits in evaluation and in training, and the sum of the statistics after a step. A ResNet-50 takes
# long to compile: the first is enough.
DEEPEST = [-0.2725361, 1.6844606, 0.2181771]
STORED: dict[str, tuple[list[float], list[float], float]] = {
    "resnet18 cifar": (
        [1.0534950, 1.8142358, -0.6308681],
        [0.7027421, 1.0496096, -0.6050334],
        287.5111806,
    ),
    "vgg16": (
        [0.4601640, -0.1357136, -0.1016253],
        [0.4601640, -0.1357136, -0.1016253],
        0.0,
    ),
    "vgg19_bn cifar": (
        [0.2076589, -0.1336902, -0.4588143],
        [2.1718360, -1.5427875, -2.1598014],
        159.0195725,
    ),
    "wrn_16_1": (
        [1.6407387, 0.8326534, -2.9201588],
        [0.2097223, 0.7316078, -0.3969711],
        111.8026140,
    ),
}


@functools.cache
def small(form: str) -> Model:
    name, options = FORMS[form]
    return models.create(name, spec_of(32, 3), width=2 if "vgg" in name else 4, **options)


@functools.partial(quick_jit, static_argnums=0)
def passes(model, variables, image):
    trained, changed = model.apply(variables, image, train=True)
    return model.apply(variables, image)[0], trained, changed


@functools.partial(quick_jit, static_argnums=0)
def evaluation(model, variables, image):
    return model.apply(variables, image)[0]


@functools.partial(quick_jit, static_argnums=0)
def gradient(model, variables, image):
    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, image, train=True)
        return mean_loss(model.spec.task, logits, Split(image, LABEL, None))

    return jax.grad(loss)(variables["params"])


@functools.cache
def wide(form: str) -> tuple[Any, ...]:
    """Return the model, and its variables and images in float64.

    Between the two lies a chain of batch norms over few values, which makes of a rounding of float32 a thousandth.
    """
    model = small(form)
    with jax.enable_x64(True):
        variables = jax.tree.map(np.float64, parity.variables(model))
        return (
            model,
            jax.tree.map(jnp.asarray, variables),
            jnp.asarray(np.float64(parity.image(model))),
        )


@functools.cache
def computed(form: str) -> tuple[Any, ...]:
    with jax.enable_x64(True):
        return passes(*wide(form))


def test_the_stored_logits_of_the_deepest():
    with jax.enable_x64(True):
        np.testing.assert_allclose(evaluation(*wide("resnet50"))[0], DEEPEST, atol=1e-5)


@pytest.mark.parametrize("form", STORED)
def test_the_stored_numbers_of_pytorch(form):
    evaluated, trained, statistics = computed(form)
    expected = STORED[form]
    np.testing.assert_allclose(evaluated[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(trained[0], expected[1], atol=1e-5)
    total = sum(float(leaf.sum()) for leaf in jax.tree.leaves(statistics))
    assert total == pytest.approx(expected[2], abs=1e-4)


@pytest.mark.parametrize("form", ["resnet18", "resnet50", *STORED])
def test_equals_pytorch_in_evaluation_training_gradient_and_statistics(form):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    import torch_networks

    model, variables, image = wide(form)
    theirs = torch_networks.make(form, 3).double()
    parity.load(theirs, variables)
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    evaluated, trained, statistics = computed(form)
    given = parity.torch_input(model, np.asarray(image))
    with torch.no_grad():
        expected = theirs.eval()(given).numpy()
    np.testing.assert_allclose(evaluated, expected, atol=1e-6)
    narrow = evaluation(model, parity.variables(model), jnp.asarray(parity.image(model)))
    np.testing.assert_allclose(narrow, expected, rtol=1e-4, atol=1e-4)
    logits = theirs.train()(given)
    np.testing.assert_allclose(trained, logits.detach().numpy(), atol=1e-6)
    state = theirs.state_dict()
    for path, leaf in structure.flat(statistics).items():
        np.testing.assert_allclose(leaf, state[key_of(path)].numpy(), atol=1e-6)
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABEL).long()).backward()
    with jax.enable_x64(True):
        found = structure.flat(gradient(model, variables, image))
    theirs_of = dict(theirs.named_parameters())
    assert {key_of(path) for path in found} == set(theirs_of)
    for path, leaf in found.items():
        expected = theirs_of[key_of(path)].grad.numpy()
        np.testing.assert_allclose(to_torch(np.asarray(leaf), path), expected, rtol=1e-5, atol=1e-6)
