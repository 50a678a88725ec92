"""What is known of a network's normalization, and what is refused of one that is asked for."""

from __future__ import annotations

import json

import pytest

from bdjax.checks import InputError
from bdjax.models.foreign import normalization
from bdjax.models.foreign.normalization import IMAGENET


def known(folder, beside=None, **more):
    given = {"channels": 3, "num_classes": 10, **more}
    return normalization.known(beside or {}, folder / "model.safetensors", **given)


def test_a_file_of_backdoorbench_names_its_data(tmp_path):
    found = known(tmp_path, {"clean_data": "cifar10"})
    assert (found.mean, found.std) == normalization.CIFAR10
    assert known(tmp_path, {"clean_data": "gtsrb"}).words == "none"
    assert (
        known(tmp_path, {"clean_data": "mnist"}) is None
    )  # one channel, and the network has three
    assert known(tmp_path, {"clean_data": "mnist"}, channels=1).mean == (0.5,)
    assert known(tmp_path, {"clean_data": ["cifar10"]}) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}),
        ("config.json", {"pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}}),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}),
    ],
)
def test_a_config_beside_the_weights_says_it(tmp_path, name, content):
    (tmp_path / name).write_text(json.dumps(content))
    found = known(tmp_path)
    assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert name in found.why


@pytest.mark.parametrize("text", ["{", '{"mean": [1], "std": "x"}', '{"mean": ["a"], "std": [1]}'])
def test_a_config_that_makes_no_sense_says_nothing(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert known(tmp_path) is None


def test_the_family_says_it_only_of_imagenets_classes_and_sizes(tmp_path):
    imagenet = {"num_classes": 1000, "of_torchvision": True}
    assert known(tmp_path, **imagenet).mean == IMAGENET[0]
    assert known(tmp_path, **imagenet, image_size=224).std == IMAGENET[1]
    assert known(tmp_path, **imagenet, image_size=32) is None
    assert known(tmp_path, num_classes=1000) is None
    for network in ("googlenet", "inception_v3"):
        found = known(tmp_path, **imagenet, network=network)
        assert (found.mean, found.std) == ((0.5,) * 3, (0.5,) * 3)
        assert network in found.why
    assert known(tmp_path, **imagenet, network="vit_b_16").mean == IMAGENET[0]
    assert known(tmp_path, **imagenet, network="vit_b_16", names={"cls_token": 0}) is None
    assert known(tmp_path, of_torchvision=True) is None


def test_what_is_asked_for():
    found = normalization.parse("0.5, 0.4,0.3", "0.2", 3)
    assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    assert normalization.parse("none", None, 1).words == "none"
    assert normalization.parse(None, None, 3) is None


@pytest.mark.parametrize(
    ("mean", "std", "wrong"),
    [
        ("0.5", None, "std must be given too"),
        (None, "0.5", "mean must be given too"),
        ("half", "1", "mean must be numbers with commas"),
        ("0.5,0.5", "1", "mean must be 3 numbers"),
        ("123.7", "58", "mean must be in units of"),
        ("0.5", "0", "std must be above 0"),
        ("nan", "1", "mean must be finite"),
        ("", "1", "mean must be 3 numbers"),
    ],
)
def test_what_makes_no_sense_is_refused(mean, std, wrong):
    with pytest.raises(InputError, match=wrong):
        normalization.parse(mean, std, 3)


def test_candidates_are_as_wide_as_the_images():
    for channels in (1, 3):
        for one in normalization.candidates(channels):
            assert len(one.mean) == len(one.std) == channels
