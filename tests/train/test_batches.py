"""Batches as even as can be: which rows are in which, what a batch larger than the rows does, what it is good for."""

from __future__ import annotations

import logging

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bdjax import attacks, data, defenses, evaluate, models, poison
from bdjax.checks import InputError
from bdjax.data import splits
from bdjax.train import batches, loop
from bdjax.train.supervised import supervised
from bdjax.types import Split

KEY = jax.random.key(0)


def learner(batch_size: int | None, drop_last: bool = False, epochs: int = 1):
    if batch_size is None:
        return defenses.create("fine_pruning").stages[0].learner
    return supervised(epochs, batch_size, drop_last=drop_last)


def drawn(rows: int, batch_size: int | None, drop_last: bool = False) -> batches.Batches:
    return jax.device_get(batches.draw(KEY, learner(batch_size, drop_last), rows))


def sizes(found: batches.Batches) -> list[int]:
    steps, size = found.index.shape
    return [size] * steps if found.filled is None else np.asarray(found.filled).sum(1).tolist()


def order(rows: int) -> np.ndarray:
    return np.asarray(jax.random.permutation(jax.random.split(KEY)[0], rows))


# --- which rows ------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 60), batch_size=st.integers(1, 70))
@example(rows=60, batch_size=59)  # 59 and 1 before
@example(rows=1, batch_size=1)
@example(rows=7, batch_size=70)
def test_every_row_is_in_one_of_the_batches_which_differ_by_a_row_at_most(rows, batch_size):
    found = drawn(rows, batch_size)
    steps, size = found.index.shape
    assert steps == -(-rows // batch_size)
    assert size == max(sizes(found)) <= batch_size
    assert min(sizes(found)) >= size - 1
    filled = np.ones((steps, size), bool) if found.filled is None else found.filled
    # Each once, in the order of the key
    np.testing.assert_array_equal(found.index[filled], order(rows))
    # What fills up is another batch's
    assert all(len(set(batch)) == size for batch in found.index.tolist())
    assert (found.filled is None) == (rows % steps == 0)  # no mask where it says nothing


@pytest.mark.parametrize(("rows", "batch_size"), [(48, 16), (48, 48), (60, 5), (60, None)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_where_the_batch_divides_the_rows_they_are_the_order_cut_in_pieces(
    rows, batch_size, drop_last
):
    found = drawn(rows, batch_size, drop_last)
    assert found.filled is None
    np.testing.assert_array_equal(found.index, order(rows).reshape(-1, batch_size or rows))


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [
        (100, [100]), (99, [50, 50]), (98, [50, 50]), (50, [50, 50]),
        (33, [25] * 4), (11, [10] * 10), (23, [20] * 5), (30, [25] * 4), (15, [15, 15, 14, 14, 14, 14, 14]),
    ],
)  # fmt: skip
def test_the_sizes_for_a_hundred_rows(batch_size, expected):
    assert sizes(drawn(100, batch_size)) == expected


@pytest.mark.parametrize(
    ("rows", "batch_size", "shape"), [(100, 98, (1, 98)), (100, 33, (3, 33)), (60, 60, (1, 60))]
)
def test_drop_last_has_whole_batches_only(rows, batch_size, shape):
    found = drawn(rows, batch_size, drop_last=True)
    assert found.filled is None
    np.testing.assert_array_equal(found.index, order(rows)[: shape[0] * shape[1]].reshape(shape))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [21, 128])
def test_a_batch_larger_than_the_rows_is_all_of_them(batch_size, drop_last):
    found = drawn(20, batch_size, drop_last)
    assert (found.index.tolist(), found.filled) == ([order(20).tolist()], None)


# --- what is said ----------------------------------------------------------------------------------------------------


def rows_of(valid: int, rows: int = 20) -> Split:
    return Split(
        np.zeros((rows, 1, 1, 1), np.uint8), np.zeros(rows, np.int32), np.arange(rows) < valid
    )


@pytest.fixture
def nothing_was_said():
    batches._tell.cache_clear()


@pytest.mark.usefixtures("nothing_was_said")
def test_a_batch_that_there_are_too_few_rows_for_is_told_once(caplog):
    for _ in range(2):
        batches.tell(learner(128), rows_of(12), "training.batch_size")
        batches.tell(learner(64), rows_of(12), "defense.batch_size")
        batches.tell(learner(12), rows_of(12))
        batches.tell(learner(None), rows_of(12))
        batches.tell(learner(128, epochs=0), rows_of(12))
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert caplog.messages == [
        "training.batch_size = 128 is more than the 12 images there are: each step takes all of them.",
        "defense.batch_size = 64 is more than the 12 images there are: each step takes all of them.",
    ]


@pytest.mark.usefixtures("nothing_was_said")
def test_a_defense_of_a_small_holdout_says_so_and_takes_all_of_it(model, variables, split, caplog):
    few = splits.take(split, np.arange(10))
    small, fitting = (
        defenses.create("ft", epochs=2, batch_size=size).learner for size in (256, 10)
    )
    purified = defenses.run(KEY, small, model, variables, few)
    assert caplog.messages == [
        "batch_size = 256 is more than the 10 images there are: each step takes all of them."
    ]
    same = defenses.run(KEY, fitting, model, variables, few)
    jax.tree.map(np.testing.assert_array_equal, purified, same)


def test_what_is_fed_is_known():
    assert [batches.fed(learner(size), rows_of(19)) for size in (128, 18, 5, None)] == [
        19,
        10,
        5,
        19,
    ]
    assert batches.fed(learner(18, drop_last=True), rows_of(19)) == 18
    assert batches.fed(learner(5, epochs=0), rows_of(19)) is None


def test_no_rows_are_refused_where_there_is_something_to_do():
    with pytest.raises(
        InputError, match="the holdout must have at least 1 image to train on, got 0"
    ):
        batches.check(learner(5), rows_of(0), "the holdout")
    batches.check(learner(5, epochs=0), rows_of(0))
    batches.check(learner(128), rows_of(1))


# --- what it is good for ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def victim():
    """A small network with BadNets, and what tells accuracy and success rate of another."""
    digits = data.load("digits")
    attack = attacks.create("badnets", spec=digits.spec, poison_rate=0.1)
    state = attack.trigger.init(KEY, digits.spec)
    train = poison.poison_train(KEY, attack, state, digits.train)
    triggered = poison.poison_test(KEY, attack, state, digits.test)
    model = models.create("small_cnn", digits.spec, width=8)
    training = supervised(epochs=20, batch_size=64, learning_rate=0.05)
    variables = loop.run(KEY, training, model, model.init(KEY), train.visible).variables

    def rates(variables) -> tuple[float, float]:
        metrics = evaluate.evaluate(model, variables, digits.test, triggered)
        return float(metrics.clean_accuracy), float(metrics.attack_success_rate)

    return model, variables, rates, digits.train


def test_the_size_of_a_batch_decides_neither_accuracy_nor_success(victim):
    """With a last batch of one or two images, 99 and 98 ended at an ACC of 90 and 85 %, an ASR of 15 and 17 %."""
    model, variables, rates, train = victim
    assert min(rates(variables)) > 0.95
    holdout = splits.take(train, splits.holdout(KEY, train, per_class=10, num_classes=10))
    found = []
    for batch_size in (100, 99, 98, 50, 33, 11):
        tuning = defenses.create("ft", epochs=20, batch_size=batch_size, learning_rate=0.01).learner
        found.append(rates(defenses.run(KEY, tuning, model, variables, holdout)))
    assert found[1] == found[2] == found[3]  # two batches of fifty, all three
    accuracy, success = np.ptp(found, axis=0)
    assert accuracy < 0.03
    assert success < 0.05
