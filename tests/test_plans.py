"""What a plan refuses before anything is trained: attacks that would be none."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from bdjax import cli, data, plans, poison, schema, sweep_run
from bdjax import config as configs
from bdjax.checks import InputError
from bdjax.run import Execution

TRAIN = 1347  # digits


def prepare(*words: str) -> plans.Plan:
    return plans.prepare(configs.resolve(schema.overrides([*words, "--model.width", "4"])))


def image_folder(folder, level: int):
    """Write a data set of two classes in images of one gray level; those of a class are alike."""
    for split, count in (("train", 12), ("test", 6)):
        for name in ("left", "right"):
            (folder / "plain" / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("L", (8, 8), level).save(folder / "plain" / split / name / f"{number}.png")
    sizes = ("--training.batch_size", "8", "--holdout.per_class", "2", "--defense", "none")
    return ("--data", "plain", "--data.data_dir", str(folder), *sizes)


# --- The poison rate -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", ["1e-9", "0.0003", "0.00037"])
def test_a_rate_that_rounds_to_no_image_is_refused_with_the_least(rate):
    with pytest.raises(InputError) as caught:
        prepare("--attack.poison_rate", rate)
    assert str(caught.value) == (
        "attack.poison_rate must be 0, for no attack, or at least 0.00038, for one of 1347 images; "
        f"got {float(rate)}, which rounds to none."
    )


def test_the_least_rate_poisons_one_image_and_a_rate_of_zero_none():
    for rate, count in (("0.00038", 1), ("0", 0)):
        plan = prepare("--attack.poison_rate", rate)
        assert int(plans.poison_training(plan).is_poisoned.sum()) == count


@pytest.mark.parametrize("whole", [1, 2, 50, 100, 1347, 50_000, 1_281_167])
def test_the_least_rate_is_one_that_is_taken(whole):
    """Of 50 images, 0.01 is half an image and rounds to none."""
    assert poison.rounded(plans._least_rate(whole), whole) == 1
    assert poison.rounded(plans._least_rate(whole) * 0.9, whole) <= 1


def test_a_share_of_the_target_class_is_named_as_what_it_is():
    words = ("--attack", "sig", "--attack.frequency", "2", "--attack.target_class_rate")
    with pytest.raises(InputError, match=r"^attack\.target_class_rate must be 0, .* one of 133 images; got 0\.001, "):
        prepare(*words, "0.001")


def test_batches_that_are_poisoned_anew_need_an_image_an_epoch_as_well():
    with pytest.raises(InputError, match=r"^attack\.poison_rate must be 0, .* at least 0\.00038, "):
        prepare("--attack", "bpp", "--attack.levels", "2", "--attack.poison_rate", "0.0001")


def test_a_point_of_a_sweep_that_poisons_no_image_is_refused_before_any_is_trained(tmp_path):
    values = schema.overrides(["--model.width", "4", "--defense", "none"])
    wanted = sweep_run.points(values, {"attack.poison_rate": ["0.1", "0.0001"]})
    with pytest.raises(InputError, match=r"got 0\.0001, which rounds to none"):
        sweep_run.run(wanted, Execution(tmp_path), sweep_run.Spread())
    assert not list(tmp_path.iterdir())


# --- The trigger -----------------------------------------------------------------------------------------------------


def test_a_patch_of_the_images_own_color_is_refused(tmp_path, capsys):
    words = image_folder(tmp_path, 255)
    ran = cli.main(["run", *words, "--quiet", "--out", str(tmp_path / "runs")])
    assert (ran, (tmp_path / "runs").exists()) == (2, False)
    assert capsys.readouterr().err == (
        "bdjax: attack must change the images, and the trigger of badnets with these options leaves each of the 6 test "
        "images that count as it is: choose another pattern, place or strength.\n"
    )


def test_on_images_of_another_color_the_same_patch_is_an_attack(tmp_path):
    plan = prepare(*image_folder(tmp_path, 254))
    assert not (np.asarray(plans.triggered_test(plan).visible.image) == 254).all()


def test_a_blend_too_faint_for_8_bits_is_refused():
    with pytest.raises(InputError, match=r"^attack must change the images, and the trigger of blended"):
        prepare("--attack", "blended", "--attack.alpha", "0.0001")


def test_a_trigger_is_tried_once_for_the_control_rows_of_a_run(monkeypatch):
    tried = []
    stamp = plans._poison_test
    monkeypatch.setattr(plans, "_EFFECTIVE", set())
    monkeypatch.setattr(plans, "_poison_test", lambda *given: tried.append(given) or stamp(*given))
    for words in ((), ("--defense", "none"), ("--training.learning_rate", "0.1"), ("--seed", "1")):
        prepare(*words)
    assert len(tried) == 2, "another seed may have another trigger"


def test_a_label_map_that_changes_no_test_label_is_refused(monkeypatch):
    plans._load.cache_clear()
    load = data.load

    def all_zeros(*args, **options):
        digits = load(*args, **options)
        return digits._replace(test=digits.test._replace(label=0 * digits.test.label))

    monkeypatch.setattr(data, "load", all_zeros)
    with pytest.raises(InputError, match=r"^attack must want another label for some test image, .* of all 450\."):
        prepare()
    plans._load.cache_clear()


@pytest.mark.parametrize("frequency", ["4", "6", "4.5"])
def test_waves_that_columns_cannot_show_are_refused(frequency):
    with pytest.raises(InputError) as caught:
        prepare("--attack", "sig", "--attack.frequency", frequency)
    assert str(caught.value) == (
        "attack.frequency must be below 4, half the width of the images in pixels; "
        f"got {float(frequency):g} cycles over 8."
    )


def test_waves_that_fit_or_larger_images_are_taken():
    for words in (("--attack.frequency", "3.9"), ("--data.image_size", "16")):
        assert prepare("--attack", "sig", *words).attack.clean_label


def test_showing_a_config_tries_no_trigger(monkeypatch, capsys):
    monkeypatch.setattr(plans, "prepare", None)
    assert cli.main(["run", "--attack", "sig", "--show"]) == 0
    assert "attack.frequency" in capsys.readouterr().out
