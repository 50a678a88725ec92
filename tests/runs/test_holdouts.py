"""Where the defender's images come from: another set, wrong labels, groups that stay together; names that stay."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from bdjax import data
from bdjax.checks import InputError
from bdjax.data import splits
from bdjax.runs import config as configs
from bdjax.runs import holdouts, inputs, plans

KEY = jax.random.key(0)


def config_of(**holdout):
    return configs.resolve({"holdout": {"per_class": 20, **holdout}})


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def tracked(digits):
    """The digits as if eight neighbors of a class each were one thing seen again."""
    group, label = np.zeros(len(digits.train.label), np.int32), np.asarray(digits.train.label)
    for name in range(10):
        rows = np.flatnonzero(label == name)
        group[rows] = 1000 * name + np.arange(len(rows)) // 8
    return digits._replace(train_group=group)


@pytest.fixture(scope="module")
def another(tmp_path_factory, digits):
    """The test images of the digits as a folder of classes without splits."""
    root = tmp_path_factory.mktemp("holdout") / "mine"
    for row, label in enumerate(np.asarray(digits.test.label)):
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        image = np.asarray(digits.test.input[row, ..., 0])
        Image.fromarray(image).save(root / str(label) / f"{row:03}.png")
    return root


# --- names -----------------------------------------------------------------------------------------------------------


def test_what_is_not_asked_for_is_in_no_record_and_no_name():
    plain = config_of()
    assert set(plain.to_dict()["holdout"]) == {"share", "per_class", "balanced", "held_out"}
    assert config_of(wrong_labels=0, another=None, by_group="null").run_id == plain.run_id


@pytest.mark.parametrize(
    "asked", [{"wrong_labels": 0.1}, {"another": "digits"}, {"by_group": True}]
)
def test_what_is_asked_for_is_in_the_record_and_decides_the_run_but_not_the_victim(asked):
    changed = config_of(**asked)
    assert changed.to_dict()["holdout"].items() >= asked.items()
    assert configs.resolve(changed.to_dict()) == changed
    assert changed.run_id != config_of().run_id
    assert changed.victim_id == config_of().victim_id


def test_wrong_labels_decide_no_victim_of_a_held_out_holdout_either():
    held_out = config_of(held_out=True)
    assert config_of(held_out=True, wrong_labels=0.5).victim_id == held_out.victim_id
    assert config_of(held_out=True, by_group=False).victim_id != held_out.victim_id


def test_a_run_is_named_alike_wherever_the_other_set_lies():
    here, there = (config_of(another=f"/{place}/mine") for place in ("here", "there"))
    assert here.run_id == there.run_id != config_of(another="/here/other").run_id
    assert config_of(another="./digits").run_id != config_of(another="digits").run_id


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"wrong_labels": 1.5}, "holdout.wrong_labels must lie between 0 and 1"),
        ({"another": "digits", "held_out": True}, "holdout.held_out must be false with another"),
        ({"another": "digits", "by_group": True}, "holdout.by_group must be false with another"),
        ({"another": ""}, "holdout.another must name a data set or a folder"),
    ],
)
def test_what_makes_no_sense_is_refused(asked, words):
    with pytest.raises(InputError, match=words):
        config_of(**asked)


# --- another set -----------------------------------------------------------------------------------------------------


def test_images_of_another_set_are_drawn_from_it_alone(digits, another):
    config = config_of(another=str(another))
    rows = holdouts.rows(KEY, config, digits)
    holdout = holdouts.taken(KEY, config, digits, rows)
    assert np.bincount(holdout.label).tolist() == [20] * 10
    theirs = {image.tobytes() for image in np.asarray(digits.test.input)}
    assert {image.tobytes() for image in holdout.input} <= theirs


def test_sets_of_labels_get_the_order_of_the_runs_classes():
    scenes = data.load("digits_scenes")
    task = dataclasses.replace(scenes.spec.task, class_names=scenes.spec.class_names[::-1])
    other = scenes._replace(spec=dataclasses.replace(scenes.spec, task=task))
    found = inputs._with_classes_of(scenes.spec, other)
    np.testing.assert_array_equal(found.label, np.asarray(scenes.train.label)[:, ::-1])


def test_the_other_set_is_known_by_its_content_and_a_victim_is_not_made_of_it(another):
    loaded = inputs.load(config_of(another=str(another)))
    digest = data.fingerprint(data.load_clean(another))["train"]
    assert loaded.fingerprint["files"] == {"holdout.another": digest}
    assert inputs.of_victim(loaded.fingerprint) == inputs.load(config_of()).fingerprint
    assert loaded.stamp != inputs.load(config_of()).stamp


def test_runs_on_one_victim_do_not_share_the_fingerprint_of_another_set(another):
    plain = plans.prepare(config_of())
    beside = plans.prepare(config_of(another=str(another)), beside=plain)
    digest = data.fingerprint(data.load_clean(another))["train"]
    assert beside.inputs.fingerprint["files"] == {"holdout.another": digest}
    assert plans.prepare(config_of(), beside=beside).inputs.fingerprint == plain.inputs.fingerprint


def test_another_set_that_has_changed_since_it_was_planned_is_refused(tmp_path):
    image, label = np.zeros((200, 8, 8), np.uint8), np.arange(200) % 10
    np.savez(tmp_path / "mine.npz", images=image, labels=label)
    plan = plans.prepare(config_of(another=str(tmp_path / "mine.npz")))
    assert len(plan.holdout.label) == 200
    np.savez(tmp_path / "mine.npz", images=image + 1, labels=label)
    with pytest.raises(InputError, match=r"mine\.npz \(holdout\.another\) must not change"):
        _ = plan.holdout


def test_classes_are_matched_by_their_names(digits):
    names = digits.spec.class_names[::-1]
    task = type(digits.spec.task)(10, names)
    spec = digits.spec.__class__("backwards", digits.spec.shape, digits.spec.modality, task)
    found = inputs._with_classes_of(spec, digits)
    assert found.label.tolist() == (9 - np.asarray(digits.train.label)).tolist()
    task = type(digits.spec.task)(10, (*names[:-1], "nought"))
    with pytest.raises(InputError, match="only digits has '0'"):
        inputs._with_classes_of(spec.__class__("x", spec.shape, spec.modality, task), digits)


@pytest.mark.parametrize(
    ("count", "names", "words"),
    [
        (9, (), "must have 9 classes, as x has; digits has 10"),
        (10, tuple("0123456788"), "names tell apart; x has '8' 2 times"),
    ],
)
def test_classes_that_cannot_be_matched_are_refused(digits, count, names, words):
    task = dataclasses.replace(digits.spec.task, num_classes=count, class_names=names)
    with pytest.raises(InputError, match=words):
        inputs._with_classes_of(dataclasses.replace(digits.spec, name="x", task=task), digits)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digits_scenes", "each with a class for its label, as digits has; got .* and a set"),
        ("digits_clips", "must be left out for digits_clips, of clips"),
        ("./none", "none is not there; name a folder"),
    ],
)
def test_another_set_that_does_not_fit_is_refused(digits, name, words):
    with pytest.raises(InputError, match=rf"^holdout\.another: .*{words}"):
        holdouts.rows(KEY, config_of(another=name), digits)


# --- wrong labels ----------------------------------------------------------------------------------------------------


def test_a_share_of_the_labels_is_wrong_and_the_images_are_as_they_were(digits):
    some = splits.take(digits.train, np.arange(400))
    wrong = holdouts.mislabeled(KEY, some, 0.25, digits.spec)
    differ = np.asarray(wrong.label) != np.asarray(some.label)
    assert differ.sum() == 100
    assert wrong.input is some.input
    assert ((wrong.label >= 0) & (wrong.label < 10)).all()
    shift = (np.asarray(wrong.label) - np.asarray(some.label))[differ] % 10
    assert set(shift.tolist()) == set(range(1, 10))
    again = holdouts.mislabeled(KEY, some, 0.25, digits.spec)
    assert np.array_equal(again.label, wrong.label)
    assert holdouts.mislabeled(KEY, some, 0.0, digits.spec) is some


def test_labels_that_are_sets_cannot_be_wrong():
    scenes = data.load("digits_scenes")
    with pytest.raises(InputError, match="must be 0 for digits_scenes"):
        holdouts.mislabeled(KEY, scenes.test, 0.1, scenes.spec)


# --- groups ----------------------------------------------------------------------------------------------------------


def test_a_held_out_holdout_leaves_the_attacker_nothing_of_its_groups(tracked):
    config = config_of(held_out=True)
    rows = holdouts.rows(KEY, config, tracked)
    assert np.bincount(tracked.train.label[rows]).tolist() == [20] * 10
    # 20 rows of a class are of three groups of eight, or of four with one that is less
    assert len(np.unique(tracked.train_group[rows])) <= 40
    withheld = holdouts.withheld(config, tracked, rows)
    assert set(rows) <= set(withheld)
    left = np.setdiff1d(np.arange(len(tracked.train.label)), withheld)
    assert not set(tracked.train_group[left]) & set(tracked.train_group[rows])
    assert len(plans._attackers(config, tracked, rows).label) == len(left)


@pytest.mark.parametrize("asked", [{}, {"held_out": True, "by_group": False}])
def test_rows_are_drawn_one_by_one_as_without_groups(digits, tracked, asked):
    config = config_of(**asked)
    rows = holdouts.rows(KEY, config, tracked)
    assert np.array_equal(rows, holdouts.rows(KEY, config, digits))
    assert np.array_equal(holdouts.withheld(config, tracked, rows), rows)


def test_groups_that_nobody_knows_cannot_be_asked_for(digits):
    with pytest.raises(InputError, match=r"^holdout\.by_group must be left out for digits"):
        holdouts.rows(KEY, config_of(by_group=True), digits)


@pytest.mark.parametrize("asked", [{}, {"held_out": True}, {"wrong_labels": 0.5}])
def test_a_strength_is_chosen_by_other_groups_than_the_defense_is_given(tracked, asked):
    config = configs.resolve({"holdout": {"per_class": 20, **asked}, "defense": {"rho": "auto"}})
    rows = holdouts.rows(KEY, config, tracked)
    whole = holdouts.taken(KEY, config, tracked, rows)
    given, aside = holdouts.divided(config, tracked, whole, rows)
    assert aside is not None
    assert len(given.label) + len(aside.label) == 200
    if not asked.get("wrong_labels"):
        assert (np.bincount(aside.label, minlength=10) >= 4).all()
    group = {
        image.tobytes(): name
        for image, name in zip(tracked.train.input[rows], tracked.train_group[rows], strict=True)
    }
    sides = [{group[image.tobytes()] for image in side.input} for side in (given, aside)]
    assert not sides[0] & sides[1]
