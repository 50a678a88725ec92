"""Tables of summed-up runs: for the console, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bdjax.checks import InputError, one_of
from bdjax.files.printable import printable
from bdjax.report.rows import (
    COSTS,
    RATES,
    SECTIONS,
    STEALTH,
    SYMBOLS,
    Row,
    best,
    common,
    notes,
    runners_up,
    target_classes,
    victims,
)
from bdjax.report.uncertainty import RESAMPLES, Interval, Statistic
from bdjax.runs import soundness


def table(rows: Sequence[Row], format: str = "console", decimals: int = 1) -> str:
    """Write rows as a table: ``console``, ``markdown``, ``csv`` or ``latex`` (needs the package booktabs).

    Printed rates are percentages with ``decimals`` digits; CSV has full names and unrounded values in [0, 1]. The best
    mean DER of each victim is bold and the second best underlined; a console without either still shows * and +. Where
    no attack took, or a network is at chance (`bdjax.runs.soundness`), there is no best, but a ‡ and a note below, or a
    column of notes. What rows have beyond rates and cost (sharpness, stealth, intervals, ranges) gets columns of its
    own.

    Raises:
        InputError: an unknown format, or no rows.
    """
    one_of(FORMATS, format=format)
    if not rows:
        raise InputError("There are no rows to write a table of.")
    return _csv(rows) if format == "csv" else write(_grid(rows, decimals), format)


# --- Cells -----------------------------------------------------------------------------------------------------------


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


ABBREVIATIONS: dict[str, str] = dict(zip(RATES, ("ACC", "ASR", "RA", "DER"), strict=True))
_HEADS = (*ABBREVIATIONS.values(), "n", "seconds", "gradients")
_SHARPNESS_HEADS = ("λ_max", "Tr(H)", "Tr(F)")
_STEALTH_HEADS = ("PSNR", "SSIM", "ℓ∞", "ℓ2", "changed")
_WITH_INTERVAL = ("clean_accuracy", "attack_success_rate", "defense_effectiveness_rating")
_INTERVAL_HEADS = (*(f"{ABBREVIATIONS[name]} 95 %" for name in _WITH_INTERVAL), "ASR < 10 %")
_SMALLEST = 1e-3  # below it a mean is written with an exponent


def _heads(rows: Sequence[Row]) -> list[str]:
    heads = [*_HEADS]
    heads += [*_SHARPNESS_HEADS] if any(row.sharpness for row in rows) else []
    heads += [*_STEALTH_HEADS] if any(row.stealth for row in rows) else []
    heads += [*_INTERVAL_HEADS] if any(row.intervals for row in rows) else []
    return heads + [f"{ABBREVIATIONS[rate]} over {_short(option)}" for option, rate in _ranges(rows)]


def _ranges(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the swept options and, for each, the rates whose ranges rows have."""
    return list(dict.fromkeys((option, rate) for row in rows for option, of in row.ranges.items() for rate in of))


def _short(option: str) -> str:
    name = option.removeprefix("defense.").removeprefix("attack.")
    return SYMBOLS.get(name, name)


def _cells(row: Row, ranges: Iterable[tuple[str, str]], decimals: int) -> list[str]:
    rates = [spread(getattr(row, name), decimals, 100) for name in RATES]
    sharpness = [significant(statistic) for statistic in row.sharpness.values()]
    cost = (spread(row.run_seconds), count(row.gradient_evaluations))
    cells = [*rates, str(row.n), *cost, *sharpness, *stealth_cells(row)]
    if row.intervals:
        cells += [bounds(row.intervals[name], decimals, 100) for name in _WITH_INTERVAL]
        cells.append(f"{round(row.low_attack_success_share * row.n)}/{row.n}")
    widths = [row.ranges.get(option, {}).get(rate, math.nan) for option, rate in ranges]
    return cells + [spread(Statistic(width, None), decimals, 100) for width in widths]


def _grid(rows: Sequence[Row], decimals: int) -> Grid:
    ranges = _ranges(rows)
    marks = dict.fromkeys(runners_up(rows), SECOND) | dict.fromkeys(best(rows), BEST)
    marks |= {row: UNSOUND for row in rows if row.is_marked}
    groups = {
        title: [Line([row.defense, *_cells(row, ranges, decimals)], marks.get(row, "")) for row in group]
        for title, group in victims(rows).items()
    }
    heads = ["defense", *_heads(rows)]
    meaning = ("highest mean DER of each attack", "second highest")
    return Grid("attack", heads, groups, _caption(rows), heads.index("DER"), meaning, notes=notes(rows))


def _caption(rows: Sequence[Row]) -> str:
    where = common(rows)
    seeds = "mean ± sample standard deviation over n seeds" if any(row.n > 1 for row in rows) else "one seed"
    sharpness = (
        "λ_max, Tr(H), Tr(F): largest eigenvalue and trace of the loss's Hessian and trace of its Fisher matrix after "
        "the defense, on clean and triggered test images, half and half, with true labels. "
        if any(row.sharpness for row in rows)
        else ""
    )
    stealth = (
        "PSNR (dB), SSIM, ℓ∞, ℓ2 (pixels in [0, 1]), changed pixels (%): of the trigger on test images. "
        if any(row.stealth for row in rows)
        else ""
    )
    intervals = (
        f"95 %: bootstrap percentile interval of the mean ({RESAMPLES} resamples; of two or three seeds, their range). "
        "ASR < 10 %: runs that come so low. "
        if any(row.intervals for row in rows)
        else ""
    )
    ranges = ", ".join(_short(option) for option in dict.fromkeys(option for option, _ in _ranges(rows)))
    targets = f", {named}" if (named := target_classes(rows)) else ""
    return (
        f"{where}{': ' if where else ''}{seeds}. ACC: clean accuracy (% of {_denominator(rows, 'clean_total')} test "
        f"images). ASR, RA: attack success rate and robust accuracy (% of {_denominator(rows, 'attack_total')} "
        f"triggered ones){targets}. DER: defense effectiveness rating (%). seconds: the defense's run without "
        "compiling. gradients: of a batch's loss that the defense computed. "
        f"{sharpness}{stealth}{intervals}"
        + (f"Over {ranges}: largest less smallest of the means over its values (points). " if ranges else "")
    ).rstrip()


def _denominator(rows: Sequence[Row], which: str) -> str:
    """Write a denominator, or those of each attack where they differ."""
    titles: dict[str, dict[str, None]] = {}
    for title, group in victims(rows).items():
        for row in group:
            titles.setdefault("/".join(map(str, getattr(row, which))), {})[title] = None
    if len(titles) == 1:
        return next(iter(titles))
    return "; ".join(f"{total} for {', '.join(of)}" for total, of in titles.items())


# --- Print -----------------------------------------------------------------------------------------------------------

BEST, SECOND, UNSOUND = "best", "second", "unsound"
SIGN = "‡"  # of what is unsound, in the cells and before the notes


class Line(NamedTuple):
    """The cells of one line and its mark: ``BEST``, ``SECOND``, ``UNSOUND`` or none."""

    cells: Sequence[str]
    mark: str = ""


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table as text, to be written in any format but CSV.

    Attributes:
      group: head of the column that names the groups.
      heads: of the other columns.
      groups: the lines under their titles; a single group without a title has no such column.
      caption: what stands below.
      marked: the column whose cells show the marks of their lines.
      meaning: what the two marks mean, for the caption.
      words: the columns that hold words and stand on the left; the others hold numbers.
      notes: what is wrong with the lines that are marked ``UNSOUND``, each a line below the table.
    """

    group: str
    heads: Sequence[str]
    groups: Mapping[str, Sequence[Line]]
    caption: str
    marked: int = 0
    meaning: tuple[str, str] = ("", "")
    words: tuple[int, ...] = (0,)
    notes: Sequence[str] = ()

    @property
    def lines(self) -> list[Line]:
        """Return the lines of all groups."""
        return [line for group in self.groups.values() for line in group]

    def described(self, best: str, second: str) -> str:
        """Return the caption with what the marks look like, where there are any."""
        marks = {line.mark for line in self.lines}
        caption = f"{self.caption} {SIGN}: {_OUT}" if UNSOUND in marks else self.caption
        if BEST not in marks:
            return caption
        also = f", {second}: {self.meaning[1]}" if SECOND in marks else ""
        return f"{caption} {best[:1].upper()}{best[1:]}: {self.meaning[0]}{also}."

    @property
    def noted(self) -> list[str]:
        """Return the notes as they stand below the table."""
        return [f"{SIGN} {note}." for note in self.notes]


def write(grid: Grid, format: str) -> str:
    """Write a grid as text for the ``console``, as ``markdown``, or as ``latex`` (needs the package booktabs)."""
    one_of(_WRITERS, format=format)
    return _WRITERS[format](grid)


_OUT = "no place among the best or in ranks, and an attack that is none in no mean over attacks."
_STARS = {BEST: " *", SECOND: " +", UNSOUND: f" {SIGN}"}


def _console(grid: Grid) -> str:
    columns = [
        column if i in grid.words else _aligned(column)
        for i, column in enumerate(zip(*(line.cells for line in grid.lines), strict=True))
    ]
    heads = list(grid.heads)
    if any(line.mark for line in grid.lines):
        # signs survive where bold and underlined print does not
        signs = (_STARS.get(line.mark, "  ") for line in grid.lines)
        columns[grid.marked] = [cell + sign for cell, sign in zip(columns[grid.marked], signs, strict=True)]
        heads[grid.marked] += "  "
    widths = [max(map(len, (head, *column))) for head, column in zip(heads, columns, strict=True)]
    text = io.StringIO()
    # as wide as the numbers need, whatever the terminal: a cut number would be worse than a broken line
    console = Console(file=text, width=10_000, force_terminal=sys.stdout.isatty(), highlight=False)
    printed = iter(zip(*columns, strict=True))
    for title, group in grid.groups.items():
        shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for i, (head, width) in enumerate(zip(heads, widths, strict=True)):
            shown.add_column(Text(head), justify="left" if i in grid.words else "right", min_width=width, no_wrap=True)
        for line, cells in zip(group, printed, strict=False):
            written = list(map(Text, cells))
            if line.mark == SECOND:
                cell = cells[grid.marked]
                written[grid.marked].stylize("underline", len(cell) - len(cell.lstrip()), len(cell) - 2)
            shown.add_row(*written, style="bold" if line.mark == BEST else "")
        console.print(*([Text(title, "bold")] if title else []), shown, "")
    width = max(79, sum(widths) + 2 * (len(widths) - 1))
    for note in grid.noted:
        console.print(Text(note), width=width)
    console.print(Text(grid.described("*", "+"), "dim"), width=width)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _aligned(column: Sequence[str]) -> list[str]:
    """Pad cells such as ``6.2 ± 5.7`` so that ± stands below ±."""
    parts = [cell.partition(" ± ") for cell in column]
    width = max(len(std) for *_, std in parts)
    return [f"{mean}{sign or '   '}{std:>{width}}" if width else mean for mean, sign, std in parts]


_MARKDOWN = {BEST: "**{}**", SECOND: "<u>{}</u>", UNSOUND: f"{{}} {SIGN}"}
# what Markdown would take for its own
_MARKUP = re.compile(r"[\\`*|~]|(?<!\w)_|_(?!\w)|<(?=[a-zA-Z/!?])|&(?=#?\w+;)|\](?=\()")


def _markdown(grid: Grid) -> str:
    front = [grid.group] if "" not in grid.groups else []
    rule = ["---"] * len(front) + ["---" if i in grid.words else "---:" for i in range(len(grid.heads))]
    written = [[*front, *grid.heads], rule]
    for title, group in grid.groups.items():
        for line in group:
            cells = [_MARKUP.sub(r"\\\g<0>", cell) for cell in line.cells]
            if line.mark:
                cells[grid.marked] = _MARKDOWN[line.mark].format(cells[grid.marked])
            written.append([*([_MARKUP.sub(r"\\\g<0>", title)] if front else []), *cells])
    lines = ["| " + " | ".join(cells) + " |" for cells in written]
    for note in grid.noted:
        lines += ["", _MARKUP.sub(r"\\\g<0>", note)]
    return "\n".join([*lines, "", grid.described("bold", "underlined")])


_LATEX_MARKS = {BEST: r"\textbf{%s}", SECOND: r"\underline{%s}", UNSOUND: r"%s$^\ddagger$"}
_LATEX = {character: "\\" + character for character in "_%&#${}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "|": r"\textbar{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    "ℓ": r"$\ell$",
    "∞": r"$\infty$",
    "ρ": r"$\rho$",
    "α": r"$\alpha$",
    "γ": r"$\gamma$",
    "η": r"$\eta$",
    "·": r"$\cdot$",
    "†": r"$^\dagger$",
    SIGN: r"$^\ddagger$",
    "–": "--",
}


def _latex(grid: Grid) -> str:
    front = [grid.group] if "" not in grid.groups else []
    heads = " & ".join(map(escape_latex, [*front, *grid.heads])) + r" \\"
    columns = "l" * len(front) + "".join("l" if i in grid.words else "r" for i in range(len(grid.heads)))
    written = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", heads]
    for title, group in grid.groups.items():
        written.append(r"\midrule")
        for i, line in enumerate(group):
            cells = list(map(escape_latex, line.cells))
            if line.mark:
                cells[grid.marked] = _LATEX_MARKS[line.mark] % cells[grid.marked]
            text = " & ".join([*([escape_latex(title) if i == 0 else ""] if front else []), *cells])
            # after the \\ of the line before, [ and * would be its arguments
            written.append(("{}" if text[:1] in ("[", "*") else "") + text + r" \\")
    words = " ".join([*grid.noted, grid.described("bold", "underlined")])
    caption = rf"\caption{{{escape_latex(words)}}}"
    return "\n".join([*written, r"\bottomrule", r"\end{tabular}", caption, r"\end{table}"])


def escape_latex(text: str) -> str:
    """Return text that LaTeX prints as it is."""
    pieces = ("".join(_LATEX.get(character, character) for character in piece) for piece in text.split("λ_max"))
    return r"$\lambda_{\max}$".join(pieces)


_WRITERS: dict[str, Callable[[Grid], str]] = {"console": _console, "markdown": _markdown, "latex": _latex}
FORMATS = ("console", "markdown", "csv", "latex")


# --- Values ----------------------------------------------------------------------------------------------------------


def _csv(rows: Sequence[Row]) -> str:
    settings = list(dict.fromkeys(key for row in rows for key in row.settings))
    asked = tuple(dict.fromkeys(name for row in rows for name in (*row.sharpness, *row.stealth)))
    measured = [f"{name}_{part}" for name in RATES + COSTS + asked for part in Statistic._fields]
    head = [*SECTIONS, *settings, "n", "seeds", *measured, "low_attack_success_share", "clean_total", "attack_total"]
    more = _more_columns(rows)
    lines = []
    for row in rows:
        values = [value for name in RATES + COSTS for value in getattr(row, name)]
        measures = {**row.sharpness, **row.stealth}
        values += [None if math.isnan(value or 0) else value for name in asked for value in measures[name]]
        names = [row.name(section) for section in SECTIONS]
        front = [*names, *(row.settings.get(key) for key in settings), row.n, _joined(row.seeds)]
        totals = [_joined(row.clean_total), _joined(row.attack_total)]
        own = [value(row) for value in more.values()]
        lines.append([*front, *values, row.low_attack_success_share, *totals, *own])
    return write_csv([*head, *more], lines)


def _more_columns(rows: Sequence[Row]) -> dict[str, Callable[[Row], float | str | None]]:
    """Return the columns of intervals, ranges, mean ranks and notes that rows have, and how each is read from a row."""
    columns: dict[str, Callable[[Row], float | str | None]] = {}
    if any(row.intervals for row in rows):
        for name in RATES:
            for part in Interval._fields:
                columns[f"{name}_{part}"] = lambda row, name=name, part=part: getattr(row.intervals[name], part, None)
    for option, rate in _ranges(rows):
        columns[f"{rate}_range_over_{option}"] = lambda row, option=option, rate=rate: row.ranges.get(option, {}).get(
            rate
        )
    if any(row.mean_rank is not None for row in rows):
        columns["mean_rank"] = lambda row: row.mean_rank
    if any(row.is_marked for row in rows):
        columns["notes"] = lambda row: "; ".join(soundness.told(row.faults))
    return columns


def _joined(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


def write_csv(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Write lines as CSV text; None is an empty field.

    A text that a spreadsheet would take for a formula gets an apostrophe before it, as OWASP advises (CSV injection);
    numbers stay what they are.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_harmless, head))
    writer.writerows([_harmless(cell) for cell in line] for line in lines)
    return text.getvalue().rstrip("\n")


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _harmless(cell: Any) -> Any:
    """Return a cell whose text, if it is one, is nothing but text."""
    if not isinstance(cell, str):
        return cell
    return ("'" if cell.startswith(_FORMULA) else "") + printable(cell)
