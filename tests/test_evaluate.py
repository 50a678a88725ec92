"""Counts by hand with a network whose answers can be read off the image; DER's published and extreme values (O19)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdjax import evaluate
from bdjax.checks import InputError
from bdjax.types import ImageSpec, Metrics, Model, PoisonedSplit, Split

SPEC = ImageSpec("readable", (1, 1, 1), 4, (0.5,), (0.25,))


@dataclasses.dataclass(frozen=True)
class Reader:
    """Predicts the class that the image's only pixel holds, in 8 bits. Refuses to train."""

    spec: ImageSpec = SPEC

    def init(self, key):
        return {"params": {}, "batch_stats": {}}

    def apply(self, variables, image, *, train=False, valid=None):
        assert not train
        answer = jnp.round(image[:, 0, 0, 0] * 255).astype(jnp.int32)
        return jax.nn.one_hot(answer, self.spec.num_classes), variables["batch_stats"]

    def features(self, variables, image):
        return image.reshape(image.shape[0], -1)


def split_of(answers, labels, valid=None) -> Split:
    """A split for which `Reader` gives these answers."""
    image = np.asarray(answers, np.uint8).reshape(-1, 1, 1, 1)
    return Split(image, np.asarray(labels, np.int32), np.ones(len(image), bool) if valid is None else np.asarray(valid))


# answers, true labels, rows that are no padding
CLEAN = split_of([0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 1, 1], [True] * 5 + [False])
# answers on triggered images, wanted labels, rows that count: the sixth is of the target class, the seventh padding
TRIGGERED = PoisonedSplit(
    split_of([0, 0, 1, 2, 3, 0, 0], [0] * 7, [True] * 5 + [False] * 2),
    np.array([1, 2, 1, 2, 2, 0, 3], np.int32),
    np.array([True] * 6 + [False]),
)
VARIABLES = Reader().init(None)


def test_the_reader_is_a_model():
    assert isinstance(Reader(), Model)


@pytest.mark.parametrize("batch_size", [1, 4, 6, 7, 500])
def test_counts_by_hand_at_any_batch_size(batch_size):
    metrics = evaluate.evaluate(Reader(), VARIABLES, CLEAN, TRIGGERED, batch_size=batch_size)
    assert jax.tree.map(int, metrics) == Metrics(
        clean_correct=3, clean_total=5, attack_hits=2, robust_correct=2, attack_total=5
    )


def test_rates_divide_by_their_own_totals():
    metrics = Metrics(*map(jnp.int32, (3, 5, 2, 1, 8)))
    assert metrics.clean_accuracy == pytest.approx(0.6)
    assert metrics.attack_success_rate == pytest.approx(0.25)
    assert metrics.robust_accuracy == pytest.approx(0.125)


def test_float_images_count_like_uint8():
    as_float = CLEAN._replace(image=CLEAN.image.astype(np.float32) / 255)
    jax.tree.map(
        np.testing.assert_array_equal,
        evaluate.evaluate(Reader(), VARIABLES, as_float, TRIGGERED),
        evaluate.evaluate(Reader(), VARIABLES, CLEAN, TRIGGERED),
    )


def test_predict_answers_every_row_in_order():
    answers = np.arange(11) % 4
    image = split_of(answers, answers).image
    np.testing.assert_array_equal(evaluate.predict(Reader(), VARIABLES, image, batch_size=4), answers)
    np.testing.assert_array_equal(evaluate.predict(Reader(), VARIABLES, jnp.asarray(image)), answers)


def test_predict_uses_the_running_statistics(model, variables, split):
    one = evaluate.predict(model, variables, split.image[:1])
    np.testing.assert_array_equal(evaluate.predict(model, variables, split.image)[:1], one)


@pytest.mark.parametrize(
    ("clean", "triggered"),
    [
        (CLEAN._replace(valid=np.zeros(6, bool)), TRIGGERED),
        (CLEAN, TRIGGERED._replace(visible=TRIGGERED.visible._replace(valid=np.zeros(7, bool)))),
        (split_of([], []), TRIGGERED),
        (CLEAN, PoisonedSplit(split_of([], []), np.zeros(0, np.int32), np.zeros(0, bool))),
    ],
    ids=["no valid clean row", "no valid triggered row", "no clean row", "no triggered row"],
)
def test_nothing_to_count_is_refused(clean, triggered):
    with pytest.raises(InputError, match="there is no test image to count"):
        evaluate.evaluate(Reader(), VARIABLES, clean, triggered)


def test_a_batch_size_of_zero_is_refused():
    with pytest.raises(InputError, match="batch_size must be 1 or more, got 0"):
        evaluate.predict(Reader(), VARIABLES, CLEAN.image, batch_size=0)


EIGHT_ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=8, max_size=8)


@given(rows=EIGHT_ROWS, shift=st.integers(1, 3), target=st.none() | st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_attack_success_and_robust_accuracy_sum_to_at_most_one(rows, shift, target):
    answers, labels = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    wanted = (labels + shift) % 4 if target is None else np.full(8, target, np.int32)
    valid = wanted != labels
    if not valid.any():
        return
    triggered = PoisonedSplit(split_of(answers, wanted, valid), labels, np.ones(8, bool))
    clean = split_of(answers, labels)
    metrics = evaluate.count(jnp.asarray(answers), jnp.asarray(answers), clean, triggered)
    assert metrics.attack_hits + metrics.robust_correct <= metrics.attack_total == valid.sum()
    assert metrics.clean_correct == (answers == labels).sum()


def metrics_of(accuracy: float, success: float, total: int = 10_000) -> Metrics:
    counts = round(accuracy * total), total, round(success * total), 0, total
    return Metrics(*map(jnp.int32, counts))


@pytest.mark.parametrize(
    ("before", "after", "rating"),
    [
        ((0.9182, 0.9379), (0.9221, 0.0163), 0.9608),
        ((0.9182, 0.9379), (0.9029, 0.0170), 0.95280),
        ((0.9182, 0.9379), (0.9182, 0.9379), 0.5),
        ((1.0, 0.7), (0.0, 0.7), 0.0),
        ((0.8, 1.0), (0.8, 0.0), 1.0),
        ((0.8, 0.2), (0.8, 0.9), 0.5),  # a rise in ASR costs nothing more
    ],
)
def test_defense_effectiveness_rating(before, after, rating):
    ours = evaluate.defense_effectiveness_rating(metrics_of(*before), metrics_of(*after))
    assert float(ours) == pytest.approx(rating, abs=5e-5)


SHARE = st.integers(0, 100).map(lambda percent: percent / 100)


@given(before=st.tuples(SHARE, SHARE), after=st.tuples(SHARE, SHARE), gain=SHARE)
@settings(max_examples=50, deadline=None)
def test_the_rating_is_bounded_and_never_rewards_accuracy(before, after, gain):
    rating = evaluate.defense_effectiveness_rating(metrics_of(*before), metrics_of(*after))
    assert 0 <= rating <= 1
    kept = evaluate.defense_effectiveness_rating(metrics_of(*before), metrics_of(before[0], after[1]))
    assert rating <= kept
    better = (before[0] + (1 - before[0]) * gain, after[1])
    assert evaluate.defense_effectiveness_rating(metrics_of(*before), metrics_of(*better)) == kept


def test_counts_of_a_sweep_give_a_rate_for_each_point():
    swept = Metrics(*(jnp.array(pair) for pair in ([9, 5], [10, 10], [8, 0], [1, 9], [9, 9])))
    np.testing.assert_allclose(evaluate.defense_effectiveness_rating(swept, swept), [0.5, 0.5])
    np.testing.assert_allclose(swept.attack_success_rate, [8 / 9, 0])
