"""Tables of summed-up runs: for the console, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bdjax.checks import InputError, one_of
from bdjax.report import COSTS, RATES, SECTIONS, STEALTH, Row, Statistic, best, common, victims


def table(rows: Sequence[Row], format: str = "console", decimals: int = 1) -> str:
    """Write rows as a table: ``console``, ``markdown``, ``csv`` or ``latex`` (needs the package booktabs).

    Printed rates are percentages with ``decimals`` digits; CSV has full names and unrounded values in [0, 1].

    Raises:
        InputError: an unknown format, or no rows.
    """
    one_of(_FORMATS, format=format)
    if not rows:
        raise InputError("There are no rows to write a table of.")
    return _FORMATS[format](rows, decimals)


def spread(statistic: Statistic, decimals: int = 1, scale: float = 1.0) -> str:
    """Write ``mean ± std`` of values times ``scale``; one run has no ±, and an undefined value is a dash."""
    if math.isnan(statistic.mean):
        return "–"
    mean = f"{scale * statistic.mean:.{decimals}f}"
    return mean if statistic.std is None else f"{mean} ± {scale * statistic.std:.{decimals}f}"


_HEADS = ("ACC", "ASR", "RA", "DER", "n", "seconds")
_DER = _HEADS.index("DER")
_SHARPNESS_HEADS = ("λ_max", "Tr(H)", "Tr(F)")
_STEALTH_HEADS = ("PSNR", "SSIM", "ℓ∞", "ℓ2", "changed")
_SMALLEST = 1e-3  # below it a mean is written with an exponent


def significant(statistic: Statistic) -> str:
    """Write ``mean ± std`` with three significant digits of the mean, whatever its size."""
    mean, std = statistic
    if math.isnan(mean):
        return "–"
    if 0 < abs(mean) < _SMALLEST:
        return f"{mean:.2e}" if std is None else f"{mean:.2e} ± {std:.2e}"
    return spread(statistic, max(0, 2 - math.floor(math.log10(abs(mean)))) if mean else 2)


def _heads(rows: Sequence[Row]) -> tuple[str, ...]:
    more = _SHARPNESS_HEADS if any(row.sharpness for row in rows) else ()
    return _HEADS + more + (_STEALTH_HEADS if any(row.stealth for row in rows) else ())


def _cells(row: Row, decimals: int) -> list[str]:
    rates = [spread(getattr(row, name), decimals, 100) for name in RATES]
    sharpness = [significant(statistic) for statistic in row.sharpness.values()]
    return [*rates, str(row.n), spread(row.run_seconds), *sharpness, *stealth_cells(row)]


def stealth_cells(row: Row) -> list[str]:
    """Return the cells of a row's stealth numbers: PSNR, SSIM, ℓ∞, ℓ2, and the share of changed pixels in per cent."""
    if not row.stealth:
        return []
    psnr, ssim, linf, l2, changed = (row.stealth[name] for name in STEALTH)
    return [spread(psnr), spread(ssim, 3), spread(linf, 3), spread(l2, 2), spread(changed, 1, 100)]


def _caption(rows: Sequence[Row], mark: str) -> str:
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
    return (
        f"{where}{': ' if where else ''}{seeds}. ACC: clean accuracy (% of {_denominator(rows, 'clean_total')} test "
        f"images). ASR, RA: attack success rate and robust accuracy (% of {_denominator(rows, 'attack_total')} "
        f"triggered ones). DER: defense effectiveness rating (%). seconds: the defense's run without compiling. "
        f"{sharpness}{stealth}{mark}: highest mean DER of each attack."
    )


def _denominator(rows: Sequence[Row], which: str) -> str:
    """Write a denominator, or those of each attack where they differ."""
    titles: dict[str, dict[str, None]] = {}
    for title, group in victims(rows).items():
        for row in group:
            titles.setdefault("/".join(map(str, getattr(row, which))), {})[title] = None
    if len(titles) == 1:
        return next(iter(titles))
    return "; ".join(f"{total} for {', '.join(of)}" for total, of in titles.items())


def _console(rows: Sequence[Row], decimals: int) -> str:
    marked = best(rows)
    heads = ["defense", *_heads(rows)]
    columns = [
        [row.defense for row in rows],
        *map(_aligned, zip(*(_cells(row, decimals) for row in rows), strict=True)),
    ]
    # a star survives where bold does not
    columns[1 + _DER] = [
        cell + (" *" if row in marked else "  ") for row, cell in zip(rows, columns[1 + _DER], strict=True)
    ]
    heads[1 + _DER] += "  "
    widths = [max(map(len, (head, *column))) for head, column in zip(heads, columns, strict=True)]
    cells = dict(zip(rows, zip(*columns, strict=True), strict=True))
    text = io.StringIO()
    # as wide as the numbers need, whatever the terminal: a cut number would be worse than a broken line
    console = Console(file=text, width=10_000, force_terminal=sys.stdout.isatty(), highlight=False)
    for title, group in victims(rows).items():
        grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for head, width in zip(heads, widths, strict=True):
            grid.add_column(head, justify="left" if head == "defense" else "right", min_width=width, no_wrap=True)
        for row in group:
            grid.add_row(*map(Text, cells[row]), style="bold" if row in marked else "")
        console.print(Text(title, "bold"), grid, "")
    console.print(Text(_caption(rows, "*"), "dim"), width=max(79, sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _aligned(column: Sequence[str]) -> list[str]:
    """Pad cells such as ``6.2 ± 5.7`` so that ± stands below ±."""
    parts = [cell.partition(" ± ") for cell in column]
    width = max(len(std) for *_, std in parts)
    return [f"{mean}{sign or '   '}{std:>{width}}" if width else mean for mean, sign, std in parts]


def _markdown(rows: Sequence[Row], decimals: int) -> str:
    marked = best(rows)
    heads = _heads(rows)
    written = ["| attack | defense | " + " | ".join(heads) + " |", "| --- | --- |" + " ---: |" * len(heads)]
    for title, group in victims(rows).items():
        for row in group:
            cells = [cell.replace("|", "\\|") for cell in (title, row.defense, *_cells(row, decimals))]
            if row in marked:
                cells[2 + _DER] = f"**{cells[2 + _DER]}**"
            written.append("| " + " | ".join(cells) + " |")
    return "\n".join([*written, "", _caption(rows, "Bold")])


def _latex(rows: Sequence[Row], decimals: int) -> str:
    marked, written = best(rows), []
    for title, group in victims(rows).items():
        written.append(r"\midrule")
        for row in group:
            cells = [_escape(cell) for cell in (title if row is group[0] else "", row.defense, *_cells(row, decimals))]
            if row in marked:
                cells[2 + _DER] = rf"\textbf{{{cells[2 + _DER]}}}"
            written.append(" & ".join(cells) + r" \\")
    heads = " & ".join(map(_escape, ("attack", "defense", *_heads(rows)))) + r" \\"
    columns = "ll" + "r" * len(_heads(rows))
    top = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", heads]
    caption = rf"\caption{{{_escape(_caption(rows, 'Bold'))}}}"
    return "\n".join([*top, *written, r"\bottomrule", r"\end{tabular}", caption, r"\end{table}"])


_LATEX = {character: "\\" + character for character in "_%&#${}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "ℓ": r"$\ell$",
    "∞": r"$\infty$",
    "ρ": r"$\rho$",
    "α": r"$\alpha$",
    "γ": r"$\gamma$",
    "η": r"$\eta$",
    "·": r"$\cdot$",
    "–": "--",
}


def _escape(text: str) -> str:
    pieces = ("".join(_LATEX.get(character, character) for character in piece) for piece in text.split("λ_max"))
    return r"$\lambda_{\max}$".join(pieces)


def _csv(rows: Sequence[Row], decimals: int) -> str:
    del decimals  # nothing is rounded
    settings = list(dict.fromkeys(key for row in rows for key in row.settings))
    asked = tuple(dict.fromkeys(name for row in rows for name in (*row.sharpness, *row.stealth)))
    measured = [f"{name}_{part}" for name in RATES + COSTS + asked for part in Statistic._fields]
    head = [*SECTIONS, *settings, "n", "seeds", *measured, "low_attack_success_share", "clean_total", "attack_total"]
    lines = []
    for row in rows:
        values = [value for name in RATES + COSTS for value in getattr(row, name)]
        more = {**row.sharpness, **row.stealth}
        values += [None if math.isnan(value or 0) else value for name in asked for value in more[name]]
        names = [row.name(section) for section in SECTIONS]
        front = [*names, *(row.settings.get(key) for key in settings), row.n, _joined(row.seeds)]
        totals = [_joined(row.clean_total), _joined(row.attack_total)]
        lines.append([*front, *values, row.low_attack_success_share, *totals])
    return write_csv(head, lines)


def _joined(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


def write_csv(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Write lines as CSV text; None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return text.getvalue().rstrip("\n")


_FORMATS: dict[str, Callable[[Sequence[Row], int], str]] = {
    "console": _console,
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
}
FORMATS = tuple(_FORMATS)
