"""Which rows: counts by hand (oracle O33), independence of everything but the key, padding that is not valid."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest

from bdjax.checks import InputError
from bdjax.data import splits
from bdjax.types import Split


def split_of(labels, valid=None) -> Split:
    """A split whose every image carries its own row number."""
    labels = np.asarray(labels, np.int32)
    image = np.arange(len(labels), dtype=np.float32).reshape(-1, 1, 1, 1)
    return Split(image, labels, np.ones(len(labels), bool) if valid is None else np.asarray(valid))  # pyright: ignore


@pytest.fixture(scope="module")
def gtsrb_like() -> Split:
    """39,209 rows in 43 unequal classes, the size of GTSRB."""
    weight = np.linspace(1, 10, 43)
    counts = np.floor(39209 * weight / weight.sum()).astype(int)
    counts[-1] += 39209 - counts.sum()
    return split_of(np.random.default_rng(0).permutation(np.repeat(np.arange(43), counts)))


def test_balanced_holdout_of_gtsrb_is_1935(gtsrb_like):
    rows = splits.holdout(jax.random.key(0), gtsrb_like, share=0.05, num_classes=43)
    assert len(rows) == 1935
    assert (np.bincount(gtsrb_like.label[rows], minlength=43) == 45).all()


def test_unbalanced_holdout_of_gtsrb_is_1960(gtsrb_like):
    rows = splits.holdout(jax.random.key(0), gtsrb_like, share=0.05, balanced=False, num_classes=43)
    assert len(rows) == 1960
    assert len(set(rows.tolist())) == 1960
    assert len(np.unique(np.bincount(gtsrb_like.label[rows]))) > 1


def test_balanced_holdout_of_cifar10_is_250_each():
    cifar = split_of(np.repeat(np.arange(10), 5000))
    rows = splits.holdout(jax.random.key(0), cifar, share=0.05, num_classes=10)
    assert (np.bincount(cifar.label[rows]) == 250).all()


def test_per_class_and_rising_order():
    split = split_of(np.arange(100) % 4)
    rows = splits.holdout(jax.random.key(1), split, per_class=7, num_classes=4)
    assert (np.bincount(split.label[rows]) == 7).all()
    assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize("share", [0.29, 0.07, 0.57, 0.58])
def test_a_share_that_is_whole_but_for_rounding_counts_as_whole(share):
    rows = splits.holdout(
        jax.random.key(0), split_of(np.zeros(100)), share=share, balanced=False, num_classes=1
    )
    assert len(rows) == round(100 * share)


def test_holdout_depends_on_the_key_and_nothing_else():
    split = split_of(np.arange(1000) % 10)
    draw = [
        splits.holdout(jax.random.key(seed), split, share=0.1, num_classes=10) for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert not np.array_equal(draw[0], draw[2])


def test_holdout_is_uniform_within_a_class():
    split = split_of(np.arange(20) % 2)
    hits = np.zeros(20)
    for seed in range(300):
        hits[splits.holdout(jax.random.key(seed), split, per_class=5, num_classes=2)] += 1
    assert abs(hits - 150).max() < 40  # binomial, standard deviation 8.7


def test_holdout_never_draws_a_padding_row():
    split = split_of(np.arange(40) % 2, valid=np.arange(40) < 20)
    assert splits.holdout(jax.random.key(0), split, per_class=10, num_classes=2).tolist() == list(
        range(20)
    )
    assert (
        len(splits.holdout(jax.random.key(0), split, share=0.5, balanced=False, num_classes=2))
        == 10
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "exactly one of share and per_class"),
        ({"share": 0.1, "per_class": 1}, "exactly one of share and per_class"),
        ({"share": 1.5}, "share must lie between 0 and 1, got 1.5"),
        (
            {"share": 0.0},
            "share must be at least 0.038835, which is one image of each of 4 classes from 103; got 0.0",
        ),
        (
            {"share": 0.001, "balanced": False},
            "share must be at least 0.009709, which is one image from 103",
        ),
        ({"per_class": 0}, "per_class must be 1 or more"),
        ({"per_class": True}, "per_class must be a whole number"),
        (
            {"per_class": 4},
            "per_class must be at most 3: class 'dog' has only 3 of the 4 images .* got 4; a share",
        ),
        (
            {"share": 0.5},
            "share must be at most 0.116505: class 'dog' has only 3 of the 12 .*--holdout.balanced false",
        ),
        ({"per_class": 2, "balanced": False}, "balanced=False has no meaning with per_class"),
    ],
)
def test_holdout_refuses(options, words):
    split = split_of([0] * 40 + [1] * 30 + [2] * 30 + [3] * 3)
    with pytest.raises(InputError, match=words):
        splits.holdout(
            jax.random.key(0),
            split,
            num_classes=4,
            class_names=("ant", "bee", "cat", "dog"),
            **options,
        )


@pytest.mark.parametrize(
    ("label", "options", "words"),
    [
        (
            [0] * 50 + [1],
            {"share": 0.5},
            "share cannot draw images of each class, as class 2 has none; a share with",
        ),
        (
            [0] * 50 + [1],
            {"per_class": 1},
            "per_class cannot draw images of each class, as class 2 has none; a share",
        ),
        (
            [0, 1],
            {"share": 0.5},
            "share cannot draw an image of each of 3 classes from 2; with balanced=False",
        ),
        ([], {"share": 0.5, "balanced": False}, "share cannot draw from a split without images"),
    ],
)
def test_holdout_refuses_what_no_share_could_draw(label, options, words):
    with pytest.raises(InputError, match=words):
        splits.holdout(jax.random.key(0), split_of(label), num_classes=3, **options)


@pytest.mark.parametrize("counts", [(40, 30, 30, 3), (60, 60, 4), (7, 1), (211, 500, 97)])
def test_the_shares_that_are_named_would_do(counts):
    """The least share draws one image of each class, and the most as many as the smallest class has."""
    split = split_of(np.repeat(np.arange(len(counts)), counts))

    def drawn(share):
        return splits.holdout(jax.random.key(0), split, share=share, num_classes=len(counts))

    for wrong, each in ((1e-4, 1), (1.0, min(counts))):
        with pytest.raises(InputError) as refused:
            drawn(wrong)
        share = float(re.findall(r"[\d.]+\d", str(refused.value))[0])
        assert np.bincount(split.label[drawn(share)]).tolist() == [each] * len(counts)


def test_a_share_whatever_the_class_is_drawn_from_a_set_with_a_rare_one():
    split = split_of([0] * 40 + [1] * 30 + [2] * 30 + [3] * 3)
    rows = splits.holdout(jax.random.key(0), split, share=0.5, balanced=False, num_classes=4)
    assert len(set(rows.tolist())) == 51


def test_take_and_exclude_part_the_split():
    split = split_of(np.arange(50) % 5)
    rows = splits.holdout(jax.random.key(0), split, per_class=3, num_classes=5)
    inside, outside = splits.take(split, rows), splits.exclude(split, rows)
    np.testing.assert_array_equal(inside.input.ravel(), rows)
    assert sorted([*inside.input.ravel(), *outside.input.ravel()]) == list(range(50))
    np.testing.assert_array_equal(outside.label, outside.input.ravel() % 5)


@pytest.mark.parametrize("function", [splits.take, splits.exclude])
@pytest.mark.parametrize("row", [-1, 4])
def test_rows_that_are_not_there_are_refused(function, row):
    with pytest.raises(InputError, match=f"row {row} is not there: the split has rows 0 to 3"):
        function(split_of([0, 1, 0, 1]), np.array([0, row]))


def test_subset_keeps_the_proportions_and_the_size():
    split = split_of([0] * 50 + [1] * 30 + [2] * 20)
    rows = splits.subset(jax.random.key(0), split, 10, num_classes=3)
    assert np.bincount(split.label[rows]).tolist() == [5, 3, 2]
    for size in (1, 7, 33, 99, 100):
        rows = splits.subset(jax.random.key(0), split, size, num_classes=3)
        assert len(set(rows.tolist())) == size
        assert (
            abs(np.bincount(split.label[rows], minlength=3) - size * np.array([0.5, 0.3, 0.2])) < 1
        ).all()


def test_subset_depends_on_the_key():
    split = split_of(np.arange(100) % 2)
    draw = [splits.subset(jax.random.key(seed), split, 50, num_classes=2) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert not np.array_equal(draw[0], draw[2])


@pytest.mark.parametrize("size", [0, 101, True])
def test_subset_refuses_a_size(size):
    with pytest.raises(InputError, match="size must be"):
        splits.subset(jax.random.key(0), split_of(np.arange(100) % 2), size, num_classes=2)


@pytest.mark.parametrize(
    ("rows", "multiple", "padded"), [(10, 4, 12), (12, 4, 12), (1, 128, 128), (5, 1, 5)]
)
def test_pad(rows, multiple, padded):
    split = split_of(np.ones(rows))
    result = splits.pad(split, multiple)
    assert [len(array) for array in result] == [padded] * 3
    assert result.valid.tolist() == [True] * rows + [False] * (padded - rows)
    assert [array.dtype for array in result] == [array.dtype for array in split]
    np.testing.assert_array_equal(result.input[:rows], split.input)


def test_pad_refuses_a_multiple_of_zero():
    with pytest.raises(InputError, match="multiple must be 1 or more, got 0"):
        splits.pad(split_of([0]), 0)


def test_groups_are_drawn_whole_but_for_the_last_of_a_class():
    split, group = split_of(np.arange(60) % 2), np.arange(60) // 2 % 10 * 2 + np.arange(60) % 2
    rows = splits.holdout(jax.random.key(0), split, per_class=7, num_classes=2, group=group)
    assert np.bincount(split.label[rows]).tolist() == [7, 7]
    _, counts = np.unique(group[rows], return_counts=True)  # of three rows each
    assert sorted(counts.tolist()) == [1, 1, 3, 3, 3, 3]
    whole = splits.whole_groups(rows, group)
    assert len(whole) == 18
    assert set(rows) < set(whole)


def test_a_share_of_groups_is_as_large_as_one_of_rows(gtsrb_like):
    group = np.arange(39_209) // 30
    rows = splits.holdout(
        jax.random.key(0), gtsrb_like, share=0.05, balanced=False, num_classes=43, group=group
    )
    assert len(rows) == 1960
    assert len(np.unique(group[rows])) == 66
