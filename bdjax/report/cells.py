"""Numbers as the cells of tables print them."""

from __future__ import annotations

import math

from bdjax.report.records import STEALTH
from bdjax.report.rows import Row
from bdjax.report.statistics import Interval, Statistic

_SMALLEST = 1e-3  # below it a mean is written with an exponent


def spread(statistic: Statistic, decimals: int = 1, scale: float = 1.0) -> str:
    """Write ``mean ± std`` of values times ``scale``; one run has no ±, and an undefined value is a dash."""
    if math.isnan(statistic.mean):
        return "–"
    mean = f"{scale * statistic.mean:.{decimals}f}"
    return mean if statistic.std is None else f"{mean} ± {scale * statistic.std:.{decimals}f}"


def significant(statistic: Statistic) -> str:
    """Write ``mean ± std`` with three significant digits of the mean, whatever its size."""
    mean, std = statistic
    if math.isnan(mean):
        return "–"
    if 0 < abs(mean) < _SMALLEST:
        return f"{mean:.2e}" if std is None else f"{mean:.2e} ± {std:.2e}"
    return spread(statistic, max(0, 2 - math.floor(math.log10(abs(mean)))) if mean else 2)


def count(statistic: Statistic) -> str:
    """Write a mean count, which is one number where all seeds agree."""
    same = statistic.std in (None, 0) and float(statistic.mean).is_integer()
    return f"{statistic.mean:,.0f}" if same else spread(statistic, 0)


def bounds(interval: Interval | None, decimals: int = 1, scale: float = 1.0) -> str:
    """Write ``[low, high]`` of values times ``scale``; a dash where there is no interval."""
    if interval is None:
        return "–"
    low, high = (f"{scale * bound:.{decimals}f}" for bound in interval)
    return f"[{low}, {high}]"


def stealth_cells(row: Row) -> list[str]:
    """Return the cells of a row's stealth numbers: PSNR, SSIM, ℓ∞, ℓ2, and the share of changed pixels in per cent."""
    if not row.stealth:
        return []
    psnr, ssim, linf, l2, changed = (row.stealth[name] for name in STEALTH)
    return [spread(psnr), spread(ssim, 3), spread(linf, 3), spread(l2, 2), spread(changed, 1, 100)]
