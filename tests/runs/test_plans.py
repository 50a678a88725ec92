"""Plans: what is refused before anything is trained, which files are part of a run, which class a number means."""

import numpy as np
import pytest
from PIL import Image

from bdjax import cli, data, poison
from bdjax.checks import InputError
from bdjax.runs import config as configs
from bdjax.runs import inputs, plan_checks, plans, schema, sweep
from bdjax.runs.run import Execution


def write_classes(root, counts, size=8):
    """Write an image folder with so many training images of each class, and a test image of each."""
    for split in ("train", "test"):
        for number, (name, count) in enumerate(counts.items()):
            (root / split / name).mkdir(parents=True)
            for index in range(count if split == "train" else 1):
                pixels = np.full((size, size, 3), 20 * number + index, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index:03}.png")
    return root


def resolve(root, *words):
    small = ("--training.batch_size", "4", "--defense.batch_size", "2", "--model.width", "2")
    return configs.resolve(schema.overrides(["--data", str(root), *small, *words]))


def test_a_small_data_set_says_which_holdout_it_has_enough_for(tmp_path):
    root = write_classes(tmp_path / "small", {"ant": 6, "cat": 8, "dog": 12})
    with pytest.raises(InputError) as refused:
        plans.prepare(resolve(root))
    assert str(refused.value) == (
        "holdout.share must be at least 0.115385, which is one image of each of 3 classes from 26; got 0.05."
    )
    for option, value, of_each in (
        ("share", "0.115385", 1),
        ("per_class", "1", 1),
        ("per_class", "6", 6),
    ):
        assert (
            plans.prepare(resolve(root, f"--holdout.{option}", value)).holdout.label.size
            == 3 * of_each
        )


def test_so_does_one_whose_holdout_is_not_balanced(tmp_path):
    root = write_classes(tmp_path / "small", {"ant": 3, "cat": 4})
    with pytest.raises(
        InputError, match=r"share must be at least 0\.142858, which is one image from 7; got 0\.05"
    ):
        plans.prepare(resolve(root, "--holdout.balanced", "false"))
    words = (
        "--holdout.balanced",
        "false",
        "--holdout.share",
        "0.142858",
        "--defense.batch_size",
        "1",
    )
    assert plans.prepare(resolve(root, *words)).holdout.label.size == 1


def test_an_unbalanced_data_set_names_its_smallest_class(tmp_path):
    root = write_classes(tmp_path / "uneven", {"many": 56, "few": 3, "some": 21})
    with pytest.raises(InputError) as refused:
        plans.prepare(resolve(root, "--holdout.share", "0.25"))
    assert str(refused.value) == (
        "holdout.share must be at most 0.1125: class 'few' has only 3 of the 6 images that are wanted of each class; "
        "got 0.25; a share with balanced=False (--holdout.balanced false) draws images whatever their class."
    )
    words = ("--holdout.share", "0.25", "--holdout.balanced", "false")
    assert plans.prepare(resolve(root, *words)).holdout.label.size == 20
    with pytest.raises(
        InputError, match=r"per_class must be at most 3: class 'few' has only 3 of the 4 images"
    ):
        plans.prepare(resolve(root, "--holdout.per_class", "4"))


def test_a_file_that_the_attack_names_is_part_of_the_fingerprint_by_its_content(tmp_path):
    root = write_classes(tmp_path / "pets", {"ant": 4, "cat": 4})
    Image.new("RGB", (3, 3), (255, 0, 0)).save(tmp_path / "picture.png")
    words = {"blended": "--attack.trigger_image", "badnets": "--attack.pattern"}
    for name, option in words.items():
        config = resolve(
            root,
            "--attack",
            name,
            option,
            str(tmp_path / "picture.png"),
            "--holdout.per_class",
            "2",
        )
        digest = data.fingerprint_file(tmp_path / "picture.png")
        of_data = data.fingerprint(data.load(str(root)))
        wanted = {**of_data, "files": {option.removeprefix("--"): digest}}
        assert (
            plans.prepare(config).inputs.fingerprint
            == plans.prepare_attack(config).inputs.fingerprint
            == wanted
        )
        plain = plans.prepare(resolve(root, "--attack", name, "--holdout.per_class", "2"))
        assert plain.inputs.fingerprint == of_data, "as before where there is no file"


def test_a_picture_that_is_missing_is_refused_with_its_option(tmp_path):
    root = write_classes(tmp_path / "pets", {"ant": 4, "cat": 4})
    with pytest.raises(
        InputError,
        match=r"^attack\.pattern must be a readable file: file .*none\.png cannot be read",
    ):
        plans.prepare_attack(resolve(root, "--attack.pattern", str(tmp_path / "none.png")))


def test_the_target_by_name_is_that_by_number(tmp_path):
    root = write_classes(tmp_path / "pets", {"ant": 4, "cat": 4})
    by_name, by_number = (
        plans.prepare_attack(resolve(root, "--attack.target_label", label))
        for label in ("cat", "1")
    )
    assert by_name.attack.label_map == by_number.attack.label_map
    assert plans.target_class(by_name) == plans.target_class(by_number) == "cat"


def test_a_number_that_is_the_name_of_another_class_is_said_to_be_none(tmp_path, caplog):
    plan_checks._tell_once.cache_clear()
    root = write_classes(tmp_path / "counted", {"1": 4, "2": 4, "10": 4})
    plan = plans.prepare_attack(resolve(root, "--attack.target_label", "1"))
    assert plans.target_class(plan) == "2"
    assert caplog.messages == [
        "attack.target_label 1 is the class named '2' (the class named '1' has the number 0)."
    ]
    caplog.clear()
    plans.prepare_attack(resolve(root, "--attack.target_label", "0"))
    assert not caplog.records


def test_the_attackers_images_are_those_for_training_without_a_held_out_holdout(tmp_path):
    root = write_classes(tmp_path / "pets", {"ant": 4, "cat": 4})
    words = (
        "--holdout.per_class",
        "2",
        "--holdout.held_out",
        "true",
        "--attack.poison_rate",
        "0.5",
    )
    plan = plans.prepare(resolve(root, *words))
    kept = plans.attackers_images(plan.config, plan.dataset)
    np.testing.assert_array_equal(kept.input, plan.attackers.input)
    assert kept.label.size == 4


# --- Attacks that would be none ---------------------------------------------------------------------------------------

TRAIN = 1347  # digits


def prepare(*words: str) -> plans.Plan:
    return plans.prepare(configs.resolve(schema.overrides([*words, "--model.width", "4"])))


def image_folder(folder, level: int):
    """Write a data set of two classes in images of one gray level; those of a class are alike."""
    for split, count in (("train", 12), ("test", 6)):
        for name in ("left", "right"):
            (folder / "plain" / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("L", (8, 8), level).save(
                    folder / "plain" / split / name / f"{number}.png"
                )
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
    assert poison.rounded(plan_checks._least_rate(whole), whole) == 1
    assert poison.rounded(plan_checks._least_rate(whole) * 0.9, whole) <= 1


def test_a_share_of_the_target_class_is_named_as_what_it_is():
    words = ("--attack", "sig", "--attack.frequency", "2", "--attack.target_class_rate")
    with pytest.raises(
        InputError,
        match=r"^attack\.target_class_rate must be 0, .* one of 133 images; got 0\.001, ",
    ):
        prepare(*words, "0.001")


def test_batches_that_are_poisoned_anew_need_an_image_an_epoch_as_well():
    with pytest.raises(InputError, match=r"^attack\.poison_rate must be 0, .* at least 0\.00038, "):
        prepare("--attack", "bpp", "--attack.levels", "2", "--attack.poison_rate", "0.0001")


def test_a_rate_of_candidates_is_named_by_the_option_that_the_attack_has():
    """``target_class_rate`` is of clean-label attacks; BadNets has a rate of those whose label changes, too."""
    words = ("--attack.candidates", "changed", "--attack.poison_rate", "0.0001")
    with pytest.raises(InputError, match=r"^attack\.poison_rate must be 0, "):
        prepare(*words)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "devices must be 1 or more, got 0"),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds must be 0 or more"),
        ({"smoothness": -1}, "smoothness must be"),
        ({"data_on": "moon"}, "data_on must be one of"),
    ],
)
def test_an_execution_that_cannot_be_is_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        Execution(tmp_path, **options)


def test_a_point_of_a_sweep_that_poisons_no_image_is_refused_before_any_is_trained(tmp_path):
    values = schema.overrides(["--model.width", "4", "--defense", "none"])
    wanted = sweep.points(values, {"attack.poison_rate": ["0.1", "0.0001"]})
    with pytest.raises(InputError, match=r"got 0\.0001, which rounds to none"):
        sweep.run(wanted, Execution(tmp_path), sweep.Sharing())
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
    assert not (np.asarray(plans.triggered_test(plan).visible.input) == 254).all()


def test_a_blend_too_faint_for_8_bits_is_refused():
    with pytest.raises(
        InputError, match=r"^attack must change the images, and the trigger of blended"
    ):
        prepare("--attack", "blended", "--attack.alpha", "0.0001")


def test_a_trigger_is_tried_once_for_the_control_rows_of_a_run(monkeypatch):
    tried = []
    stamp = plans._poison_test
    monkeypatch.setattr(plan_checks, "_EFFECTIVE", set())
    monkeypatch.setattr(plans, "_poison_test", lambda *given: tried.append(given) or stamp(*given))
    for words in ((), ("--defense", "none"), ("--training.learning_rate", "0.1"), ("--seed", "1")):
        prepare(*words)
    assert len(tried) == 2, "another seed may have another trigger"


def test_a_label_map_that_changes_no_test_label_is_refused(monkeypatch):
    inputs._load.cache_clear()
    load = data.load

    def all_zeros(*args, **options):
        digits = load(*args, **options)
        return digits._replace(test=digits.test._replace(label=0 * digits.test.label))

    monkeypatch.setattr(data, "load", all_zeros)
    with pytest.raises(
        InputError, match=r"^attack must want another label for some test image, .* of all 450\."
    ):
        prepare()
    inputs._load.cache_clear()


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
