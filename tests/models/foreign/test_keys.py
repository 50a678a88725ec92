"""State dicts and variables: names, shapes, layouts, and what does not fit."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bdjax import models
from bdjax.checks import InputError
from bdjax.models.foreign import aliases, keys
from bdjax.models.foreign.reading import read
from bdjax.models.foreign.recognition import recognize
from bdjax.models.foreign.writing import write_torch


@pytest.fixture(scope="module")
def states(spec):
    """Return a network with random statistics, and its state dict, by name."""
    made = {}
    for name in ("preact_resnet18", "resnet18"):
        model = models.create(name, spec, width=1)
        variables = drawn(model)
        made[name] = (model, variables, keys.state_dict(model, variables))
    return made


def drawn(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32) + 0.5, shapes)


def test_the_order_and_names_are_pytorchs(states):
    block = ["bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"]
    _, _, preact = states["preact_resnet18"]
    counter = "bn1.num_batches_tracked"
    names = ["conv1.weight", *(f"layer1.0.{name}" for name in (*block, counter, "conv1.weight"))]
    assert list(preact)[:7] == names
    assert len(preact) == 102
    assert {"layer2.0.shortcut.0.weight", "linear.weight"} <= preact.keys()
    _, _, resnet = states["resnet18"]
    assert list(resnet)[:7] == ["conv1.weight", *block, counter, "layer1.0.conv1.weight"]
    assert len(resnet) == 122
    second = [name for name in resnet if name.startswith("layer2.0.")]
    assert [name.split(".")[2] for name in second].index("downsample") == 12
    assert list(resnet)[-2:] == ["fc.weight", "fc.bias"]


def test_kernels_are_laid_out_as_pytorch_has_them(states):
    _, variables, state = states["resnet18"]
    kernel = variables["params"]["layer2"]["0"]["conv1"]["kernel"]
    assert state["layer2.0.conv1.weight"].shape == (2, 1, 3, 3)
    assert state["layer2.0.conv1.weight"][1, 0, 2, 0] == kernel[2, 0, 0, 1]
    dense = variables["params"]["fc"]["kernel"]
    np.testing.assert_array_equal(state["fc.weight"], dense.T)
    assert state["bn1.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize("name", ["preact_resnet18", "resnet18"])
def test_there_and_back_is_the_same(states, name):
    model, variables, state = states[name]
    back = keys.variables(state, model)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_kuangliu_names_and_half_precision_are_read(states):
    model, variables, _ = states["resnet18"]
    state = keys.state_dict(model, variables, "kuangliu")
    assert {"linear.weight", "layer2.0.shortcut.1.running_var"} <= state.keys()
    halves = {name: array.astype(np.float16) for name, array in state.items()}
    back = keys.variables(halves, model)
    rounded = jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), variables)
    jax.tree.map(np.testing.assert_array_equal, back, rounded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.bias": None}, r"it lacks 1 of 102 arrays \(fc.bias\)"),
        ({"fc.bias": None, "fc.bais": np.ones(4)}, "it lacks .*has 1 that .* has not .fc.bais"),
        ({"fc.weight": np.ones((5, 8))}, r"fc.weight is \(5, 8\), \(4, 8\) would fit"),
        ({"fc.weight": np.ones((8, 4))}, r"fc.weight is \(8, 4\), \(4, 8\) would fit"),
        ({"fc.bias": np.ones(4, np.int8)}, "fc.bias holds int8 numbers"),
        ({"fc.bias": np.full(4, np.nan)}, "fc.bias holds NaN or infinity"),
        ({"fc.bias": np.full(4, 1e300)}, "fc.bias holds NaN or infinity"),
        ({"bn1.running_var": np.full(1, -1.0)}, "is a variance and below 0"),
    ],
)
def test_what_does_not_fit_is_refused(states, change, message):
    model, _, state = states["resnet18"]
    changed = {name: array for name, array in {**state, **change}.items() if array is not None}
    with pytest.raises(InputError, match=message):
        keys.variables(changed, model)


def test_what_no_network_computes_with_is_left_out(states):
    model, variables, state = states["resnet18"]
    more = {"total_ops": np.zeros(1), "layer1.total_params": np.zeros(1)}
    more["aux1.fc.weight"] = np.zeros((2, 2))
    jax.tree.map(np.testing.assert_array_equal, keys.variables({**state, **more}, model), variables)
    found = keys.matching({**state, **more}, model)
    assert found.complete
    assert set(more) <= set(found.left_out)


def test_a_file_gets_its_own_names_back(states, tmp_path):
    model, variables, _ = states["resnet18"]
    own = keys.state_dict(model, variables, "kuangliu")
    in_file = {f"module.{name}": array for name, array in own.items()}
    write_torch(tmp_path / "a.pt", in_file)
    found = read(tmp_path / "a.pt")
    doubled = jax.tree.map(lambda leaf: 2 * leaf, keys.variables(found, model))
    back = keys.as_in_file(found, model, doubled)
    assert list(back) == list(in_file)
    np.testing.assert_array_equal(back["module.linear.weight"], 2 * in_file["module.linear.weight"])


def test_variables_of_another_network_are_refused(states):
    model = states["resnet18"][0]
    with pytest.raises(InputError, match="variables must be those of the network"):
        keys.state_dict(model, states["preact_resnet18"][1])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.11.attn.qkv.bias", "encoder.layers.encoder_layer_11.self_attention.in_proj_bias"),
        ("blocks.0.norm2.weight", "encoder.layers.encoder_layer_0.ln_2.weight"),
        ("norm.weight", "encoder.ln.weight"),
        ("cls_token", "class_token"),
        ("head.weight", "heads.head.weight"),
    ],
)
def test_timms_vision_transformer(theirs, ours):
    names = ["blocks.0.attn.qkv.weight", theirs]
    found = dict(aliases.spellings(names))
    assert found["timm's ViT"][ours] == theirs


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("stages.2.blocks.8.gamma", "features.5.8.layer_scale"),
        ("stages.0.blocks.0.norm.bias", "features.1.0.block.2.bias"),
        ("stages.3.downsample.1.weight", "features.6.1.weight"),
        ("stem.0.weight", "features.0.0.weight"),
        ("head.fc.bias", "classifier.2.bias"),
    ],
)
def test_timms_convnext(theirs, ours):
    names = ["stages.0.blocks.0.conv_dw.weight", theirs]
    assert dict(aliases.spellings(names))["timm's ConvNeXt"][ours] == theirs


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("preact_resnet18", {"width": 2}),
        ("small_cnn", {"width": 3}),
        ("resnet18", {"width": 2, "stem": "imagenet"}),
        ("wrn_16_1", {"width": 4, "depth": 10, "factor": 2}),
        ("vgg19_bn", {"width": 2, "head": "cifar"}),
    ],
)
def test_a_network_is_recognized_by_its_shapes(spec, tmp_path, name, options):
    from bdjax.data.modalities.images import image_spec

    spec = image_spec("x", (32, 32, 1), 43, (0.5,), (0.5,))
    model = models.create(name, spec, **options)
    write_torch(tmp_path / "a.pt", keys.state_dict(model, drawn(model)), {"img_size": [32, 32, 1]})
    found = recognize(read(tmp_path / "a.pt"))
    assert (found.name, dict(found.options)) == (name, options)
    assert (found.num_classes, found.shape, found.sure) == (43, (32, 32, 1), "certain")


def test_what_is_no_network_here_is_refused_with_what_was_seen(states, tmp_path):
    _, _, state = states["resnet18"]
    write_torch(tmp_path / "a.pt", {**state, "fc2.weight": np.ones((3, 3), np.float32)})
    with pytest.raises(InputError, match=r"the nearest is resnet18, but it has 1 .*fc2.weight"):
        recognize(read(tmp_path / "a.pt"))
    write_torch(tmp_path / "b.pt", {"encoder.w": np.ones((3, 3), np.float32)})
    with pytest.raises(InputError, match=r"its 1 arrays begin with encoder.w"):
        recognize(read(tmp_path / "b.pt"))


def test_shapes_that_no_family_can_take_apart_are_of_none(tmp_path):
    block, fc = np.ones((2, 2, 3, 3), np.float32), np.ones((4, 2), np.float32)
    odd = {"conv1.weight": np.ones((), np.float32), "bn1.weight": fc[0], "fc.weight": fc}
    write_torch(tmp_path / "a.pt", {**odd, "layer1.0.conv1.weight": block})
    with pytest.raises(InputError, match=r"its 4 arrays begin with conv1.weight"):
        recognize(read(tmp_path / "a.pt"))


def test_no_network_of_very_many_blocks_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "create", lambda *_, **__: pytest.fail("it was tried"))
    one, fc = np.ones((2, 2, 3, 3), np.float32), np.ones((4, 2), np.float32)
    blocks = {f"block1.layer.{number}.conv1.weight": one for number in range(60)}
    write_torch(tmp_path / "a.pt", {"conv1.weight": one, "fc.weight": fc, **blocks})
    with pytest.raises(InputError, match="is of no network here"):
        recognize(read(tmp_path / "a.pt"))
