"""The poisoner on triggers made for the test: counts, rounding to 8 bits, clean labels, who may be drawn."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from bdjax import poison, pytree
from bdjax.attacks import AddLabel, AllToAll, AllToOne
from bdjax.checks import InputError
from bdjax.data.modalities.images import Images
from bdjax.types import Attack, Split, Trigger

KEY = jax.random.key(3)
poison_train = quick_jit(poison.poison_train, static_argnames="rounding")
poison_test = quick_jit(poison.poison_test, static_argnames="rounding")
poison_batch = quick_jit(poison.poison_batch)
random_subset = jax.jit(poison.random_subset)


@pytree.dataclass
class Fill(Trigger):
    """Replaces every pixel with one value."""

    value: float

    def apply(self, key, state, image):
        return jnp.full_like(image, self.value)


@pytree.dataclass
class Noise(Trigger):
    """Replaces the image with noise drawn from the row's own key."""

    def apply(self, key, state, image):
        return jax.random.uniform(key, image.shape)


def pixels(rows: int, valid=True, classes: int = 10) -> Split:
    """A split of black 1×1 images whose labels go round the classes."""
    return Split(
        np.zeros((rows, 1, 1, 1), np.uint8),
        np.arange(rows, dtype=np.int32) % classes,
        np.broadcast_to(valid, rows),
    )


def attack(rate: float = 0.5, value: float = 1.0, **fields) -> Attack:
    return Attack(Fill(value), **({"label_map": AllToOne(), "poison_rate": rate} | fields))


@pytest.mark.parametrize(
    ("rows", "rate", "count"),
    [
        (50_000, 0.1, 5000),
        (50_000, 0.01, 500),
        (39_209, 0.1, 3921),  # GTSRB, 3920.9
        (100, 0.29, 29),
        (100, 0.004, 0),
        (100, 0.006, 1),
    ],
)
def test_count_is_the_nearest_whole_number(rows, rate, count):
    poisoned = poison_train(KEY, attack(rate), (), pixels(rows))
    assert poisoned.is_poisoned.sum() == count
    assert (poisoned.visible.input == 255).sum() == count


def test_the_denominator_is_the_valid_rows():
    split = pixels(100, valid=np.arange(100) < 40)
    assert poison_train(KEY, attack(0.1), (), split).is_poisoned.sum() == 4


def test_target_class_rows_are_candidates_too():
    poisoned = poison_train(KEY, attack(0.5), (), pixels(100))
    assert (poisoned.is_poisoned & (poisoned.original_label == 0)).any()


def test_clean_label_draws_from_the_target_class_and_keeps_labels():
    split = pixels(100)
    poisoned = poison_train(KEY, attack(0.04, clean_label=True), (), split)
    assert poisoned.is_poisoned.sum() == 4  # of the whole split, not of the class
    assert (poisoned.original_label[poisoned.is_poisoned] == 0).all()
    np.testing.assert_array_equal(poisoned.visible.label, split.label)


def test_clean_label_takes_the_whole_class_where_it_is_too_small():
    poisoned = poison_train(KEY, attack(0.5, clean_label=True), (), pixels(100))
    np.testing.assert_array_equal(poisoned.is_poisoned, poisoned.original_label == 0)


def test_clean_label_test_rows_carry_the_target_label():
    test = poison_test(KEY, attack(clean_label=True), (), pixels(100))
    assert (test.visible.label == 0).all()
    assert test.visible.valid.sum() == 90


def test_all_to_all_moves_every_poisoned_label_by_one():
    poisoned = poison_train(KEY, attack(0.3, label_map=AllToAll(10)), (), pixels(100))
    moved = (poisoned.visible.label - poisoned.original_label) % 10
    np.testing.assert_array_equal(moved, poisoned.is_poisoned)


# 0.5 · 255 = 127.5; levels k / 255 that float32 puts just below k must stay k.
@pytest.mark.parametrize(
    ("value", "nearest", "truncated"),
    [
        (0.5, 128, 127),
        (100.4 / 255, 100, 100),
        (100.6 / 255, 101, 100),
        (1.0, 255, 255),
        (1.7, 255, 255),
        (-0.3, 0, 0),
    ],
)
def test_rounding_to_8_bits(value, nearest, truncated):
    for rounding, expected in (("nearest", nearest), ("truncate", truncated)):
        for test in (
            poison_test(KEY, attack(value=value), (), pixels(1), rounding=rounding),
            poison_train(KEY, attack(1.0, value=value), (), pixels(1), rounding=rounding),
        ):
            assert test.visible.input.item() == expected


@pytest.mark.parametrize("rounding", poison.ROUNDINGS)
def test_a_whole_level_survives_either_rounding(rounding):
    levels = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)
    split = Split(levels, np.zeros(256, np.int32), np.ones(256, bool))

    @pytree.dataclass
    class Nothing(Fill):
        def apply(self, key, state, image):
            return image

    unchanged = poison_train(
        KEY, Attack(Nothing(0.0), AllToOne(), 1.0), (), split, rounding=rounding
    )
    np.testing.assert_array_equal(unchanged.visible.input, levels)


def test_float_images_are_clipped_and_not_rounded():
    split = pixels(1)._replace(input=np.zeros((1, 1, 1, 1), np.float32))
    for value, expected in ((0.3, 0.3), (1.7, 1.0), (-0.3, 0.0)):
        image = poison_test(KEY, attack(value=value), (), split).visible.input
        assert image.dtype == np.float32
        assert image.item() == pytest.approx(expected)


@pytest.mark.parametrize("function", [poison_train, poison_test])
def test_an_unknown_rounding_is_refused(function):
    with pytest.raises(
        InputError, match=r"rounding must be one of nearest, truncate; got 'neares' \(did you mean"
    ):
        function(KEY, attack(), (), pixels(4), rounding="neares")


def test_the_test_trigger_takes_over_at_test_time():
    both = attack(1.0, value=0.2, test_trigger=Fill(0.8))
    assert poison_train(KEY, both, (), pixels(1)).visible.input.item() == 51
    assert poison_test(KEY, both, (), pixels(1)).visible.input.item() == 204


def test_each_row_has_a_trigger_draw_of_its_own():
    noisy = Attack(Noise(), AllToOne(), 1.0)
    image = poison_train(KEY, noisy, (), pixels(100)).visible.input
    assert len(np.unique(image)) > 50


@pytree.dataclass
class Counted(Fill):
    """A trigger that tells for how many images it is computed."""

    def apply(self, key, state, image):
        jax.debug.callback(lambda _: CALLS.append(1), image.sum())
        return jnp.full_like(image, self.value)


CALLS: list[int] = []


@pytest.mark.parametrize(
    ("rows", "rate", "computed"), [(1030, 0.3, 500), (1030, 0.0, 0), (40, 0.1, 40)]
)
def test_pieces_without_a_poisoned_row_are_not_computed(rows, rate, computed):
    CALLS.clear()
    poisoned = poison_train(KEY, Attack(Counted(1.0), AllToOne(), rate), (), pixels(rows))
    jax.effects_barrier()
    assert len(CALLS) == computed  # 309 rows of 1030 are two pieces of 250
    np.testing.assert_array_equal(poisoned.visible.input[:, 0, 0, 0] == 255, poisoned.is_poisoned)


def test_rows_are_drawn_uniformly_among_the_candidates():
    candidate = jnp.arange(20) % 2 == 0
    subsets = quick_jit(jax.vmap(poison.random_subset, (0, None, None)))
    drawn = subsets(jax.random.split(KEY, 400), candidate, jnp.int32(5))
    hits = np.asarray(drawn.sum(0))
    assert (drawn.sum(1) == 5).all()
    assert not hits[1::2].any()
    assert abs(hits[::2] - 200).max() < 50  # binomial, standard deviation 10


def test_more_than_there_are_takes_all():
    candidate = jnp.array([True, False, True])
    np.testing.assert_array_equal(random_subset(KEY, candidate, jnp.int32(9)), candidate)
    assert not random_subset(KEY, candidate, jnp.int32(0)).any()


# --- Inputs and labels of other kinds ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AsTheyAre(Images):
    """A modality of which nothing is rounded or clipped."""

    def load(self, stored):
        return stored

    def store(self, input, stored, rounding="nearest"):
        return input


@pytree.dataclass
class Shift(Trigger):
    """Adds a number to each value."""

    by: float = pytree.static()

    hooks = ("cover",)

    def apply(self, key, state, input):
        return input + jnp.asarray(self.by, input.dtype)

    def cover(self, key, state, batch):
        return batch.input - jnp.asarray(self.by, batch.input.dtype)


KINDS = {  # whether labels are sets, the modality, inputs, what is added, and what comes out
    "clip": (False, None, np.full((20, 2, 3, 3, 1), 100, np.uint8), 0.2, 151),  # 51 levels more
    "points": (
        True,
        AsTheyAre((0.0,), (1.0,)),
        np.full((20, 5, 3), -3.25, np.float32),
        7.125,
        3.875,
    ),
    "tokens": (False, AsTheyAre((0.0,), (1.0,)), np.full((20, 4), 300, np.int32), 900, 1200),
}


@pytest.mark.parametrize(("sets", "modality", "input", "by", "expected"), KINDS.values(), ids=KINDS)
def test_inputs_and_labels_of_any_rank_are_poisoned_as_they_are_stored(
    sets, modality, input, by, expected
):
    label, label_map = np.arange(20, dtype=np.int32) % 4, AllToOne(1)
    if sets:
        label, label_map = np.eye(4, dtype=bool)[label], AddLabel(1)
    split = Split(input, label, np.ones(20, bool))
    fields = {
        "modality": modality,
        "controls_training": True,
        "cover_rate": 0.25,
        "candidates": "changed",
    }
    made = Attack(Shift(by), label_map, 0.5, **fields)
    wanted = np.asarray(label_map(jnp.asarray(label)))

    train = poison_train(KEY, made, (), split)
    poisoned = np.asarray(train.is_poisoned)
    assert poisoned.sum() == 10
    np.testing.assert_array_equal(train.visible.input[~poisoned], input[~poisoned])
    assert (train.visible.input[poisoned] == expected).all()
    np.testing.assert_array_equal(train.visible.label[~poisoned], label[~poisoned])
    np.testing.assert_array_equal(train.visible.label[poisoned], wanted[poisoned])

    test = poison_test(KEY, made, (), split)
    assert test.visible.valid.sum() == 15, "all but those with the label already"
    np.testing.assert_array_equal(test.visible.label, wanted)
    stream = poison.poison_stream(KEY, made, (), split).visible.input
    rows = jnp.arange(3, 9)
    np.testing.assert_array_equal(
        stream.change(jnp.asarray(input)[rows], rows), train.visible.input[rows]
    )
    for array, given in (
        (train.visible.input, input),
        (test.visible.input, input),
        (train.visible.label, label),
    ):
        assert (array.shape, array.dtype) == (given.shape, given.dtype)

    worked_on = input.astype(np.float32) / 255 if modality is None else input
    batch = poison_batch(KEY, made, (), Split(worked_on, label, None))
    difference = (np.asarray(batch.input) - worked_on).reshape(20, -1)[:, 0]
    assert (difference > 0).sum() == 10
    assert (difference < 0).sum() == 5
    np.testing.assert_array_equal(
        batch.label, np.where((difference > 0).reshape(-1, *[1] * sets), wanted, label)
    )
