"""Published values beside our own: cells, and the table of them for the console, Markdown, CSV and LaTeX."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from bdjax import tables
from bdjax.checks import InputError, one_of
from bdjax.published import Value
from bdjax.report import RATES, Record, Statistic

NOT_RUN, NOT_MEASURED = "not run", "not measured"
_ACC, _ASR, _RA, _DER = RATES
_RATES = {"acc": _ACC, "asr": _ASR, "ra": _RA, "lcr": _RA, "der": _DER}
_DROPS = {"acc_drop": _ACC, "asr_drop": _ASR}
_SHARPNESS = {"lambda_max": "largest_eigenvalue", "trace_h": "hessian_trace"}
_HEADS = {
    "acc_drop": "ACC drop",
    "asr_drop": "ASR drop",
    "runtime_s": "seconds",
    "lambda_max": "λ_max",
    "trace_h": "Tr(H)",
}
_PARTS = ("published", "ours", "difference")
_NOTED = "†"


class Cell(NamedTuple):
    """A published value and ours.

    Attributes:
      value: what is published.
      ours: one number for each seed, in the unit of the published one; empty where there is none.
      seeds: of those numbers.
      why: why some or all of ours are missing: ``no defense anp``, ``not run``, ``1 of 3 diverged``.
    """

    value: Value
    ours: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    why: str = ""

    @property
    def statistic(self) -> Statistic:
        """Mean and sample standard deviation of ours; NaN where there is none."""
        if not self.ours:
            return Statistic(math.nan, None)
        return Statistic(statistics.fmean(self.ours), statistics.stdev(self.ours) if len(self.ours) > 1 else None)

    @property
    def difference(self) -> float:
        """Our mean less the published value, in its unit; NaN where there is none of ours."""
        return self.statistic.mean - self.value.value


def measure(record: Record, metric: str) -> float:
    """Return what a run has of a published metric, in its unit; NaN where that was not measured.

    Rates and drops are percentages; ``lcr`` is the robust accuracy; a drop is that by the defense; ``runtime_s`` are
    the defense's seconds without compiling; ``lambda_max`` and ``trace_h`` are those on clean and triggered images,
    half and half, with true labels, which `bdjax smoothness` writes.

    Raises:
        InputError: an unknown metric.
    """
    one_of([*_RATES, *_DROPS, *_SHARPNESS, "runtime_s"], metric=metric)
    if metric in _RATES:
        return 100 * record.value(_RATES[metric])
    if metric in _DROPS:
        return 100 * (record.before[_DROPS[metric]] - record.after[_DROPS[metric]])
    return record.value("run_seconds") if metric == "runtime_s" else record.sharpness()[_SHARPNESS[metric]]


def fill(value: Value, groups: Sequence[Sequence[Record]], why: str = "") -> Cell:
    """Return the cell of a published value and the runs that answer it.

    Args:
      value: what is published.
      groups: its runs, one for each seed; where the value is a mean over attacks, those of each of them. Each seed that
        all groups have gives a number: the mean over the groups.
      why: what is known to be missing.
    """
    measured = [{record.seed: measure(record, value.metric) for record in group} for group in groups]
    seeds = sorted(set.intersection(*map(set, measured))) if measured else []
    ours = tuple(statistics.fmean(of[seed] for of in measured) for seed in seeds)
    if not ours or any(map(math.isnan, ours)):
        return Cell(value, why=why or (NOT_MEASURED if ours else NOT_RUN))
    return Cell(value, ours, tuple(seeds), why)


def table(cells: Sequence[Cell], setting: str, format: str = "console") -> str:
    """Write cells as a table: ``console``, ``markdown``, ``csv`` or ``latex`` (needs the package booktabs).

    Every published value has its place; where ours is missing, the last column says why. In CSV each value has a line
    of its own, all in the published unit.

    Args:
      cells: of one published table.
      setting: what ours were measured in, for the caption.
      format: how to write it.

    Raises:
        InputError: an unknown format, or no cells.
    """
    one_of(_FORMATS, format=format)
    if not cells:
        raise InputError("There are no published values to compare with.")
    return _FORMATS[format](cells, setting)


class _Line(NamedTuple):
    """One attack and defense in one setting: its cells by metric."""

    attack: str
    defense: str
    cells: dict[str, Cell]

    @property
    def why(self) -> str:
        return ", ".join(dict.fromkeys(cell.why for cell in self.cells.values() if cell.why))


def _lines(cells: Sequence[Cell]) -> list[_Line]:
    """Return the lines by attack; settings that differ within the table are part of the names."""
    attack, defense = ("attack", "poison_rate", "dataset", "model"), ("defense", "clean_data")
    varied = {column for column in (*attack, *defense) if len({_of(cell, column) for cell in cells}) > 1}
    lines: dict[tuple[str, str], dict[str, Cell]] = {}
    for cell in cells:
        names = (
            [_of(cell, column) for column in columns if column == columns[0] or column in varied]
            for columns in (attack, defense)
        )
        planted, defended = (" ".join(filter(None, words)) for words in names)
        lines.setdefault((planted, defended), {})[cell.value.metric] = cell
    order = list(dict.fromkeys(attack for attack, _ in lines))
    found = (_Line(attack, defense, of) for (attack, defense), of in lines.items())
    return sorted(found, key=lambda line: order.index(line.attack))


def _of(cell: Cell, column: str) -> str:
    """Return a column of the value; rate and images count only where there is an attack and a defense to have them."""
    value = cell.value
    if (column == "clean_data" and value.clean_data in ("", "poisoned_trainset")) or (
        column == "poison_rate" and value.attack in ("avg", "benign")
    ):
        return ""
    return getattr(value, column)


def _metrics(cells: Iterable[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.value.metric for cell in cells))


def _head(metric: str) -> str:
    return _HEADS.get(metric, metric.upper())


def _written(cell: Cell | None) -> tuple[str, str, str]:
    """Write the published value, ours, and the difference."""
    if cell is None:
        return "", "", ""
    raw = cell.value.metric in ("runtime_s", *_SHARPNESS)
    printed = Statistic(cell.value.value, cell.value.std)
    published = tables.significant(printed) if raw else tables.spread(printed, 2)
    published += _NOTED if cell.value.note else ""
    if not cell.ours:
        return published, "–", ""
    ours = tables.significant(cell.statistic) if raw else tables.spread(cell.statistic)
    return published, f"{ours} ({len(cell.ours)})", f"{cell.difference:+.3g}" if raw else f"{cell.difference:+.1f}"


def _rows(cells: Sequence[Cell]) -> Iterator[list[str]]:
    """Write each line: attack, defense, three columns for each metric, what is missing."""
    metrics = _metrics(cells)
    for line in _lines(cells):
        numbers = (text for metric in metrics for text in _written(line.cells.get(metric)))
        yield [line.attack, line.defense, *numbers, line.why]


def _caption(cells: Sequence[Cell], setting: str) -> str:
    value = cells[0].value
    missing = Counter(cell.why or NOT_RUN for cell in cells if not cell.ours)
    reasons = "; ".join(f"{why} ({number})" for why, number in missing.items())
    noted = any(cell.value.note for cell in cells)
    means = any(cell.value.attack == "avg" for cell in cells)
    sentences = (
        f"{value.paper}, {value.table}. Ours: {setting}",
        "Rates in %, ours as mean ± sample standard deviation (number of seeds); difference: ours − published.",
        "avg: mean over the attacks." if means else "",
        f"{_NOTED}: doubtful as printed; the note stands in the CSV." if noted else "",
        f"{len(cells) - missing.total()} of {len(cells)} values have ours.",
        f"Missing: {reasons}." if missing else "",
    )
    return " ".join(sentence for sentence in sentences if sentence)


def _console(cells: Sequence[Cell], setting: str) -> str:
    heads = ["defense", *(part for _ in _metrics(cells) for part in _PARTS), "missing"]
    rows = list(_rows(cells))
    widths = [max(map(len, column)) for column in zip(heads, *(row[1:] for row in rows), strict=True)]
    groups = (_head(metric).center(sum(widths[1 + 3 * i : 4 + 3 * i]) + 4) for i, metric in enumerate(_metrics(cells)))
    written = ["  ".join([" " * widths[0], *groups]), _aligned(heads, widths)]
    last = None
    for attack, *row in rows:
        written += ["", attack] if attack != last else []
        written.append(_aligned(row, widths))
        last = attack
    caption = textwrap.wrap(_caption(cells, setting), max(79, *map(len, written)))
    return "\n".join(line.rstrip() for line in [*written, "", *caption])


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    words = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *words[1:-1], row[-1]])


def _markdown(cells: Sequence[Cell], setting: str) -> str:
    heads = ["attack", "defense", *(f"{_head(m)} {part}" for m in _metrics(cells) for part in _PARTS), "missing"]
    rule = "| --- | --- |" + " ---: |" * (len(heads) - 3) + " --- |"
    rows = ("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in _rows(cells))
    return "\n".join(["| " + " | ".join(heads) + " |", rule, *rows, "", _caption(cells, setting)])


def _latex(cells: Sequence[Cell], setting: str) -> str:
    metrics, last = _metrics(cells), None
    written = [
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{ll{'rrr' * len(metrics)}l}}",
        r"\toprule",
        " & ".join(["", "", *(rf"\multicolumn{{3}}{{c}}{{{_escape(_head(metric))}}}" for metric in metrics), ""])
        + r" \\",
        " & ".join(["attack", "defense", *_PARTS * len(metrics), "missing"]) + r" \\",
    ]
    for attack, *row in _rows(cells):
        written += [r"\midrule"] if attack != last else []
        written.append(" & ".join(map(_escape, ["" if attack == last else attack, *row])) + r" \\")
        last = attack
    caption = rf"\caption{{{_escape(_caption(cells, setting))}}}"
    return "\n".join([*written, r"\bottomrule", r"\end{tabular}", caption, r"\end{table}"])


def _escape(text: str) -> str:
    return tables.escape_latex(text).replace(_NOTED, r"$^\dagger$").replace("−", "$-$")


def _csv(cells: Sequence[Cell], setting: str) -> str:
    del setting  # no caption
    ours = ("ours", "ours_std", "n", "seeds", "difference")
    lines = []
    for cell in cells:
        *names, published, std, note = cell.value
        values = (*cell.statistic, len(cell.ours), " ".join(map(str, cell.seeds)), cell.difference)
        lines.append([*names, published, std, *(values if cell.ours else [None] * len(ours)), cell.why, note])
    head = [*Value._fields[:-3], "published", "published_std", *ours, "missing", "note"]
    return tables.write_csv(head, lines)


_FORMATS: dict[str, Callable[[Sequence[Cell], str], str]] = {
    "console": _console,
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
}
FORMATS = tuple(_FORMATS)
