"""The anomaly index by hand, where it cannot be told, and what is said of it."""

from __future__ import annotations

import numpy as np
import pytest

from bdjax.checks import InputError
from bdjax.defenses import _inversion_words as words
from bdjax.defenses._anomaly import anomaly
from bdjax.defenses._inversion import Inverted

NORMS = (10.0, 12.0, 11.0, 13.0, 2.0)  # median 11, deviations 1 1 0 2 9, whose median is 1


def found(*norm: float, **changed: object) -> Inverted:
    """Return what an inversion of images of 8 by 8 pixels might find."""
    classes = len(norm)
    mask = np.full((classes, 8, 8), np.array(norm, np.float32)[:, None, None] / 64)
    pattern, success = np.ones((classes, 8, 8, 3), np.float32), np.full(classes, 0.97, np.float32)
    return Inverted(
        mask, pattern, np.array(norm, np.float32), success, np.ones(classes, bool)
    )._replace(**changed)


def test_the_index_is_the_distance_from_the_median_over_the_deviation():
    odd = anomaly(np.array(NORMS))
    assert odd.median == 11
    assert odd.deviation == pytest.approx(1.4826)
    np.testing.assert_allclose(odd.index, np.array([1, 1, 0, 2, 9]) / 1.4826)
    assert odd.suspects == (4,)
    assert not odd.reason


def test_a_large_norm_is_no_suspect_and_of_two_the_smaller_comes_first():
    assert anomaly(np.array([10.0, 12.0, 11.0, 13.0, 40.0])).suspects == ()
    assert anomaly(np.array([10.0, 4.0, 12.0, 11.0, 13.0, 2.0, 11.5])).suspects == (5, 1)


def test_a_larger_bound_has_fewer_suspects():
    assert anomaly(np.array(NORMS), bound=6.1).suspects == ()


@pytest.mark.parametrize(
    ("norm", "reason"),
    [((10.0, 11.0, 12.0, 1.0), "4 classes"), ((9.0, 9.0, 9.0, 2.0, 12.0), "the same size")],
)
def test_it_says_where_nothing_can_be_told(norm, reason):
    odd = anomaly(np.array(norm))
    assert reason in odd.reason
    assert odd.suspects == ()
    assert np.isnan(odd.index).all()
    assert reason in words.sentences(found(*norm))
    assert "index" not in words.sentences(found(*norm))


@pytest.mark.parametrize("norm", [[], [1.0, np.nan], [1.0, -1.0]])
def test_norms_that_are_none_are_refused(norm):
    with pytest.raises(InputError, match="norm must be one finite number, 0 or more, for each"):
        anomaly(np.array(norm))


def test_the_words_name_the_suspect_with_size_success_and_index():
    said = words.sentences(found(*NORMS), ["a", "b", "c", "d", "e\x1b[2J"])
    assert said == (
        "Suspect: class 'e\\x1b[2J': 2.0 pixels (3.1% of the image), which sends 97% of the other "
        "classes' images there, anomaly index 6.1. The other classes need 10.0 to 13.0 pixels."
    )


def test_the_words_name_the_smallest_trigger_where_no_class_stands_out():
    said = words.sentences(found(10, 12, 11, 13, 9))
    assert said.startswith("No class stands out by an anomaly index above 2: triggers have 9.0 to ")
    assert "class 4: 9.0 pixels (14.1% of the image)" in said
    assert "anomaly index 1.3" in said


MISSING = found(*NORMS, found=np.array([True] * 4 + [False]))  # the fifth's norm is the start's


def test_a_class_without_a_trigger_counts_as_the_whole_image_and_is_no_suspect():
    np.testing.assert_array_equal(MISSING.size, [10, 12, 11, 13, 64])
    assert not any(line.is_suspect for line in words.lines(MISSING))
    said = words.sentences(MISSING)
    assert said.startswith(
        "No class stands out by an anomaly index above 2: triggers have 10.0 to 13.0 pixels (median 11.5);"
    )
    assert "the smallest is that of class 0" in said
    assert said.endswith("For 1 of 5 classes none smaller than the search's start was found.")
    assert "for class 4 went from 2.0 pixels to none found." in words.compared(
        found(*NORMS), MISSING
    )
    none = words.sentences(MISSING._replace(found=np.zeros(5, bool)))
    assert none.endswith("was found for any of 5 classes.")
    most = MISSING._replace(found=np.array([True] * 2 + [False] * 3))
    assert "for half of the classes or more none was found" in words.sentences(most)


def test_before_and_after_are_compared_and_the_limits_said():
    said = words.compared(found(*NORMS), found(10, 12, 11, 13, 9))
    assert "The smallest trigger found for class 4 went from 2.0 to 9.0 pixels." in said
    assert said.startswith("Before: Suspect")
    assert "\nAfter: No class" in said
    assert said.endswith(words.LIMITS)
    assert "not a proof" in said


def test_lines_hold_norms_beside_indices():
    made = words.lines(found(*NORMS))
    assert [line.name for line in made] == [f"class {number}" for number in range(5)]
    assert [line.is_suspect for line in made] == [False] * 4 + [True]
    assert made[4].pixels == 2
    assert made[4].index == pytest.approx(9 / 1.4826)
