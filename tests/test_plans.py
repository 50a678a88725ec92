"""Plans: what a data set must have for a holdout, which files are part of a run, which class a number means."""

import numpy as np
import pytest
from PIL import Image

from bdjax import config as configs
from bdjax import data, plans, schema
from bdjax.checks import InputError


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
    for option, value, of_each in (("share", "0.115385", 1), ("per_class", "1", 1), ("per_class", "6", 6)):
        assert plans.prepare(resolve(root, f"--holdout.{option}", value)).holdout.label.size == 3 * of_each


def test_so_does_one_whose_holdout_is_not_balanced(tmp_path):
    root = write_classes(tmp_path / "small", {"ant": 3, "cat": 4})
    with pytest.raises(InputError, match=r"share must be at least 0\.142858, which is one image from 7; got 0\.05"):
        plans.prepare(resolve(root, "--holdout.balanced", "false"))
    words = ("--holdout.balanced", "false", "--holdout.share", "0.142858", "--defense.batch_size", "1")
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
    with pytest.raises(InputError, match=r"per_class must be at most 3: class 'few' has only 3 of the 4 images"):
        plans.prepare(resolve(root, "--holdout.per_class", "4"))


def test_a_file_that_the_attack_names_is_part_of_the_fingerprint_by_its_content(tmp_path):
    root = write_classes(tmp_path / "pets", {"ant": 4, "cat": 4})
    Image.new("RGB", (3, 3), (255, 0, 0)).save(tmp_path / "picture.png")
    words = {"blended": "--attack.trigger_image", "badnets": "--attack.pattern"}
    for name, option in words.items():
        config = resolve(root, "--attack", name, option, str(tmp_path / "picture.png"), "--holdout.per_class", "2")
        digest = data.fingerprint_file(tmp_path / "picture.png")
        of_data = data.fingerprint(data.load(str(root)))
        wanted = {**of_data, "files": {option.removeprefix("--"): digest}}
        assert plans.prepare(config).fingerprint == plans.prepare_attack(config).fingerprint == wanted
        plain = plans.prepare(resolve(root, "--attack", name, "--holdout.per_class", "2"))
        assert plain.fingerprint == of_data, "as before where there is no file"


def test_a_picture_that_is_missing_is_refused_with_its_option(tmp_path):
    root = write_classes(tmp_path / "pets", {"ant": 4, "cat": 4})
    with pytest.raises(InputError, match=r"^attack\.pattern must be a readable image file; '.*none\.png' is not"):
        plans.prepare_attack(resolve(root, "--attack.pattern", str(tmp_path / "none.png")))


def test_the_target_by_name_is_that_by_number(tmp_path):
    root = write_classes(tmp_path / "pets", {"ant": 4, "cat": 4})
    by_name, by_number = (plans.prepare_attack(resolve(root, "--attack.target_label", label)) for label in ("cat", "1"))
    assert by_name.attack.label_map == by_number.attack.label_map
    assert plans.target_class(by_name) == plans.target_class(by_number) == "cat"


def test_a_number_that_is_the_name_of_another_class_is_said_to_be_none(tmp_path, caplog):
    plans._tell_once.cache_clear()
    root = write_classes(tmp_path / "counted", {"1": 4, "2": 4, "10": 4})
    plan = plans.prepare_attack(resolve(root, "--attack.target_label", "1"))
    assert plans.target_class(plan) == "2"
    assert caplog.messages == ["attack.target_label 1 is the class named '2' (the class named '1' has the number 0)."]
    caplog.clear()
    plans.prepare_attack(resolve(root, "--attack.target_label", "0"))
    assert not caplog.records


def test_the_attackers_images_are_those_for_training_without_a_held_out_holdout(tmp_path):
    root = write_classes(tmp_path / "pets", {"ant": 4, "cat": 4})
    words = ("--holdout.per_class", "2", "--holdout.held_out", "true")
    plan = plans.prepare(resolve(root, *words))
    kept = plans.attackers_images(plan.config, plan.dataset)
    np.testing.assert_array_equal(kept.image, plan.attackers.image)
    assert kept.label.size == 4
