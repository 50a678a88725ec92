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
from bdjax.data.modalities.images import image_spec
from bdjax.types import Metrics, Model, PoisonedSplit, Spec, Split

SPEC = image_spec("readable", (1, 1, 1), 4, (0.5,), (0.25,))


@dataclasses.dataclass(frozen=True)
class Reader:
    """Predicts the class that the image's only pixel holds, in 8 bits. Refuses to train."""

    spec: Spec = SPEC

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
    return Split(
        image,
        np.asarray(labels, np.int32),
        np.ones(len(image), bool) if valid is None else np.asarray(valid),
    )


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
    as_float = CLEAN._replace(input=CLEAN.input.astype(np.float32) / 255)
    jax.tree.map(
        np.testing.assert_array_equal,
        evaluate.evaluate(Reader(), VARIABLES, as_float, TRIGGERED),
        evaluate.evaluate(Reader(), VARIABLES, CLEAN, TRIGGERED),
    )


def test_predict_answers_every_row_in_order():
    answers = np.arange(11) % 4
    image = split_of(answers, answers).input
    np.testing.assert_array_equal(
        evaluate.predict(Reader(), VARIABLES, image, batch_size=4), answers
    )
    np.testing.assert_array_equal(
        evaluate.predict(Reader(), VARIABLES, jnp.asarray(image)), answers
    )


def test_predict_uses_the_running_statistics(model, variables, split):
    one = evaluate.predict(model, variables, split.input[:1])
    np.testing.assert_array_equal(evaluate.predict(model, variables, split.input)[:1], one)


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
        evaluate.predict(Reader(), VARIABLES, CLEAN.input, batch_size=0)


# --- Any function ---


def pixel(image):
    """Give the logits of `Reader`, in NumPy."""
    return np.eye(4)[np.rint(image[:, 0, 0, 0] * 255).astype(int)]


@pytest.mark.parametrize("batch_size", [1, 4, 6, 7, 500])
def test_a_function_counts_as_a_network_does(batch_size):
    metrics = evaluate.evaluate_function(pixel, CLEAN, TRIGGERED, batch_size=batch_size)
    assert jax.tree.map(int, metrics) == Metrics(
        clean_correct=3, clean_total=5, attack_hits=2, robust_correct=2, attack_total=5
    )


def test_a_linear_model_in_numpy_by_hand():
    image = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.25]], np.float32).reshape(3, 1, 2, 1)
    weight = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
    # Logits of the third: 0.5 0.25 0.5
    clean = Split(image, np.array([0, 2, 1], np.int32), np.ones(3, bool))
    triggered = PoisonedSplit(
        clean._replace(label=np.zeros(3, np.int32)), clean.label, np.ones(3, bool)
    )
    metrics = evaluate.evaluate_function(
        lambda image: image.reshape(len(image), -1) @ weight, clean, triggered
    )
    assert jax.tree.map(int, metrics) == Metrics(
        clean_correct=2, clean_total=3, attack_hits=2, robust_correct=2, attack_total=3
    )


def test_a_jitted_network_counts_the_same_and_is_traced_once(model, variables, split):
    traces = []

    @jax.jit
    def logits(image):
        traces.append(image.shape)
        return model.apply(variables, image)[0]

    triggered = PoisonedSplit(
        split._replace(input=255 - split.input), (split.label + 1) % 4, split.valid
    )
    shorter = jax.tree.map(lambda array: array[:29], triggered)
    for poisoned in (triggered, shorter):
        ours = evaluate.evaluate(model, variables, split, poisoned)
        theirs = evaluate.evaluate_function(logits, split, poisoned, num_classes=4, batch_size=20)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert traces == [(20, 8, 8, 3)]


def test_a_function_gets_float_images_of_its_own():
    seen = []

    def spoil(image):
        answer = pixel(image)
        seen.append((image.dtype, image.shape, float(image.max())))
        image[:] = 9
        return answer

    before = CLEAN.input.copy()
    evaluate.evaluate_function(spoil, CLEAN, TRIGGERED, batch_size=4)
    assert seen == [(np.float32, (4, 1, 1, 1), pytest.approx(most / 255)) for most in (3, 1, 2, 3)]
    np.testing.assert_array_equal(CLEAN.input, before)


KINDS = [lambda x: x.astype(np.float16), jnp.bfloat16, lambda x: x.astype(int), np.ndarray.tolist]


@pytest.mark.parametrize("change", KINDS)
def test_logits_may_be_of_any_kind(change):
    metrics = evaluate.evaluate_function(lambda image: change(pixel(image)), CLEAN, TRIGGERED)
    assert int(metrics.clean_correct) == 3


class Untouchable:
    """An array that NumPy cannot have."""

    def __array__(self, *_, **__):
        raise RuntimeError("it requires\ngrad")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda image: pixel(image)[:, 0],
            r"function must return logits of the shape \(7, classes\) .* got \(7,\)",
        ),
        (lambda image: pixel(image)[:2], r"shape \(7, classes\) for 7 images, got \(2, 4\)"),
        (
            lambda image: pixel(image)[:, :3],
            r"function must return logits of 4 or more classes, got 3",
        ),
        (lambda image: (pixel(image), {}), r"function must return an array, got tuple"),
        (
            lambda image: pixel(image).astype(str),
            r"function must return an array of real numbers, got ndarray of <U",
        ),
        (lambda image: pixel(image) * 1j, r"real numbers, got ndarray of complex128"),
        (lambda image: None, r"real numbers, got NoneType of object"),
        (
            lambda image: Untouchable(),
            r"function must return an array, got Untouchable \(it requires grad\)",
        ),
        (
            lambda image: np.where(image[:, 0, 0] > 1.5 / 255, np.nan, pixel(image)),
            r"NaN for clean test image 2\.",
        ),
    ],
)
def test_an_answer_that_is_no_logits_is_refused(answer, message):
    with pytest.raises(InputError, match=message) as caught:
        evaluate.evaluate_function(answer, CLEAN, TRIGGERED)
    assert "\n" not in str(caught.value)


def test_the_number_of_classes_is_held_if_it_is_given():
    wide = lambda image: np.pad(pixel(image), ((0, 0), (0, 1)))  # noqa: E731
    assert int(evaluate.evaluate_function(wide, CLEAN, TRIGGERED).clean_correct) == 3
    with pytest.raises(InputError, match=r"logits of 4 classes, got 5\."):
        evaluate.evaluate_function(wide, CLEAN, TRIGGERED, num_classes=4)


def test_padding_may_be_undefined_and_infinity_is_a_number():
    def answer(image):
        logits = np.where(pixel(image) > 0, np.inf, -np.inf)
        # The sixth clean row is padding, and so are the sixth and seventh triggered ones
        logits[5:] = np.nan
        return logits

    assert int(evaluate.evaluate_function(answer, CLEAN, TRIGGERED).clean_correct) == 3


def test_what_a_function_raises_passes_through():
    def fail(image):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        evaluate.evaluate_function(fail, CLEAN, TRIGGERED)
    with pytest.raises(InputError, match="batch_size must be 1 or more"):
        evaluate.evaluate_function(fail, CLEAN, TRIGGERED, batch_size=0)


def test_nothing_to_count_is_refused_for_a_function_too():
    with pytest.raises(InputError, match="there is no test image to count"):
        evaluate.evaluate_function(pixel, split_of([], []), TRIGGERED)


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
    metrics = evaluate.count(
        SPEC.task, jnp.asarray(answers), jnp.asarray(answers), clean, triggered
    )
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
    kept = evaluate.defense_effectiveness_rating(
        metrics_of(*before), metrics_of(before[0], after[1])
    )
    assert rating <= kept
    better = (before[0] + (1 - before[0]) * gain, after[1])
    assert evaluate.defense_effectiveness_rating(metrics_of(*before), metrics_of(*better)) == kept


def test_counts_of_a_sweep_give_a_rate_for_each_point():
    swept = Metrics(*(jnp.array(pair) for pair in ([9, 5], [10, 10], [8, 0], [1, 9], [9, 9])))
    np.testing.assert_allclose(evaluate.defense_effectiveness_rating(swept, swept), [0.5, 0.5])
    np.testing.assert_allclose(swept.attack_success_rate, [8 / 9, 0])
