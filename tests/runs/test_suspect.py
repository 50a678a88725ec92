"""A network of a file whose weights do not say all of it."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from bdjax import models
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.models.foreign import keys, writing
from bdjax.runs import config as configs
from bdjax.runs import distance, inspection, suspect

HEADS = {"width": 32, "blocks": 1, "patch": 4, "heads": 4}


def transformer(folder, **options):
    spec = image_spec("tiny", (8, 8, 3), 4, (0.5,) * 3, (0.5,) * 3)
    model = models.create("vit_b_16", spec, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    file = folder / "vit.safetensors"
    writing.write_safetensors(file, keys.state_dict(model, variables))
    return file


def test_the_heads_of_a_transformer_of_an_unusual_width_are_asked_for(tmp_path):
    file = transformer(tmp_path, **HEADS)
    found = suspect.look(file)
    assert found.recognized.unknown == "heads"
    said = "no weight says the heads of vit_b_16: give them as they were in training, with --model.heads"
    for given in (None, {"name": "vit_b_16"}, {"resize": 8}):
        with pytest.raises(InputError, match=said):
            suspect.named(found, given)
    assert suspect.named(found, {"heads": 4})["width"] == 32
    assert ("to be given", said) in inspection.lines(inspection.inspect(file))


def test_a_run_of_such_a_network_lays_the_heads_over_what_was_recognized(tmp_path):
    file = transformer(tmp_path, **HEADS)
    values = {"data": {"name": "digits"}, "victim": {"file": str(file)}}
    with pytest.raises(InputError, match=r"no weight says the heads .* --model\.heads"):
        configs.resolve(values)
    model = configs.resolve({**values, "model": {"heads": 4}}).model
    assert {name: model.options[name] for name in HEADS} == HEADS


@pytest.mark.parametrize(("options", "heads"), [({"heads": 4}, {"heads": 4}), ({}, {})])
def test_a_config_of_its_own_beside_it_says_the_heads(tmp_path, options, heads):
    file = transformer(tmp_path, **HEADS)
    content = {"library_name": "bdjax", "network": "vit_b_16", "options": options}
    (tmp_path / "config.json").write_text(json.dumps(content))
    found = suspect.named(suspect.look(file), None)
    assert found == {"name": "vit_b_16", "width": 32, "blocks": 1, "patch": 4, **heads}


def test_a_config_of_something_else_says_nothing(tmp_path):
    file = transformer(tmp_path, **HEADS)
    for content in ("{", "[]", '{"options": {"heads": 4}}', '{"library_name": "bdjax"}'):
        (tmp_path / "config.json").write_text(content)
        assert suspect.look(file).recognized.unknown == "heads"


def test_the_distance_of_a_weight_that_is_in_no_layer_has_its_name():
    before = {"params": {"class_token": np.ones(4), "head": {"kernel": np.ones((2, 2))}}}
    after = {"params": {"class_token": np.full(4, 2.0), "head": {"kernel": np.ones((2, 2))}}}
    layers = {
        layer["name"]: layer["relative"] for layer in distance.between(before, after)["layers"]
    }
    assert layers == {"class_token": 1.0, "head": 0.0}
