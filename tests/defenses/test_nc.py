"""Neural Cleanse: which classes stand out, what is stamped, and what becomes of a planted backdoor and of digits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
from quick import quick_jit

from bdjax import attacks, data, defenses, evaluate, models, poison
from bdjax.checks import InputError
from bdjax.data import splits
from bdjax.defenses._anomaly import Suspects, anomaly, suspects
from bdjax.defenses._inversion import Found
from bdjax.defenses.nc import nc, stamp
from bdjax.optim import Schedule
from bdjax.tasks.multi_label import MultiLabel
from bdjax.train import loop
from bdjax.train.supervised import supervised

KEY = jax.random.key(0)
NORMS = (100.0, 102, 98, 101, 20, 99, 103, 97, 100, 101)


@pytest.mark.parametrize(
    ("lower", "deviation", "out"), [(True, 1.4826, [4, 7]), (False, 1.5 * 1.4826, [4])]
)
def test_the_index_with_either_median(lower, deviation, out):
    """O16: the middle two of the deviations 0 0 1 1 1 2 2 3 3 80 are 1 and 2, those of the norms 100 and 100.

    So 97 stands out with the lower one only, its index 2.02.
    """
    got = suspects(jnp.array(NORMS), 2.0, lower)
    np.testing.assert_allclose(got.index, np.abs(np.array(NORMS) - 100) / deviation, rtol=1e-5)
    assert np.flatnonzero(got.stands_out).tolist() == out
    assert not suspects(jnp.array(NORMS), 60.0, lower).stands_out.any()


@pytest.mark.parametrize(
    "norm", [NORMS, (10.0, 11, 12, 1), (9.0, 9, 9, 2, 12), (10.0, 4, 12, 11, 13, 2, 11.5)]
)
def test_it_is_what_is_said_to_a_user_too(norm):
    expected, got = anomaly(np.array(norm)), suspects(jnp.array(norm))
    np.testing.assert_allclose(got.index, expected.index, rtol=1e-5)
    assert set(np.flatnonzero(got.stands_out).tolist()) == set(expected.suspects)


def triggers(*norm: float) -> Found:
    """Half-opaque triggers of the left column of 2×2 pixels, of the brightness k / 10 for class k."""
    classes = len(norm)
    mask = jnp.zeros((classes, 2, 2)).at[:, :, 0].set(0.5)
    pattern = jnp.ones((classes, 2, 2, 1)) * jnp.arange(classes)[:, None, None, None] / 10
    yes, some = jnp.ones(classes, bool), jnp.ones(classes)
    return Found(mask, pattern, jnp.array(norm, jnp.float32), some, yes, yes.all(), jnp.int32(0))


@quick_jit
def _stamped(share, chosen):
    image = jnp.full((10, 2, 2, 1), 100, jnp.uint8)
    return stamp(triggers(*range(6)), chosen, share, planted.MODEL, image)


def stamped(share: float, *classes: int) -> np.ndarray:
    return np.asarray(_stamped(share, np.isin(np.arange(6), classes)))


def test_a_share_of_the_images_carries_the_triggers_in_turn():
    image = stamped(0.45, 1, 4)
    assert image.dtype == jnp.uint8
    expected = [50 + 12.75, 50 + 51, 50 + 12.75, 50 + 51] + [100] * 6
    np.testing.assert_allclose(image[:, 0, 0, 0], expected, atol=0.5)
    assert (image[:, :, 1] == 100).all()  # outside the mask
    assert (stamped(1.0, 4) != 100).any((1, 2, 3)).all()
    assert (stamped(0.5) == 100).all()


@pytest.mark.parametrize(
    ("otherwise", "none", "some"), [("nothing", [], [0, 3]), ("smallest", [2], [0, 3])]
)
def test_where_no_class_stands_out_the_smallest_may_be_unlearned(otherwise, none, some):
    found, learner = triggers(5, 4, 1, 3), nc(otherwise=otherwise)
    found = found._replace(found=jnp.array([True, True, True, False]))
    for classes in (none, some):
        which = jnp.isin(jnp.arange(4), jnp.array([0, 3])) & bool(classes == some)
        got = learner.unlearned(found, Suspects(jnp.zeros(4), which))
        assert np.flatnonzero(got).tolist() == classes


def test_a_trigger_that_was_not_found_is_not_small():
    found = triggers(1, 1)._replace(found=jnp.array([True, False]))
    assert found.size.tolist() == [1, 4]


# --- on the planted network ------------------------------------------------------------------------------------------


def test_the_planted_backdoor_is_unlearned_and_clean_images_keep_their_labels():
    learner = nc(otherwise="smallest", epochs=20, batch_size=10, learning_rate=0.03, augment="none")
    result = loop.run(KEY, learner, planted.MODEL, planted.variables(), planted.holdout())
    assert planted.rates(planted.variables()) == (1, 1)
    assert planted.rates(result.variables) == (1, 0)
    # 20 epochs of 3 batches, and a step of each class's batch for each round
    assert 60 + 3 * 25 < result.gradient_evaluations <= 60 + 3 * 80


def test_of_three_classes_none_stands_out_and_the_network_comes_back():
    """Behavioral test 11, second half."""
    learner, split = nc(inversion_epochs=2), jax.tree.map(jnp.asarray, planted.holdout())
    update = quick_jit(lambda variables: learner.update(KEY, planted.MODEL, variables, split))
    state, info = update(planted.variables())
    jax.tree.map(np.testing.assert_array_equal, state, planted.variables())
    assert info.gradient_evaluations == 3 * 2
    assert info.accuracy == 1


def test_what_classifies_no_images_is_refused():
    spec = dataclasses.replace(planted.SPEC, task=MultiLabel(3))
    other = dataclasses.replace(planted.MODEL, spec=spec)
    with pytest.raises(InputError, match=r"^model must classify images, one class each"):
        nc().init(KEY, other, planted.variables(), planted.holdout())


@pytest.mark.parametrize(
    ("option", "value"),
    [("otherwise", "all"), ("inversion_epochs", 0), ("stamped", 1.1), ("bound", -1.0)],
)
def test_what_means_nothing_is_refused(option, value):
    with pytest.raises(InputError, match=f"^{option} must"):
        nc(**{option: value})


def test_the_benchmarks_setting():
    made = defenses.create("nc", preset="reference_code").learner
    assert (made.inversion.success, made.lower_median, made.bound) == (0.98, True, 2.0)
    assert made.tuning.sgd.schedule.kind == "cosine"


@pytest.mark.slow  # trains a victim
def test_it_removes_a_patch_from_digits():
    """Behavioral test 11, first half: the target's norm is the outlier, and its trigger is unlearned."""
    ds, keys = data.load("digits"), jax.random.split(KEY, 5)
    attack = attacks.create("badnets", target_label=0, poison_rate=0.1)
    trigger = attack.trigger.init(keys[0], ds.spec)
    train = poison.poison_train(keys[0], attack, trigger, ds.train)
    test = poison.poison_test(keys[0], attack, trigger, ds.test)
    model = models.create("small_cnn", ds.spec, width=16)
    learner = supervised(
        epochs=20, batch_size=64, learning_rate=0.05, schedule=Schedule(kind="cosine")
    )
    victim = loop.run(keys[2], learner, model, model.init(keys[1]), train.visible).variables
    rows = splits.holdout(keys[3], ds.train, per_class=20, num_classes=10)
    defense = nc(batch_size=100, learning_rate=0.05)
    after = defenses.run(keys[4], defense, model, victim, splits.take(ds.train, rows))
    before, after = (evaluate.evaluate(model, each, ds.test, test) for each in (victim, after))
    assert before.attack_success_rate > 0.95
    assert after.attack_success_rate < 0.05
    assert after.clean_accuracy > before.clean_accuracy - 0.04
