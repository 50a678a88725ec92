"""Several labels an input: loss, answers and hits by hand, and the mean average precision against scikit-learn's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import data
from bdjax.tasks.multi_label import MultiLabel, mean_average_precision
from bdjax.types import PoisonedSplit, Split, Task

TASK = MultiLabel(3, ("cat", "dog", "owl"))
LABEL = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1]], bool)
LOGITS = np.array(
    [[2.0, -1.0, -2.0], [0.5, 1.0, -1.0], [-1.0, 0.5, 3.0], [1.0, -2.0, 0.25]], np.float32
)


def test_it_is_a_task_and_may_be_a_static_argument():
    assert isinstance(TASK, Task)
    assert hash(TASK) == hash(MultiLabel(3, ("cat", "dog", "owl")))


def test_the_loss_is_the_mean_binary_cross_entropy_of_the_classes():
    probability = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    of_class = -np.where(LABEL, np.log(probability), np.log(1 - probability))
    np.testing.assert_allclose(TASK.loss(LOGITS, LABEL), of_class.mean(-1), rtol=1e-6)
    np.testing.assert_allclose(
        TASK.negative_log_likelihood(LOGITS, LABEL), of_class.sum(-1), rtol=1e-6
    )
    target = np.where(LABEL, 0.9, 0.1)
    smoothed = -(target * np.log(probability) + (1 - target) * np.log(1 - probability)).mean(-1)
    np.testing.assert_allclose(TASK.loss(LOGITS, LABEL, 0.2), smoothed, rtol=1e-6)


def test_an_answer_is_right_class_by_class():
    np.testing.assert_allclose(TASK.correct(LOGITS, LABEL), [1, 1, 2 / 3, 1 / 3])


def test_a_hit_has_every_label_that_the_attacker_changes():
    original = jnp.asarray(LABEL)
    wanted = original.at[:, 2].set(True)  # the attacker adds the owl
    # The last two had it
    assert TASK.hit(LOGITS, wanted, original).tolist() == [False, False, True, True]
    removed = original.at[:, 0].set(False)
    assert TASK.hit(LOGITS, removed, original).tolist() == [False, False, True, True]


def average_precision(score: np.ndarray, there: np.ndarray) -> float:
    """By the definition, threshold by threshold."""
    found = []
    for row in np.flatnonzero(there):
        among = score >= score[row]
        found.append(there[among].mean())
    return float(np.mean(found))


@pytest.mark.parametrize("levels", [3, 1000])  # with many equal scores, and with few
def test_mean_average_precision_is_the_definition(levels):
    rng = np.random.default_rng(levels)
    score = rng.integers(0, levels, (40, 5)).astype(np.float32)
    label, valid = rng.random((40, 5)) < 0.3, rng.random(40) < 0.8
    label[:, 4] = False  # a class that nothing has
    expected = np.mean([average_precision(score[valid, k], label[valid, k]) for k in range(4)])
    assert float(mean_average_precision(score, label, valid)) == pytest.approx(expected, rel=1e-5)


def test_mean_average_precision_takes_what_is_no_number_for_the_least_score():
    label, valid = np.ones((4, 1), bool), np.array([True, True, True, False])
    label[0] = False
    score = np.array([[3.0], [2.0], [np.nan], [9.0]], np.float32)
    expected = (1 / 2 + 2 / 3) / 2  # the row that is not valid counts nowhere, even among equals
    assert float(mean_average_precision(score, label, valid)) == pytest.approx(expected)


def test_mean_average_precision_of_many_rows_fits_into_little_memory():
    rows = jax.ShapeDtypeStruct((20_000, 80), jnp.float32)
    label, valid = jax.ShapeDtypeStruct(rows.shape, bool), jax.ShapeDtypeStruct((20_000,), bool)
    compiled = jax.jit(mean_average_precision).lower(rows, label, valid).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 40 * 4 * 20_000 * 80


def test_mean_average_precision_of_a_perfect_order_is_one():
    assert float(mean_average_precision(LABEL + 0.5, LABEL, np.ones(4, bool))) == pytest.approx(1)


def test_mean_average_precision_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    score, label = rng.normal(size=(60, 4)).astype(np.float32).round(1), rng.random((60, 4)) < 0.4
    expected = metrics.average_precision_score(label, score, average="macro")
    assert float(mean_average_precision(score, label, np.ones(60, bool))) == pytest.approx(
        expected, rel=1e-5
    )


def test_rows_that_are_not_valid_count_nowhere():
    valid = np.array([True, True, False, True])
    clean = Split(jnp.zeros((4, 1)), jnp.asarray(LABEL), jnp.asarray(valid))
    wanted = jnp.asarray(LABEL).at[:, 2].set(True)
    visible = Split(jnp.zeros((4, 1)), wanted, jnp.asarray(valid & ~LABEL[:, 2]))
    triggered = PoisonedSplit(visible, jnp.asarray(LABEL), jnp.asarray(valid))
    found = TASK.count(jnp.asarray(LOGITS), jnp.asarray(LOGITS + 3), clean, triggered)
    assert (int(found.clean_total), int(found.attack_total), int(found.attack_hits)) == (3, 2, 2)
    expected = mean_average_precision(LOGITS[valid], LABEL[valid], np.ones(3, bool))
    assert float(found.mean_average_precision) == pytest.approx(float(expected))
    assert {metric.name for metric in TASK.metrics} >= {
        "mean_average_precision",
        "attack_success_rate",
    }


def test_scenes_are_made_of_digits_and_say_which():
    scenes, digits = data.load("digits_scenes"), data.load("digits")
    assert scenes.train.input.shape == (2000, 16, 16, 1)
    assert scenes.test.label.shape == (500, 10)
    assert scenes.train.label.dtype == bool
    known = {
        image.tobytes(): int(label)
        for image, label in zip(digits.train.input, digits.train.label, strict=True)
    }
    for scene, label in zip(scenes.train.input[:50], scenes.train.label[:50], strict=True):
        cells = [scene[top : top + 8, left : left + 8] for top in (0, 8) for left in (0, 8)]
        assert {known[cell.tobytes()] for cell in cells if cell.any()} == set(np.flatnonzero(label))
    again = data.fingerprint(data.load("digits_scenes"))
    assert again == data.fingerprint(scenes)


def test_losses_have_derivatives_and_no_nan_where_an_answer_is_extreme():
    extreme = jnp.array([[100.0, -100.0, 0.0]])
    slope = jax.grad(lambda output: TASK.loss(output, jnp.array([[False, True, True]])).sum())(
        extreme
    )
    assert np.isfinite(slope).all()


def test_chance_is_how_often_a_class_is_there():
    label = np.array([[1, 0, 0], [1, 1, 0]], bool)  # of three classes one is nowhere, and left out
    assert TASK.chance(label) == {"mean_average_precision": 0.75}
    assert TASK.chance(label[:, 2:]) == {}
