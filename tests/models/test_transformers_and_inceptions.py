"""ViT, ConvNeXt, GoogLeNet and Inception-v3: the same numbers as torchvision's on the same weights.

The weights are those of `parity.variables`; the stored numbers are PyTorch's.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import twins
from quick import quick_jit

from bdjax import models, structure
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.models._names import key_of
from bdjax.models.foreign import keys
from bdjax.models.foreign.reading import StateDict
from bdjax.models.foreign.recognition import recognize
from bdjax.types import Model

KEY = jax.random.key(0)


def spec_of(height: int, width: int, classes: int = 3):
    return image_spec("sized", (height, width, 3), classes, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


# What they are made of

FORMS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "vit_b_16": ("vit_b_16", 32, {"resize": 224}),
    "vit_s_16": ("vit_s_16", 224, {}),
    "convnext_tiny": ("convnext_tiny", 32, {}),
    "googlenet with heads": ("googlenet", 15, {"aux": True}),
    "inception_v3 with heads": ("inception_v3", 75, {"aux": True}),
}
# Parameters by classes; tensors of a state dict; batch norms; convolutions
COUNTS: dict[str, tuple[dict[int, int], int, int, int]] = {
    "vit_b_16": ({10: 85_806_346, 43: 85_831_723, 200: 85_952_456, 1000: 86_567_656}, 152, 0, 1),
    "vit_s_16": ({10: 21_669_514, 43: 21_682_219, 200: 21_742_664, 1000: 22_050_664}, 152, 0, 1),
    "convnext_tiny": (
        {10: 27_827_818, 43: 27_853_195, 200: 27_973_928, 1000: 28_589_128}, 182, 0, 22
    ),
    "googlenet": ({10: 5_610_154, 1000: 6_624_904}, 344, 57, 57),
    "googlenet with heads": (
        {10: 9_960_638, 43: 10_062_113, 200: 10_544_888, 1000: 13_004_888}, 364, 59, 59
    ),
    "inception_v3": ({10: 21_806_058, 1000: 23_834_568}, 566, 94, 94),
    "inception_v3 with heads": (
        {10: 24_371_444, 43: 24_464_438, 200: 24_906_864, 1000: 27_161_264}, 580, 96, 96
    ),
}  # fmt: skip


@functools.cache
def shapes(form: str) -> dict[str, Any]:
    name, side, options = FORMS[form]
    return jax.eval_shape(models.create(name, spec_of(side, side, 10), **options).init, KEY)


def _without_heads(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: tree[name] for name in tree.keys() - {"aux1", "aux2", "AuxLogits"}}


@pytest.mark.parametrize("form", COUNTS)
def test_exact_counts(form):
    """Without auxiliary heads they are those of the other variables."""
    parameters, tensors, norms, convolutions = COUNTS[form]
    found = shapes(form if form in FORMS else f"{form} with heads")
    if form not in FORMS:
        found = {name: _without_heads(tree) for name, tree in found.items()}
    leaves, kept = structure.flat(found["params"]), structure.flat(found["batch_stats"])
    sizes = {path: int(np.prod(leaf.shape)) for path, leaf in leaves.items()}
    of_a_class = sum(sizes[path] // 10 for path, leaf in leaves.items() if leaf.shape[-1] == 10)
    for classes, count in parameters.items():
        assert sum(sizes.values()) + of_a_class * (classes - 10) == count
    assert len(structure.convolutions(found["params"])) == convolutions
    assert sum(path[-1] == "var" for path in kept) == norms
    assert len(leaves) + len(kept) + norms == tensors  # one for the number of batches


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (
            "vit_b_16",
            "class_token conv_proj.bias encoder.pos_embedding encoder.ln.weight heads.head.bias "
            "encoder.layers.encoder_layer_11.self_attention.in_proj_weight "
            "encoder.layers.encoder_layer_0.self_attention.in_proj_bias "
            "encoder.layers.encoder_layer_0.self_attention.out_proj.weight "
            "encoder.layers.encoder_layer_3.ln_2.bias encoder.layers.encoder_layer_3.mlp.3.weight",
        ),
        (
            "convnext_tiny",
            "features.0.0.bias features.0.1.weight features.5.8.layer_scale features.6.1.weight "
            "features.7.2.block.0.weight features.1.0.block.2.bias features.1.0.block.5.weight "
            "classifier.0.weight classifier.2.bias",
        ),
        (
            "googlenet with heads",
            "conv1.conv.weight inception3a.branch1.bn.running_var aux1.fc1.weight aux2.conv.bn.bias "
            "inception5b.branch4.1.conv.weight inception4e.branch3.0.bn.weight fc.weight",
        ),
        (
            "inception_v3 with heads",
            "Conv2d_1a_3x3.conv.weight Mixed_5b.branch_pool.bn.weight AuxLogits.conv1.bn.running_var "
            "Mixed_6a.branch3x3dbl_3.conv.weight Mixed_6e.branch7x7dbl_5.bn.bias AuxLogits.fc.weight "
            "Mixed_7a.branch7x7x3_4.conv.weight Mixed_7c.branch3x3dbl_3b.conv.weight fc.bias",
        ),
    ],
)  # fmt: skip
def test_keys(form, expected):
    found = [key_of(path) for tree in shapes(form).values() for path in structure.flat(tree)]
    assert len(found) == len(set(found))
    assert set(expected.split()) <= set(found)


@pytest.mark.parametrize(
    ("name", "shape", "options", "words"),
    [
        ("vit_b_16", (28, 32), {}, r"^patch must divide .* sized, 28×32 pixels; got 16: .*resize"),
        ("vit_b_16", (28, 28), {"resize": 20}, r"^patch must .*the resized images, 20×20 pixels"),
        ("vit_s_16", (32, 32), {"heads": 5}, "^heads must divide the width, 384; got 5"),
        ("vit_s_16", (32, 32), {"heads": 0}, "^heads must be 1 or more"),
        ("vit_s_16", (32, 32), {"blocks": 0}, "^blocks must be 1 or more"),
        ("vit_s_16", (32, 32), {"patch": 0}, "^patch must be 1 or more"),
        ("vit_s_16", (32, 32), {"resize": 0}, "^resize must be 1 or more"),
        ("convnext_tiny", (32, 32), {"blocks": 0}, "^blocks must be 1 or more"),
        ("convnext_tiny", (31, 40), {}, "'convnext_tiny' takes 32×32 pixels or more; .*31×40"),
        ("googlenet", (14, 40), {}, "'googlenet' takes 15×15 pixels or more; .*14×40"),
        ("inception_v3", (75, 74), {}, "'inception_v3' takes 75×75 pixels or more; .*75×74"),
    ],
)
def test_refuses(name, shape, options, words):
    with pytest.raises(InputError, match=words):
        models.create(name, spec_of(*shape), **options)


def test_heads_of_attention_have_64_channels():
    made = functools.partial(models.create, "vit_b_16", spec_of(32, 32))
    assert made() == made(heads=12)
    assert made(width=100) == made(width=100, heads=1)


# What they compute

SMALL: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "vit": ("vit_b_16", (8, 8), {"width": 8, "blocks": 2, "heads": 2, "patch": 4}),
    "vit, enlarged": (
        "vit_s_16", (6, 7), {"width": 8, "blocks": 2, "heads": 2, "patch": 4, "resize": 8}
    ),
    "vit, reduced": (
        "vit_s_16", (20, 17), {"width": 8, "blocks": 2, "heads": 2, "patch": 4, "resize": 8}
    ),
    "convnext": ("convnext_tiny", (38, 45), {"width": 4, "blocks": 1}),
    "googlenet": ("googlenet", (17, 15), {"width": 8}),
    "googlenet with heads": ("googlenet", (17, 15), {"width": 8, "aux": True}),
    "inception": ("inception_v3", (75, 75), {"width": 2}),
}  # fmt: skip
# The first row's logits
STORED = {
    "vit": [-0.5611878, -0.6324909, 1.117521],
    "vit, enlarged": [-0.3648633, -0.9900012, 1.2743657],
    "vit, reduced": [-0.0831496, -0.4409716, 1.1994013],
    "convnext": [0.4596712, -0.9939816, 0.1227743],
    "googlenet": [0.2411467, 0.476796, 0.1881356],
    "inception": [-0.183801, -0.1986343, 0.5324238],
}


@functools.cache
def small(form: str) -> Model:
    name, shape, options = SMALL[form]
    return models.create(name, spec_of(*shape), **options)


@pytest.mark.parametrize("form", STORED)
def test_the_stored_numbers_of_pytorch(form):
    evaluated = twins.computed(small(form), twins.evaluation)
    np.testing.assert_allclose(evaluated[0], STORED[form], atol=1e-6)


@pytest.mark.parametrize("form", sorted(SMALL.keys() - {"googlenet"}))
def test_equals_pytorch_in_evaluation_training_gradient_and_statistics(form):
    """Heads that are not computed change nothing, so that GoogLeNet is compared with them alone."""
    pytest.importorskip("torchvision")
    import torch_transformers

    twins.assert_equal(small(form), torch_transformers.make(form, 3), form)


@pytest.mark.parametrize("form", ["vit, enlarged", "convnext", "googlenet with heads"])
def test_it_is_recognized_by_its_names_and_shapes(form):
    name, shape, options = SMALL[form]
    options = {option: value for option, value in options.items() if option != "heads"}
    model = models.create(name, spec_of(*shape), **options)
    arrays = parity.state_dict(parity.variables(model))
    beside = {"img_size": (*shape, 3)}
    found = recognize(StateDict(Path("file.pt"), "", arrays, beside, (), "", {}, ()))
    assert (found.num_classes, found.image_size) == (3, shape)
    assert models.create(found.name, model.spec, **found.options) == model
    assert ("heads" in found.why) == (form == "vit, enlarged")


def test_positions_for_other_images_are_refused():
    """Never interpolated without a word."""
    large = models.create("vit_s_16", spec_of(16, 16), width=8, blocks=1, patch=4)
    other = models.create("vit_s_16", spec_of(8, 8), width=8, blocks=1, patch=4)
    with pytest.raises(InputError, match=r"encoder\.pos_embedding"):
        keys.variables(parity.state_dict(parity.variables(large)), other)


def test_auxiliary_heads_are_variables_alone():
    """Nothing reads them, so that the logits are the same with them and without."""
    model = small("googlenet with heads")
    variables = jax.eval_shape(model.init, KEY)
    read = structure.execution_order(model, variables)
    unread = set(structure.flat(variables["params"])) - set(read)
    assert {path[0] for path in unread} == {"aux1", "aux2"}
    assert not {path[0] for path in read} & {"aux1", "aux2"}
    assert read[-1][0] == read[-2][0] == "fc"


def test_stochastic_depth_draws_from_the_key_and_is_left_out_without():
    """There is nothing else in which training differs from evaluation."""
    model = small("convnext")
    variables, image = parity.variables(model), jnp.asarray(parity.image(model))

    @quick_jit
    def logits(keys):
        drawn = [model.apply(variables, image, train=True, key=key)[0] for key in keys]
        plain = [model.apply(variables, image, train=train)[0] for train in (True, False)]
        return drawn, plain

    seeds = (0, 0, 1, 2)
    (one, again, *others), (trained, evaluated) = logits([jax.random.key(seed) for seed in seeds])
    np.testing.assert_allclose(one, again, atol=1e-6)
    assert any(not np.allclose(one, other, atol=1e-3) for other in others)
    np.testing.assert_allclose(trained, evaluated, atol=1e-6)


def test_attention_is_computed_in_the_narrow_type_and_near_the_wide():
    spec, options = small("vit").spec, SMALL["vit"][2]
    narrow = models.create("vit_b_16", spec, dtype="bfloat16", **options)
    variables, image = parity.variables(narrow), jnp.asarray(parity.image(narrow))
    ours, expected = (model.apply(variables, image)[0] for model in (narrow, small("vit")))
    assert ours.dtype == jnp.float32
    assert 0 < np.abs(ours - expected).max() < 0.1 * np.abs(expected).max()
