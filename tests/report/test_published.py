"""The published values: known cells, DER derived anew, and the identifiers of our own configs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import made_up
import pytest

from bdjax.checks import InputError
from bdjax.report import published

ROOT = Path(published.__file__).parents[2]


def cell(**columns):
    (found,) = published.select(**columns)
    return found


def test_known_cells():
    row = {"paper": "ft-sam", "table": "Table 1", "attack": "blended"}
    assert cell(**row, defense="none", metric="asr").value == 97.71
    assert cell(**row, defense="ft_sam", metric="acc")[-4:] == ("acc", 92.44, None, "")
    pruned = cell(
        paper="grad-prune",
        table="Table I",
        attack="bpp",
        clean_data="spc=100",
        defense="grad_prune",
        metric="ra",
    )
    assert pruned.value == 51.19
    assert pruned.std > 0
    assert len(published.load()) == 5845
    assert published.load() is published.load()


def test_the_values_are_package_data():
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]["bdjax"]
    assert "report/published.*" in packaged
    assert all(
        (ROOT / "bdjax" / "report" / f"published.{suffix}").is_file() for suffix in ("csv", "md")
    )


def test_der_of_every_cell_follows_from_its_accuracies_unless_a_note_says_so():
    """(max(0, ΔASR) − max(0, ΔACC) + 1) / 2 in per cent, from values printed with two digits."""
    known = {value[:10]: value for value in published.load()}
    checked = 0
    for value in known.values():
        if value.metric != "der" or value.note or value.attack == "avg":
            continue
        cells = [value._replace(metric=metric) for metric in ("acc", "asr")]
        after = [known[cell[:10]] for cell in cells]
        before = [known[cell._replace(defense="none", clean_data="")[:10]] for cell in cells]
        if any(cell.note for cell in before):
            continue
        (acc, asr), (acc_before, asr_before) = (
            [cell.value for cell in pair] for pair in (after, before)
        )
        der = (max(0, asr_before - asr) - max(0, acc_before - acc) + 100) / 2
        assert der == pytest.approx(value.value, abs=0.011), value
        checked += 1
    assert checked > 600


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"attak": "lc"}, "column must be one of .*; got 'attak'.*did you mean 'attack'"),
        ({"defense": "ft-sam"}, "defense 'ft-sam' is in no published table .did you mean 'ft_sam'"),
        ({"value": 101.5}, "value 101.5 is in no published table"),
    ],
)
def test_what_is_in_no_table_is_refused(columns, message):
    with pytest.raises(InputError, match=message) as error:
        published.select(**columns)
    assert "\n" not in str(error.value)


def config(attack=None, defense=None, **sections):
    sections = {"data": {"name": "cifar10"}, **sections}
    return made_up.content(attack=attack, defense=defense, **sections)["config"]


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        ({}, "badnets_a2o"),
        ({"label_map": "all_to_all"}, "badnets_a2a"),
        ({"name": "trojan", "form": "neurons"}, "trojan"),
        ({"name": "trojan", "form": "watermark", "label_map": "all_to_all"}, "trojan_a2a"),
        ({"name": "input_aware", "label_map": "all_to_all"}, "input_aware_a2a"),
        ({"name": "wanet", "label_map": "all_to_all"}, None),
        ({"name": "lc", "poison_rate": None, "target_class_rate": 0.8}, "lc"),
        ({"name": "sig", "poison_rate": None, "target_class_rate": 0}, "benign"),
        ({"poison_rate": 0.0}, "benign"),
        ({"name": "combined", "parts": "lc+sig"}, "combined:sig+lc"),
        ({"name": "combined", "parts": "badnets+sig"}, None),
        ({"name": "somebodys_own"}, None),
    ],
)
def test_the_papers_name_of_an_attack(attack, name):
    assert published.names(config(attack)).attack == name


@pytest.mark.parametrize(
    ("training", "name"),
    [
        ({"frozen_convolutions": 5, "start": "clean"}, "adaptive:bpp"),
        ({"rho": 2}, None),
        ({"rho": None}, "bpp"),
    ],
)
def test_the_papers_name_of_an_adaptive_attack(training, name):
    assert published.names(config({"name": "bpp"}, training=training)).attack == name


@pytest.mark.parametrize(
    ("defense", "name"),
    [
        ({"name": "none"}, "none"),
        ({"name": "ft"}, "ft"),
        ({"name": "ft_sam", "rho": 8}, "ft_sam"),
        ({"name": "ft_sam", "rho": 0.5, "adaptive": False}, "ft_sam:no_adaptive"),
        ({"name": "ft_sam", "augment": "mixup"}, "ft_sam:aug"),
        ({"name": "fast_sft", "eta_f": 0.001, "eta_r": 5.0}, "fsft"),
        ({"name": "fast_sft", "eta_f": "auto"}, "fsft"),
        ({"name": "fast_sft", "eta_f": 0, "eta_r": 5.0}, "fsft:no_trace"),
        ({"name": "fast_sft", "eta_f": 0.001, "eta_r": 0}, "fsft:no_lr"),
        ({"name": "fast_sft", "eta_f": 0, "eta_r": 0}, None),
        ({"name": "sft"}, "sft_theta"),
        ({"name": "sft", "eta_f": 0}, None),
        ({"name": "l2_ft", "gamma": 0.001}, "l2:0.001"),
        ({"name": "l2_ft", "gamma": 0.002}, None),
        ({"name": "fine_pruning", "epochs": 100}, "fp"),
        ({"name": "fine_pruning", "epochs": 0}, "pruning"),
        (
            {
                "name": "chain",
                "first": {"name": "fine_pruning", "epochs": 0},
                "second": {"name": "ft_sam"},
            },
            "fp_prune+ft_sam",
        ),
        (
            {
                "name": "chain",
                "first": {"name": "fine_pruning", "epochs": 0},
                "second": {"name": "ft"},
            },
            "fp",
        ),
        ({"name": "chain", "first": {"name": "anp"}, "second": {"name": "ft_sam"}}, "anp+ft_sam"),
        ({"name": "chain", "first": {"name": "nft"}, "second": {"name": "ft"}}, None),
        (
            {
                "name": "nft",
                "learning_rate": 0.05,
                "eta_c": None,
                "batch_size": 128,
                "augment": "mixup",
            },
            "nft",
        ),
        ({"name": "nft", "learning_rate": 0.01}, "nft:lr=0.01"),
        ({"name": "nft", "batch_size": 64}, "nft:bs=64"),
        ({"name": "nft", "eta_c": 0.001}, "nft:eta_c=1e-3"),
        ({"name": "nft", "learning_rate": 0.01, "batch_size": 64}, "nft"),
        ({"name": "nft", "learning_rate": 0.123}, "nft"),
        ({"name": "nft", "augment": "randaugment"}, "nft:randaug"),
        ({"name": "nft", "augment": "none"}, None),
        ({"name": "i_bau"}, "i_bau"),
        ({"name": "somebodys_own"}, None),
    ],
)
def test_the_papers_name_of_a_defense(defense, name):
    assert published.names(config(defense=defense)).defense == name


def test_values_of_a_config_whatever_the_setting():
    found = published.of_config(
        config({"name": "blended"}, {"name": "ft_sam", "rho": 3, "batch_size": 100})
    )
    assert {value.paper for value in found} == {"ft-sam", "ft-sam-supp", "sft", "grad-prune"}
    assert {value.clean_data for value in found} >= {"1%", "5%", "10%", "spc=2"}
    assert {(value.dataset, value.attack, value.defense) for value in found} == {
        ("cifar10", "blended", "ft_sam")
    }
    attacked = published.of_config(config({"name": "blended"}))
    assert 97.71 in [value.value for value in attacked if value.metric == "asr"]
    varied = published.of_config(config({"name": "sig"}, {"name": "nft", "batch_size": 32}))
    found = {value.defense for value in varied}
    assert found >= {"nft", "nft:bs=32", "nft:bs=1024", "nft:lr=0.01"}
    assert "nft:cutmix" not in found


def test_nothing_is_published_of_what_no_paper_has():
    assert published.names(config(data={"name": "digits"}))[:2] == (None, "preact_resnet18")
    assert published.of_config(config(data={"name": "digits"})) == ()
    assert published.of_config(config(model={"name": "small_cnn"})) == ()
