"""Tables as text: lines of cells with marks and notes, for the console, Markdown and LaTeX."""

from __future__ import annotations

import dataclasses
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bdjax.checks import one_of

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
        columns[grid.marked] = [
            cell + sign for cell, sign in zip(columns[grid.marked], signs, strict=True)
        ]
        heads[grid.marked] += "  "
    widths = [max(map(len, (head, *column))) for head, column in zip(heads, columns, strict=True)]
    text = io.StringIO()
    # as wide as the numbers need, whatever the terminal: a cut number would be worse than a broken line
    console = Console(file=text, width=10_000, force_terminal=sys.stdout.isatty(), highlight=False)
    printed = iter(zip(*columns, strict=True))
    for title, group in grid.groups.items():
        shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for i, (head, width) in enumerate(zip(heads, widths, strict=True)):
            shown.add_column(
                Text(head),
                justify="left" if i in grid.words else "right",
                min_width=width,
                no_wrap=True,
            )
        for line, cells in zip(group, printed, strict=False):
            written = list(map(Text, cells))
            if line.mark == SECOND:
                cell = cells[grid.marked]
                written[grid.marked].stylize(
                    "underline", len(cell) - len(cell.lstrip()), len(cell) - 2
                )
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
    rule = ["---"] * len(front) + [
        "---" if i in grid.words else "---:" for i in range(len(grid.heads))
    ]
    written = [[*front, *map(_escaped, grid.heads)], rule]
    for title, group in grid.groups.items():
        for line in group:
            cells = list(map(_escaped, line.cells))
            if line.mark:
                cells[grid.marked] = _MARKDOWN[line.mark].format(cells[grid.marked])
            written.append([*([_escaped(title)] if front else []), *cells])
    lines = ["| " + " | ".join(cells) + " |" for cells in written]
    for note in grid.noted:
        lines += ["", _escaped(note)]
    return "\n".join([*lines, "", grid.described("bold", "underlined")])


def _escaped(text: str) -> str:
    """Return text that Markdown prints as it is."""
    return _MARKUP.sub(r"\\\g<0>", text)


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
    columns = "l" * len(front) + "".join(
        "l" if i in grid.words else "r" for i in range(len(grid.heads))
    )
    written = [
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        heads,
    ]
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
    pieces = (
        "".join(_LATEX.get(character, character) for character in piece)
        for piece in text.split("λ_max")
    )
    return r"$\lambda_{\max}$".join(pieces)


_WRITERS: dict[str, Callable[[Grid], str]] = {
    "console": _console,
    "markdown": _markdown,
    "latex": _latex,
}
# Of tables; the third is of `bdjax.report.values`
FORMATS = ("console", "markdown", "csv", "latex")
