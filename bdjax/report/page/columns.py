"""The columns of the summary table: what each holds, in words, as text and as a value to sort by."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from bdjax.report.cells import count, significant, spread, stealth_cells
from bdjax.report.page.content import percent
from bdjax.report.records import SHARPNESS, STEALTH
from bdjax.report.rows import Row
from bdjax.report.statistics import Statistic
from bdjax.runs.soundness import LOW_ATTACK_SUCCESS
from bdjax.tasks.metrics import ATTACK, RATING, RESTORED, UTILITY, Metric, first


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of numbers: its head, what it is in words, and a row's cell, value to sort by, and published metric."""

    head: str
    words: str
    cell: Callable[[Row], str]
    value: Callable[[Row], float]
    class_: str = ""  # of style.css
    metric: str = ""  # as `bdjax.report.comparison.named` has it
    is_rating: bool = False  # whether the best and the second best are marked in it


_CLASSES = {UTILITY: "rate bar good", ATTACK: "rate bar bad", RESTORED: "rate", RATING: "rate der"}


def _of_metric(metric: Metric, is_rating: bool) -> Column:
    def cell(row: Row) -> str:
        return spread(row.statistics[metric.name], 1, 100)

    def value(row: Row) -> float:
        return 100 * row.statistics[metric.name].mean

    words = f"{metric.words} (%)"
    return Column(
        metric.head, words, cell, value, _CLASSES[metric.role], metric.head.lower(), is_rating
    )


def _low(attack: Metric) -> Column:
    """Return the column that counts the runs without an attack that is left."""
    return Column(
        f"{attack.head} < {percent(LOW_ATTACK_SUCCESS)}",
        f"runs whose {attack.words} is so low",
        lambda row: f"{round(row.n * row.low_attack_success_share)} of {row.n}",
        lambda row: row.low_attack_success_share,
    )


_N = Column(
    "n", "number of runs, each with its own seed", lambda row: str(row.n), lambda row: row.n
)
_COSTS = (
    Column(
        "seconds",
        "the defense's run without compiling",
        lambda row: spread(row.run_seconds),
        lambda row: row.run_seconds.mean,
    ),
    Column(
        "gradients",
        "gradient evaluations of the defense",
        lambda row: count(row.gradient_evaluations),
        lambda row: row.gradient_evaluations.mean,
    ),
)
_SHARPNESS = {
    "largest_eigenvalue": ("λ_max", "largest eigenvalue of the loss's Hessian after the defense"),
    "hessian_trace": ("Tr(H)", "trace of the loss's Hessian after the defense"),
    "fisher_trace": ("Tr(F)", "trace of the loss's Fisher matrix after the defense"),
}
_STEALTH = {
    "psnr": ("PSNR", "of images with and without the trigger (dB)"),
    "ssim": ("SSIM", "structural similarity of images with and without the trigger"),
    "linf": ("ℓ∞", "largest change of a pixel in [0, 1]"),
    "l2": ("ℓ2", "Euclidean length of the trigger's change"),
    "changed_share": ("changed", "share of pixels that the trigger changes (%)"),
}


def columns(rows: Sequence[Row]) -> list[Column]:
    """Return the columns of numbers; of smoothness and stealth those that were measured of any row."""
    metrics = rows[0].metrics
    rating = first(metrics, RATING)
    chosen = [_of_metric(metric, metric is rating) for metric in metrics]
    chosen += [_N, _low(first(metrics, ATTACK)), *_COSTS]
    for name in SHARPNESS:
        if _is_known(row.sharpness[name] for row in rows):
            chosen.append(_of_sharpness(name))
    for name in STEALTH:
        if _is_known(row.stealth[name] for row in rows):
            chosen.append(_of_stealth(name))
    return chosen


def _is_known(statistics: Iterable[Statistic]) -> bool:
    return not all(math.isnan(statistic.mean) for statistic in statistics)


def _of_sharpness(name: str) -> Column:
    def cell(row: Row) -> str:
        return significant(row.sharpness[name])

    head, words = _SHARPNESS[name]
    return Column(head, words, cell, lambda row: row.sharpness[name].mean)


def _of_stealth(name: str) -> Column:
    def cell(row: Row) -> str:
        return stealth_cells(row)[STEALTH.index(name)]

    head, words = _STEALTH[name]
    return Column(head, words, cell, lambda row: row.stealth[name].mean, "stealth")
