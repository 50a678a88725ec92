"""What is said of a purified network, from a record with round numbers."""

from __future__ import annotations

import copy

import pytest
import yaml

from bdjax.checks import InputError
from bdjax.files import atomic
from bdjax.report import purified, statistics
from bdjax.report.purified import card, page, words
from bdjax.runs.purified import PurifiedFolder, differences

HOSTILE = "<script>alert(1)</script>\x1b[2J.pt"
RECORD = {
    "identity": {"seed": 0},
    "suspect": {
        "name": "suspect.pt",
        "sha256": "ab" * 32,
        "format": "PyTorch zip",
        "wrappers": ["state_dict", "module."],
        "notes": [],
    },
    "network": {
        "name": "resnet18",
        "options": {"width": 64},
        "num_classes": 3,
        "class_names": ["cat", "dog", "owl"],
        "shape": [32, 32, 3],
        "parameters": 11173962,
        "why": "all arrays fit",
    },
    "normalization": {"mean": [0.5] * 3, "std": [0.25] * 3, "why": "as asked for"},
    "data": {
        "name": "my_images",
        "fingerprint": "cd" * 32,
        "count": 500,
        "given": 320,
        "choosing": 80,
        "kept": 100,
        "notes": [],
    },
    "defense": {"name": "ft_sam", "rho": "auto", "epochs": 20, "schedule": {"kind": "constant"}},
    "selection": {
        "option": "rho",
        "chosen": 4.0,
        "within_budget": True,
        "budget": 0.02,
        "right_before": 76,
        "values": [2.0, 4.0, 8.0],
        "trials": [
            {"value": 8.0, "right": None, "of": 80},
            {"value": 4.0, "right": 75, "of": 80},
        ],
    },
    "accuracy": {
        "before": {"right": 95, "of": 100},
        "after": {"right": 90, "of": 100},
        "changed_answers": 7,
    },
    "weights": {
        "whole": 0.12,
        "layers": [
            {"name": "conv1", "relative": 0.1, "count": 1728},
            {"name": "fc", "relative": 0.3, "count": 1539},
        ],
    },
    "inversion": {
        "images": 50,
        "before": {
            "norm": [3.0, 40.0, 42.0],
            "success": [1.0, 0.96, 0.5],
            "index": [None, 0.7, 0.0],
            "suspect": [True, False, False],
            "found": [True, True, False],
        },
        "after": {
            "norm": [30.0, 40.0, 42.0],
            "success": [1.0, 0.96, 0.5],
            "index": [None, 0.7, 0.0],
            "suspect": [False, False, False],
            "found": [True, True, True],
        },
        "carried": [{"class": 0, "before": 60, "after": 6, "of": 60}],
        "words": {"before": ["Suspect: class 'cat'."], "after": ["No class stands out."]},
        "limits": "A class that stands out is a suspect, not a proof.",
    },
    "files": {"entry": "", "prefix": "module."},
    "seconds": {"defense": 100.0},
    "versions": {"jax": "0.10.2"},
}


def record(**changes):
    made = copy.deepcopy(RECORD)
    for key, value in changes.items():
        made[key] = value if value is None else {**made[key], **value}
    return made


def test_the_interval_is_wilsons():
    # (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) at p = 0.9, n = 100, z = 1.96
    low, high = statistics.wilson(90, 100)
    assert (round(low, 4), round(high, 4)) == (0.8256, 0.9448)
    assert statistics.wilson(10, 10).high == 1
    assert statistics.wilson(0, 10).low == 0


def test_what_is_known():
    accuracy, strength, weights, before, after, carried = words.known(record())
    assert accuracy == (
        "Clean accuracy 95.0 % (88.8–97.8 %) before and 90.0 % (82.6–94.5 %) after: 95 and 90 of 100 images that the "
        "defense was not given, with 95 % Wilson intervals. 7 of these answers changed."
    )
    assert strength == (
        "Strength rho = 4: of 2, 4, 8, from the strongest down, the first that cost at most 2 points on 80 further "
        "images, of which each is 1.2 points (95.0 % before; tried: 8 diverged, 4 → 93.8 %)."
    )
    assert (
        weights
        == "The weights moved by 12.0 % of their length (L2), most in fc 30.0 %, conv1 10.0 %."
    )
    assert before == "Trigger inversion before the defense: Suspect: class 'cat'."
    assert after == "Trigger inversion after the defense: No class stands out."
    assert carried == (
        "The patches found before, put on images again: that of class 'cat' sends 100.0 % of 60 there before and "
        "10.0 % after the defense."
    )
    del (earlier := record())["inversion"]["carried"]
    assert words.known(earlier)[:5] == [accuracy, strength, weights, before, after]


def test_what_is_not_known_is_said_whatever_was_measured():
    for changes in ({}, {"inversion": None}, {"selection": None}):
        said = " ".join(words.unknown(record(**changes)))
        assert "Whether there was a backdoor" in said
        assert "no attack success rate can be given" in said
        assert "100 that were kept aside" in said
        assert "training split" not in said
    assert "it was left out" in " ".join(words.unknown(record(inversion=None)))
    named = " ".join(words.unknown(record(data={"name": "gtsrb", "of_training": True})))
    assert "Those of gtsrb are of its training split, which the network may have been" in named


def test_the_lines_for_pytorch_take_off_what_stands_before_the_names():
    lines = words.into_pytorch(record()).splitlines()
    assert lines[1] == 'state = torch.load("model.pt", weights_only=True)'
    assert 'name.removeprefix("module.")' in lines[2]
    found = {"state": {"module.fc.weight": 1, "n_averaged": 2}}
    exec(lines[2], found)
    assert found["state"] == {"fc.weight": 1}
    bare = record(files={"entry": "model", "prefix": ""})
    assert words.into_pytorch(bare).splitlines()[1:] == [
        'state = torch.load("model.pt", weights_only=True)["model"]',
        "model.load_state_dict(state)  # model: your own network, made as before",
        "model.eval()",
        "# images in [0, 1], minus (0.5, 0.5, 0.5), divided by (0.25, 0.25, 0.25)",
    ]


def test_a_loss_that_is_large_is_a_warning_and_so_is_a_budget_that_was_not_kept():
    assert words.warnings(record()) == []  # 5 points
    lost = record(accuracy={"after": {"right": 89, "of": 100}})
    assert words.warnings(lost)[0].startswith(
        "The network lost 6.0 points of accuracy on the 100 images kept aside (the 95 % intervals overlap"
    )
    much = words.warnings(record(accuracy={"after": {"right": 45, "of": 100}}))
    assert much[0].startswith(
        "The network lost 50.0 points of accuracy on the 100 images kept aside: "
    )
    weak = words.warnings(record(accuracy={"before": {"right": 40, "of": 100}}))
    assert "right on no more than 40 of 100 images" in weak[0]
    assert "another order than cat, dog, owl (--class-order)" in weak[0]
    beyond = record(selection={"within_budget": False})
    assert words.warnings(beyond) == [
        "Even the weakest rho that was tried costs more than 2 points of accuracy; it was taken all the same."
    ]


def test_the_page_has_a_row_for_each_class_and_layer():
    text = page.html(record())
    for cell in ("cat", "40.0", "none found", "not known", "1,539 parameters", "rho 4.0"):
        assert cell in text
    assert "Trigger inversion</h2>" not in page.html(record(inversion=None))


def test_a_name_from_a_stranger_is_text_everywhere():
    made = record(suspect={"name": HOSTILE}, data={"name": 'a": [b'})
    text = page.html(made)
    assert "<script" not in text
    assert "\x1b" not in text + card.markdown(made)
    front = card.markdown(made).split("---\n")[1]
    values = yaml.safe_load(front)
    assert values["model-index"][0]["results"][0]["dataset"]["name"] == 'a": [b'
    assert values["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.9
    assert "<script" not in card.markdown(made).replace("\\<", "")


def test_without_a_finished_purification_there_is_no_page(tmp_path):
    with pytest.raises(InputError, match="no finished purification"):
        purified.write(tmp_path)
    atomic.write_json(tmp_path / "purified.json", {"identity": {}})
    with pytest.raises(InputError, match="is damaged"):
        purified.write(tmp_path)


def test_page_and_card_are_made_of_the_record_alone(tmp_path):
    PurifiedFolder(tmp_path).write_record(RECORD)
    lines = purified.write(tmp_path)
    assert lines[0] == (
        "suspect.pt, purified with ft_sam (rho = 4): resnet18, 11,173,962 parameters, 3 classes, images 32×32×3"
    )
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "README.md").read_text().count("\n---\n") == 1


def test_two_identities_differ_in_what_is_named():
    one = {"file": "a", "defense": {"rho": 1.0, "epochs": 2}}
    assert differences(one, copy.deepcopy(one)) == []
    assert differences(one, {"file": "b", "defense": {"rho": 2.0, "epochs": 2}}) == [
        "defense.rho",
        "file",
    ]
