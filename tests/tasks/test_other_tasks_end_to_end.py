"""Sets of labels, and clips: a run, its record, its table and its page, as for images with one label."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bdjax import cli

pytestmark = pytest.mark.usefixtures("no_cache_of_the_user")

SMALL = "--model.width 2 --training.epochs 1 --defense ft_sam --defense.epochs 2"
SMALL = [*SMALL.split(), "--data.train_count", "320"]


def carried_out(folder: Path, data: str) -> dict:
    """Run BadNets and FT-SAM on a data set, and return the record."""
    assert (
        cli.main(["run", "--data", data, "--attack", "badnets", *SMALL, "--out", str(folder)]) == 0
    )
    (file,) = folder.glob(f"{data}-badnets-ft_sam-*/record.json")
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("scenes")
    return folder, carried_out(folder, "digits_scenes")


def test_a_run_of_sets_of_labels_measures_mean_average_precision(scenes):
    _, record = scenes
    assert record["config"]["attack"]["label_map"] == "add_label"  # what suits the data set
    after = record["metrics"]["after"]
    assert 0 < after["mean_average_precision"] < 1
    assert "clean_accuracy" not in after
    assert after["attack_success_rate"] == pytest.approx(
        after["attack_hits"] / after["attack_total"]
    )
    assert record["data"]["target_class"] == "0"


def test_its_table_and_page_name_what_was_measured(scenes, tmp_path, capsys):
    folder, _ = scenes
    page = tmp_path / "page.html"
    assert cli.main(["report", str(folder), "--html", str(page)]) == 0
    head = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("defense"))
    assert head.split()[1:4] == ["mAP", "ASR", "DER"]
    text = page.read_text(encoding="utf-8")
    assert "mean average precision" in text
    assert "clean accuracy" not in text


def test_its_samples_say_which_classes_are_there(scenes):
    folder, record = scenes
    with np.load(folder / record["run_id"] / "samples.npz", allow_pickle=False) as samples:
        assert samples["clean"].shape[1:] == (16, 16, 1)
        assert samples["label"].dtype.kind == "U"
        assert all(
            set(text.split(" + ")) <= {*"0123456789", "none"} for text in samples["triggered_after"]
        )


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("clips")
    return folder, carried_out(folder, "digits_clips")


def test_an_analysis_of_other_inputs_or_labels_is_refused_by_name(scenes, clips, tmp_path, capsys):
    for (folder, record), name, lacks in [
        (scenes, "features", "digits_scenes have a set"),
        (scenes, "tac", "digits_scenes have a set"),
        (clips, "grad_cam", "digits_clips has clips"),
        (clips, "gradient_norms", "digits_clips has clips"),
    ]:
        words = [name, str(folder / record["run_id"]), "--figures", str(tmp_path)]
        assert cli.main(["analyze", *words]) == 2
        assert f"analysis '{name}' needs" in (error := capsys.readouterr().err)
        assert lacks in error


def test_a_run_of_clips_is_a_run_like_any_other(clips):
    folder, record = clips
    assert record["data"]["shape"] == [6, 14, 14, 1]
    assert record["metrics"]["after"]["clean_total"] == 450
    assert record["stealth"]["test"]["changed_share"] > 0
    with np.load(folder / record["run_id"] / "samples.npz", allow_pickle=False) as samples:
        assert samples["triggered"].shape[1:] == (14, 84, 1)  # the frames side by side
        changed = samples["triggered"] != samples["clean"]
        # Every frame has the patch
        assert changed.reshape(len(changed), 14, 6, 14).any((1, 3)).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("digits_scenes badnets --attack.label_map all_to_one", "label_map"),
        ("digits_scenes badnets --holdout.per_class 3 --holdout.share null", "holdout.per_class"),
        ("digits_clips lira", "needs images"),
        ("digits_clips badnets --model preact_resnet18", "model: name must be a network for clips"),
        ("digits_clips badnets --data.image_size 16", "image_size"),
        ("digits_clips badnets --training.augment cutout", "augment"),
    ],
)
def test_what_a_task_or_an_input_cannot_is_one_line(words, message, tmp_path, capsys):
    data, attack, *rest = words.split()
    assert (
        cli.main(["run", "--data", data, "--attack", attack, *rest, *SMALL, "--out", str(tmp_path)])
        == 2
    )
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.count("\n") == 0
