"""Tables of summed-up runs: for the console, Markdown, CSV and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from bdjax.checks import InputError, one_of
from bdjax.report import values
from bdjax.report.cells import bounds, count, significant, spread, stealth_cells
from bdjax.report.grid import BEST, FORMATS, SECOND, UNSOUND, Grid, Line, write
from bdjax.report.labels import short
from bdjax.report.rows import Row, by_task, common, is_repeated, victims
from bdjax.report.standing import best, notes, runners_up, target_classes
from bdjax.report.statistics import RESAMPLES, Statistic
from bdjax.report.values import ranges
from bdjax.tasks.metrics import ATTACK, RATING, UTILITY, Metric, of_roles

_COSTS = ("n", "seconds", "gradients")
_SHARPNESS = ("λ_max", "Tr(H)", "Tr(F)")
_STEALTH = ("PSNR", "SSIM", "ℓ∞", "ℓ2", "changed")
_WITH_INTERVAL = (UTILITY, ATTACK, RATING)  # the metrics that have one


def table(rows: Sequence[Row], format: str = "console", decimals: int = 1) -> str:
    """Write rows as a table: ``console``, ``markdown``, ``csv`` or ``latex`` (needs the package booktabs).

    Printed rates are percentages with ``decimals`` digits; CSV has full names and unrounded values in [0, 1]. The best
    mean rating of each victim is bold and the second best underlined; a console without either still shows * and +.
    Where no attack took, or a network is at chance (`bdjax.runs.soundness`), there is no best, but a ‡ and a note
    below, or a column of notes. What rows have beyond metrics and cost (sharpness, stealth, intervals, ranges) gets
    columns of its own. Runs of tasks with different metrics have a table each, one below the other; in CSV, which is
    one table, they leave the columns of the others empty.

    Raises:
        InputError: an unknown format, or no rows.
    """
    one_of(FORMATS, format=format)
    if not rows:
        raise InputError("There are no rows to write a table of.")
    if format == "csv":
        return values.table(rows)
    return for_each_task(rows, lambda own: write(_grid(own, decimals), format))


def for_each_task(rows: Sequence[Row], table: Callable[[Sequence[Row]], str]) -> str:
    """Write a table for each kind of task among the rows, under a line that says so where there are several."""
    kinds = by_task(rows)
    written = [table(own) for own in kinds]
    if said := of_several_tasks(kinds):
        written.insert(0, said)
    return "\n\n".join(written)


def of_several_tasks(kinds: Sequence[Sequence[Row]]) -> str:
    """Say that rows are of tasks that are measured differently, so that they share no table; nothing of one task."""
    if len(kinds) < 2:
        return ""
    measured = [", ".join(metric.head for metric in own[0].metrics) for own in kinds]
    return f"These runs are of {len(kinds)} tasks with different metrics, which share no table: {'; '.join(measured)}."


def _grid(rows: Sequence[Row], decimals: int) -> Grid:
    swept = ranges(rows)
    marks = dict.fromkeys(runners_up(rows), SECOND) | dict.fromkeys(best(rows), BEST)
    marks |= {row: UNSOUND for row in rows if row.is_marked}
    groups: dict[str, list[Line]] = {}
    for title, group in victims(rows).items():
        for row in group:
            line = Line([row.defense, *_cells(row, swept, decimals)], marks.get(row, ""))
            groups.setdefault(title, []).append(line)
    heads = ["defense", *_heads(rows, swept)]
    rating = rows[0].metric(RATING).head
    meaning = (f"highest mean {rating} of each attack", "second highest")
    return Grid(
        "attack", heads, groups, _caption(rows), heads.index(rating), meaning, notes=notes(rows)
    )


def _heads(rows: Sequence[Row], swept: Iterable[tuple[str, str]]) -> list[str]:
    metrics = rows[0].metrics
    named = {metric.name: metric.head for metric in metrics}
    heads = [*named.values(), *_COSTS]
    heads += _SHARPNESS if any(row.sharpness for row in rows) else ()
    heads += _STEALTH if any(row.stealth for row in rows) else ()
    if any(row.intervals for row in rows):
        heads += [f"{metric.head} 95 %" for metric in of_roles(metrics, *_WITH_INTERVAL)]
        heads.append(f"{rows[0].metric(ATTACK).head} < 10 %")
    return heads + [f"{named[name]} over {short(option)}" for option, name in swept]


def _cells(row: Row, swept: Iterable[tuple[str, str]], decimals: int) -> list[str]:
    cells = [spread(statistic, decimals, 100) for statistic in row.statistics.values()]
    cells += [str(row.n), spread(row.run_seconds), count(row.gradient_evaluations)]
    cells += [significant(statistic) for statistic in row.sharpness.values()]
    cells += stealth_cells(row)
    if row.intervals:
        for metric in of_roles(row.metrics, *_WITH_INTERVAL):
            cells.append(bounds(row.intervals[metric.name], decimals, 100))
        cells.append(f"{round(row.low_attack_success_share * row.n)}/{row.n}")
    for option, name in swept:
        width = row.ranges.get(option, {}).get(name, math.nan)
        cells.append(spread(Statistic(width, None), decimals, 100))
    return cells


# --- Captions --------------------------------------------------------------------------------------------------------


def _caption(rows: Sequence[Row]) -> str:
    """Say what all rows share, and what stands in the columns."""
    where = common(rows)
    seeds = "mean ± sample standard deviation over n seeds" if is_repeated(rows) else "one seed"
    sentences = [f"{where}{': ' if where else ''}{seeds}."]
    sentences += _of_metrics(rows)
    sentences.append("seconds: the defense's run without compiling.")
    sentences.append("gradients: of a batch's loss that the defense computed.")
    if any(row.sharpness for row in rows):
        sentences.append(
            "λ_max, Tr(H), Tr(F): largest eigenvalue and trace of the loss's Hessian and trace of its Fisher matrix "
            "after the defense, on clean and triggered test images, half and half, with true labels."
        )
    if any(row.stealth for row in rows):
        sentences.append(
            "PSNR (dB), SSIM, ℓ∞, ℓ2 (pixels in [0, 1]), changed pixels (%): of the trigger on test images."
        )
    if any(row.intervals for row in rows):
        sentences.append(
            f"95 %: bootstrap percentile interval of the mean ({RESAMPLES} resamples; of two or three seeds, their "
            f"range). {rows[0].metric(ATTACK).head} < 10 %: runs that come so low."
        )
    if swept := dict.fromkeys(short(option) for option, _ in ranges(rows)):
        sentences.append(
            f"Over {', '.join(swept)}: largest less smallest of the means over its values (points)."
        )
    return " ".join(sentences)


def _of_metrics(rows: Sequence[Row]) -> list[str]:
    """Say what the heads of the metrics mean, and of how many inputs they are; together what has the same inputs."""
    alike: dict[tuple[str, bool], list[Metric]] = {}
    for metric in rows[0].metrics:
        alike.setdefault((metric.total, bool(metric.part)), []).append(metric)
    sentences = []
    for (total, is_share), metrics in alike.items():
        heads = ", ".join(metric.head for metric in metrics)
        words = " and ".join(metric.words for metric in metrics)
        roles = {metric.role for metric in metrics}
        inputs = "test images" if UTILITY in roles else "triggered ones"
        of = f" {'of' if is_share else 'on'} {_total(rows, total)} {inputs}" if total else ""
        targets = f", {named}" if ATTACK in roles and (named := target_classes(rows)) else ""
        sentences.append(f"{heads}: {words} (%{of}){targets}.")
    return sentences


def _total(rows: Sequence[Row], name: str) -> str:
    """Write how many test inputs there are, or those of each attack where they differ."""
    titles: dict[str, dict[str, None]] = {}
    for title, group in victims(rows).items():
        for row in group:
            titles.setdefault("/".join(map(str, row.totals(name))), {})[title] = None
    if len(titles) == 1:
        return next(iter(titles))
    return "; ".join(f"{total} for {', '.join(of)}" for total, of in titles.items())
