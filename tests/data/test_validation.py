"""The part of the holdout that is for validation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdjax.checks import InputError
from bdjax.data import validation
from bdjax.data.validation import validation_split


def divide(label, share=0.1, classes=10):
    """Return the row numbers of the rest and of what is aside."""
    rows = jnp.arange(len(label))
    return map(np.asarray, validation_split(rows, jnp.asarray(label), share, classes))


@pytest.mark.parametrize(("per_class", "of_rest"), [(2, 1), (10, 9), (100, 90)])
def test_published_sizes(per_class, of_rest):
    """O33 and, for two images of each class, D9."""
    label = np.random.default_rng(0).permutation(np.repeat(np.arange(10), per_class))
    rest, aside = divide(label)
    assert np.bincount(label[rest]).tolist() == [of_rest] * 10
    assert np.bincount(label[aside]).tolist() == [per_class - of_rest] * 10


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    label=st.lists(st.integers(0, 3), min_size=12, max_size=12),
    share=st.sampled_from([0.0, 0.4, 0.7]),
)
def test_nothing_is_lost_or_doubled_and_classes_are_as_even_as_they_can_be(label, share):
    rest, aside = divide(np.array(label), share, classes=4)
    assert sorted([*rest, *aside]) == list(range(12))
    assert len(aside) == 4 * max(1, int(share * 12 / 4))
    taken, there = np.bincount(np.array(label)[aside], minlength=4), np.bincount(label, minlength=4)
    for a in range(4):
        for b in range(4):
            # Nobody gives more but for who has no more
            assert taken[a] <= taken[b] + 1 or taken[b] == there[b]


def test_trees_are_divided_together_and_under_jit():
    label = jnp.arange(9) % 3
    examples = {"image": jnp.arange(18.0).reshape(9, 2), "label": label}
    divided = validation_split(examples, label, 0.4, 3)
    assert divided[1]["label"].tolist() == [0, 1, 2]
    assert divided[1]["image"][:, 0].tolist() == [0.0, 2.0, 4.0]
    compiled = jax.jit(lambda examples, label: validation_split(examples, label, 0.4, 3))(
        examples, label
    )
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, compiled, divided)))


@pytest.mark.parametrize(("rows", "share"), [(10, 0.0), (10, 0.1), (3, 0.5), (20, 0.99)])
def test_something_must_be_left(rows, share):
    label = np.arange(rows) % 10
    if rows == 20:
        assert [len(part) for part in divide(label, share)] == [10, 10]
        return
    with pytest.raises(
        InputError, match=rf"the holdout must have more than 10 images.*got {rows}\."
    ):
        divide(label, share)


def test_no_group_is_on_both_sides_and_the_smallest_go_first():
    label = np.repeat([0, 1, 2], [6, 4, 2])
    group = np.array([0, 0, 0, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    rows = validation.grouped_rows(
        label, group, 0.25, 3
    )  # one of each class, or the smallest group that has it
    assert rows.tolist() == [3, 6, 7]


def test_a_class_of_one_group_each_has_nothing_for_validation():
    with pytest.raises(InputError, match="no class has two groups"):
        validation.grouped_rows(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), 0.25, 2)
