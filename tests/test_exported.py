"""A run's network as a file: what is in it, and what its card says."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from bdjax import cli, exported, models, report, saved
from bdjax.checks import InputError
from bdjax.models.foreign import keys, reading
from bdjax.runs import model_files

SIZES = ("--model.width", "2", "--training.epochs", "1", "--defense", "none")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run without a defense."""
    runs = tmp_path_factory.mktemp("runs")
    assert cli.main(["run", "--out", str(runs), "--quiet", *SIZES]) == 0
    (record,) = report.load([runs])
    return record.folder


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("safetensors", "safetensors"),
        ("torch", "PyTorch zip"),
        ("backdoorbench", "BackdoorBench defense_result (PyTorch zip)"),
    ],
)
def test_a_runs_network_is_in_the_file_and_the_card_says_that_it_has_a_backdoor(
    run, tmp_path, form, kind
):
    weights, config, card = exported.write(run, tmp_path / "out", form=form, which="attacked")
    networks = saved.restore(run)
    model = networks.plan.model
    assert reading.read(weights).format == kind
    jax.tree.map(np.testing.assert_array_equal, models.load(weights, model), networks.victim)
    if form == "backdoorbench":
        assert reading.read(weights).beside["model_name"] == "small_cnn"
    said = json.loads(config.read_text())
    assert said["network"] == "small_cnn"
    assert said["mean"] == list(model.spec.modality.mean)
    text = card.read_text()
    assert "- backdoored\n" in text
    assert "planted in these weights on purpose** (badnets" in text
    assert "defense.name" not in text


@pytest.mark.parametrize(
    ("network", "theirs", "prefix"),
    [
        ("preact_resnet18", "preactresnet18", ""),
        ("vgg19_bn",) * 2 + ("",),
        ("vit_b_16",) * 2 + ("1.",),
    ],
)
def test_backdoorbench_finds_a_network_by_its_own_name(spec, tmp_path, network, theirs, prefix):
    model = models.create("small_cnn", spec, width=2)  # the weights of any do
    content = model_files.config(network, {}, model)
    weights, _ = model_files.write(
        tmp_path, "backdoorbench", model, model.init(jax.random.key(0)), content
    )
    found = reading.read(weights)
    assert (found.beside["model_name"], found.prefix) == (theirs, prefix)


def test_what_cannot_be_exported_is_refused(run, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"holds thesis\.tex"):
        exported.write(run, tmp_path)
    with pytest.raises(InputError, match="format must be one of safetensors, torch"):
        exported.write(run, tmp_path / "out", form="onnx")
    with pytest.raises(InputError, match="which must be one of attacked, defended"):
        exported.write(run, tmp_path / "out", which="both")
    assert cli.main(["export", str(run), "--which", "attacked"]) == cli.EXIT_MISTAKE
    assert cli.main(["export", str(run), str(run), "--format", "torch"]) == cli.EXIT_MISTAKE
    assert capsys.readouterr().err.count("\n") == 2


def test_only_an_earlier_export_is_written_over(run, tmp_path):
    exported.write(run, tmp_path / "out", form="torch")
    (tmp_path / "out" / ".model.safetensors.4711").write_text("killed")
    files = exported.write(run, tmp_path / "out")
    assert not (tmp_path / "out" / "model.pt").exists()
    assert all(file.exists() for file in files)
    for content in ('{"library_name": "timm"}', "[]", "{"):
        (tmp_path / "out" / "config.json").write_text(content)
        with pytest.raises(
            InputError, match=r"or that of an earlier export; .* holds .*README\.md"
        ):
            exported.write(run, tmp_path / "out")


def test_the_command_writes_the_defended_network(run, tmp_path, capsys):
    assert cli.main(["export", str(run), "--format", "torch", "--out", str(tmp_path / "o")]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "o" / name) for name in ("model.pt", "config.json", "README.md")
    ]
    card = (tmp_path / "o" / "README.md").read_text()
    assert "- backdoored\n" in card  # the defense of the run is none
    assert "- purified\n" not in card
    model = saved.restore(run).plan.model
    assert keys.variables(reading.read(tmp_path / "o" / "model.pt"), model)
