"""What a few runs can say about a method: mean and deviation, interval, paired test, ranks; on plain numbers.

Attack success rates are bimodal: a backdoor is gone or it is there, and a mean of 50 % is one of each. A t-test and the
interval mean ± 1.96 standard errors take such values for samples of a normal distribution, which with a handful of
seeds no central limit repairs: they reach beyond [0, 1], and call significant or not what is a matter of one run. So
intervals resample the runs, tests flip the signs of paired differences, which assumes nothing but that under the null
hypothesis a difference is as likely as its opposite, and methods are compared by ranks. None of it makes evidence of
three runs; `SignFlip.smallest_p` says so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000  # of the bootstrap
EXACT_PAIRS = 20  # up to which all signs are tried
DRAWS = 9_999  # of signs, for more pairs
_QUANTILE = 1.959964  # of a normal distribution, two-sided, 5 %
SEED = 0  # of both, the same for every row, so that a number does not depend on its neighbors


class Statistic(NamedTuple):
    """Mean over seeds and sample standard deviation (n - 1), which one run does not have."""

    mean: float
    std: float | None


class Interval(NamedTuple):
    """The 95 % interval of a mean."""

    low: float
    high: float


class SignFlip(NamedTuple):
    """Outcome of a paired test: its two-sided p, the smallest p that such pairs can give, and how it was found."""

    p: float
    smallest_p: float
    exact: bool


def statistic(values: Sequence[float]) -> Statistic:
    """Return mean and sample standard deviation; NaN without one if any value is NaN."""
    if any(map(math.isnan, values)):
        return Statistic(math.nan, None)  # statistics.stdev fails on it, in Python 3.11
    return Statistic(
        statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
    )


def interval(values: Sequence[float]) -> Interval | None:
    """Return the bootstrap percentile interval of the mean, None of fewer than two values or if one is NaN.

    The 2.5 % and 97.5 % quantiles of the means of ``RESAMPLES`` samples of n values, drawn with replacement (Efron,
    Bootstrap Methods, 1979). It stays within the values, so rates stay within [0, 1]; of two or three values it *is*
    their range, and it covers the true mean less often than 95 %. Bias correction (BCa) is undefined where all values
    agree, and with so few runs it corrects by what it cannot know.
    """
    if len(values) < 2 or any(map(math.isnan, values)):
        return None
    ordered = np.sort(np.asarray(values, float))  # in any order the same interval
    rows = np.random.default_rng(SEED).integers(0, len(ordered), (RESAMPLES, len(ordered)))
    low, high = np.quantile(ordered[rows].mean(1), (0.025, 0.975))
    # the mean of equal values may round to either side of them
    return Interval(*(float(bound) for bound in np.clip((low, high), ordered[0], ordered[-1])))


def wilson(part: int, whole: int) -> Interval:
    """Return the 95 % score interval of a share of independent cases (Wilson, 1927), which stays within [0, 1].

    >>> low, high = wilson(90, 100)
    >>> round(low, 3), round(high, 3)
    (0.826, 0.945)
    """
    share, square = part / whole, _QUANTILE**2 / whole
    center = (share + square / 2) / (1 + square)
    half = math.sqrt(square * share * (1 - share) + square**2 / 4) / (1 + square)
    low, high = center - half, center + half
    return Interval(low if part else 0.0, high if part < whole else 1.0)  # but for rounding


def sign_flip(differences: Sequence[float]) -> SignFlip:
    """Test whether paired differences center on zero: Fisher's randomization test with flipped signs, two-sided.

    p is the share of the 2^m assignments of signs to the m differences that are not zero whose sum is at least as far
    from zero as the one observed. Differences of zero decide nothing. Of more than ``EXACT_PAIRS``, p = (1 + c) /
    (1 + ``DRAWS``), where c of that many random assignments are as far (Phipson and Smyth, 2010). The smallest p is
    2^(1 - m), that of differences which all have one sign; for p < 0.05 it takes six. A difference that is NaN makes
    both NaN.
    """
    if any(map(math.isnan, differences)):
        return SignFlip(math.nan, math.nan, True)
    moved = np.asarray([difference for difference in differences if difference], float)
    if not moved.size:
        return SignFlip(1.0, 1.0, True)
    # Sums that are equal but for rounding count
    least = abs(moved.sum()) - 1e-9 * np.abs(moved).sum()
    if moved.size <= EXACT_PAIRS:
        sums = moved[:1]  # with the first sign fixed: the other half mirrors this one
        for difference in moved[1:]:
            sums = np.concatenate([sums + difference, sums - difference])
        return SignFlip(float(np.mean(np.abs(sums) >= least)), 2.0 ** (1 - moved.size), True)
    signs = 1 - 2 * np.random.default_rng(SEED).integers(0, 2, (DRAWS, moved.size), dtype=np.int8)
    far = int((np.abs(signs @ moved) >= least).sum())
    return SignFlip((1 + far) / (1 + DRAWS), 1 / (1 + DRAWS), False)


def ranks(values: Sequence[float]) -> list[float]:
    """Return each value's rank, 1 for the highest; equal values share the mean of their ranks, NaN comes last."""
    ordered = [-math.inf if math.isnan(value) else value for value in values]
    above = [sum(other > value for other in ordered) for value in ordered]
    return [
        count + (ordered.count(value) + 1) / 2 for count, value in zip(above, ordered, strict=True)
    ]
