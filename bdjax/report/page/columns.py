"""The columns of the summary table: what each holds, in words, as text and as a value to sort by."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

from bdjax.report.page.content import percent
from bdjax.report.rows import LOW_ATTACK_SUCCESS, SHARPNESS, STEALTH, Row
from bdjax.report.tables import count, significant, spread, stealth_cells
from bdjax.report.uncertainty import Statistic


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of numbers: its head, what it is in words, and a row's cell, value to sort by, and published metric."""

    head: str
    words: str
    cell: Callable[[Row], str]
    value: Callable[[Row], float]
    class_: str = ""  # of style.css
    metric: str = ""  # of bdjax.report.published


def _rate(head: str, words: str, name: str, class_: str = "") -> Column:
    def cell(row: Row) -> str:
        return spread(getattr(row, name), 1, 100)

    return Column(head, words, cell, lambda row: 100 * getattr(row, name).mean, f"rate {class_}".strip(), head.lower())


_RATES = (
    _rate("ACC", "clean accuracy (%)", "clean_accuracy", "bar good"),
    _rate("ASR", "attack success rate (%)", "attack_success_rate", "bar bad"),
    _rate("RA", "robust accuracy (%)", "robust_accuracy"),
    _rate("DER", "defense effectiveness rating (%)", "defense_effectiveness_rating", "der"),
)


_COUNTS = (
    Column("n", "number of runs, each with its own seed", lambda row: str(row.n), lambda row: row.n),
    Column(
        f"ASR < {percent(LOW_ATTACK_SUCCESS)}",
        "runs whose attack success rate is so low",
        lambda row: f"{round(row.n * row.low_attack_success_share)} of {row.n}",
        lambda row: row.low_attack_success_share,
    ),
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
    chosen = [*_RATES, *_COUNTS]
    for name in SHARPNESS:
        if any(not math.isnan(row.sharpness[name].mean) for row in rows):
            head, words = _SHARPNESS[name]
            of = functools.partial(_of, "sharpness", name)
            chosen.append(Column(head, words, lambda row, of=of: significant(of(row)), lambda row, of=of: of(row).mean))
    for place, name in enumerate(STEALTH):
        if any(not math.isnan(row.stealth[name].mean) for row in rows):
            head, words = _STEALTH[name]
            of = functools.partial(_of, "stealth", name)
            cell = functools.partial(_stealth_cell, place)
            chosen.append(Column(head, words, cell, lambda row, of=of: of(row).mean, "stealth"))
    return chosen


def _of(group: str, name: str, row: Row) -> Statistic:
    return getattr(row, group)[name]


def _stealth_cell(place: int, row: Row) -> str:
    return stealth_cells(row)[place]
