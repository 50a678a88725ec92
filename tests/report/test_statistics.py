"""Intervals, paired tests and ranks: by hand, and against SciPy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bdjax.report import statistics

RATES = st.lists(st.integers(0, 400).map(lambda count: count / 400), min_size=2, max_size=8)
DIFFERENCES = st.lists(st.integers(-9, 9), min_size=1, max_size=8)


def test_mean_and_deviation_by_hand():
    assert statistics.statistic([0.05, 0.1, 0.3]) == pytest.approx((0.15, 0.0175**0.5))
    assert statistics.statistic([0.4]) == (0.4, None)
    mean, std = statistics.statistic([0.4, math.nan])
    assert math.isnan(mean)
    assert std is None


# --- Interval ---


@pytest.mark.parametrize("values", [[0.9], [], [0.5, math.nan, 0.7]])
def test_there_is_no_interval_of_one_value_or_of_none(values):
    assert statistics.interval(values) is None


@pytest.mark.parametrize("values", [[0.2, 0.9], [0.0, 0.02, 1.0], [0.1 + 0.2] * 5])
def test_of_three_values_or_equal_ones_the_interval_is_their_range(values):
    # the least of 2 or 3 values is drawn each time with probability 1/4 or 1/27, which is more than 2.5 %
    assert statistics.interval(values) == (min(values), max(values))


def test_the_interval_of_two_values_among_six_by_hand():
    # the mean is k/6 with k binomial(6, 1/6): P(k = 0) = 33 %, P(k <= 2) = 93.8 %, P(k <= 3) = 99.1 %
    assert statistics.interval([0, 0, 1, 0, 0, 0]) == pytest.approx((0, 3 / 6))


def test_the_interval_is_scipys():
    values = np.random.default_rng(1).beta(0.3, 0.3, 12)  # bimodal, as attack success rates are
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert statistics.interval(values.tolist()) == pytest.approx(
        (theirs.low, theirs.high), abs=0.01
    )


@given(values=RATES, data=st.data())
@settings(max_examples=30, deadline=None)
def test_the_interval_holds_the_mean_stays_in_range_and_forgets_the_order(values, data):
    low, high = statistics.interval(values)
    assert min(values) <= low <= np.mean(values) + 1e-12
    assert np.mean(values) - 1e-12 <= high <= max(values)
    assert statistics.interval(data.draw(st.permutations(values))) == (low, high)


# --- Paired test ---


def test_sign_flip_by_hand():
    # sums of ±1 ±2 ±3: 6 4 2 0 0 -2 -4 -6; as far from zero as 4: four of eight
    assert statistics.sign_flip([-1, 2, 3]) == (0.5, 0.25, True)
    assert statistics.sign_flip([1, 2, 3]) == (0.25, 0.25, True)
    assert statistics.sign_flip([0.3]) == (1.0, 1.0, True)


def test_differences_of_zero_decide_nothing():
    assert statistics.sign_flip([0, 5, 0, -1, 0.0]) == statistics.sign_flip([5, -1])
    assert statistics.sign_flip([0.0, 0.0]) == (1.0, 1.0, True)
    assert statistics.sign_flip([]) == (1.0, 1.0, True)


def test_what_is_not_known_has_no_p():
    found = statistics.sign_flip([0.5, math.nan, 0.5])
    assert math.isnan(found.p)
    assert math.isnan(found.smallest_p)


def test_five_pairs_can_never_reach_five_per_cent_and_six_can():
    assert statistics.sign_flip([1.0] * 5).p == 0.0625
    assert statistics.sign_flip([1.0] * 6).p == 0.03125


def test_sums_that_agree_but_for_rounding_count_as_equal():
    assert statistics.sign_flip([0.1, 0.2, -0.3]) == (1.0, 0.25, True)


@given(differences=DIFFERENCES)
@settings(max_examples=50, deadline=None)
def test_sign_flip_is_the_share_of_all_assignments_and_symmetric(differences):
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    found = statistics.sign_flip(differences)
    assert found.p == pytest.approx(np.mean(np.asarray(sums) >= abs(sum(differences))))
    assert found.smallest_p <= found.p <= 1
    assert statistics.sign_flip([-difference for difference in differences]) == found


def test_sign_flip_is_scipys_exact_and_random():
    rng = np.random.default_rng(3)
    for count in (9, 30):
        first, second = rng.normal(0.3, 1, count), rng.normal(0, 1, count)
        options = {"permutation_type": "samples", "n_resamples": 20_000, "vectorized": True}
        theirs = stats.permutation_test(
            (first, second),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            rng=np.random.default_rng(4),
            **options,
        )
        ours = statistics.sign_flip((first - second).tolist())
        assert ours.exact == (count <= statistics.EXACT_PAIRS)
        assert ours.p == pytest.approx(theirs.pvalue, abs=1e-9 if ours.exact else 0.01)


def test_a_random_test_never_gives_zero():
    found = statistics.sign_flip([1.0] * 40)
    assert found == (1e-4, 1e-4, False)


# --- Ranks ---


def test_ranks_by_hand():
    assert statistics.ranks([0.5, 0.9, 0.7, 0.9, math.nan]) == [4, 1.5, 3, 1.5, 5]
    assert statistics.ranks([]) == []


@given(values=st.lists(st.integers(0, 5), max_size=8))
@settings(max_examples=50, deadline=None)
def test_ranks_are_scipys(values):
    assert statistics.ranks(values) == pytest.approx(
        list(stats.rankdata(np.negative(values), method="average"))
    )
