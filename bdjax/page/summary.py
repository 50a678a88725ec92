"""The summary table: a row for each defense of each victim, what papers report beside it, and its runs below it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from xml.etree.ElementTree import Element

from bdjax.page import compared, runs
from bdjax.page.content import Content, count, percent
from bdjax.page.markup import Content as Markup
from bdjax.page.markup import add, data_uri, tag
from bdjax.report import LOW_ATTACK_SUCCESS, SHARPNESS, STEALTH, Row, Statistic
from bdjax.tables import significant, spread, stealth_cells, table

_FILTERS = (("data", "data"), ("model", "network"), ("attack", "attack"), ("defense", "defense"))
_DOWNLOADS = (
    ("CSV", "csv", "csv", "text/csv"),
    ("Markdown", "markdown", "md", "text/markdown"),
    ("LaTeX", "latex", "tex", "application/x-tex"),
)


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of numbers: its head, what it is in words, and a row's cell, value to sort by, and published metric."""

    head: str
    words: str
    cell: Callable[[Row], str]
    value: Callable[[Row], float]
    class_: str = ""  # of style.css
    metric: str = ""  # of bdjax.published


def _rate(head: str, words: str, name: str, class_: str = "") -> Column:
    def cell(row: Row) -> str:
        return spread(getattr(row, name), 1, 100)

    return Column(head, words, cell, lambda row: 100 * getattr(row, name).mean, f"rate {class_}".strip(), head.lower())


_RATES = (
    _rate("ACC", "clean accuracy (%)", "clean_accuracy", "good"),
    _rate("ASR", "attack success rate (%)", "attack_success_rate", "bad"),
    _rate("RA", "robust accuracy (%)", "robust_accuracy"),
    _rate("DER", "defense effectiveness rating (%)", "defense_effectiveness_rating", "der"),
)


def _whole(statistic: Statistic) -> str:
    """Write a mean count, which is one number where all seeds agree."""
    same = statistic.std in (None, 0) and float(statistic.mean).is_integer()
    return f"{statistic.mean:,.0f}" if same else spread(statistic, 0)


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
        lambda row: _whole(row.gradient_evaluations),
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


def summary(content: Content) -> Element:
    """Return the section of the table, with what filters it and the same numbers as files."""
    numbers = columns(content.rows)
    names = _names(content)
    published = {row: found for row in content.rows if (found := compared.of_row(row))}
    section = tag("section", tag("h2", "Results"), id="results", aria_label="Results")
    add(section, tag("p", _how_to_read(content), class_="note"))
    switches = [("stealth", "Stealth of the triggers")] if any(one.class_ == "stealth" for one in numbers) else []
    switches += [("published", "Published values")] if published else []
    add(section, _controls(content, switches))
    grid = tag("table", tag("caption", "Results of each attack and defense", class_="unseen"), id="table")
    heads = [_head(name, words, "text", section) for name, words, section in names]
    heads += [_head(one.head, one.words, "number", one.class_) for one in numbers]
    add(grid, tag("thead", tag("tr", heads)))
    repeated = any(row.n > 1 for row in content.rows)
    for row in content.rows:
        add(grid, _group(content, row, numbers, [section for *_, section in names], repeated, published.get(row, ())))
    scroll = {"class_": "scroll", "tabindex": 0, "role": "region", "aria_label": "Table of results"}
    add(section, tag("div", grid, **scroll))
    add(section, tag("p", "No row is left: choose less.", id="nothing", hidden=True))
    if published:
        add(section, compared.footnote(published.values()))
    return add(section, _downloads(content))


def _names(content: Content) -> list[tuple[str, str, str]]:
    """Return the columns of names: data and network only where they vary."""
    told = [("attack", "attack and its settings", "attack"), ("defense", "defense and its settings", "defense")]
    for section, head in (("model", "network"), ("data", "data")):
        if len({getattr(row, section) for row in content.rows}) > 1:
            told.insert(0, (head, head, section))
    return told


def _how_to_read(content: Content) -> str:
    spreads = " ± its sample standard deviation" if any(row.n > 1 for row in content.rows) else ""
    return (
        f"Each rate is the mean over n seeds{spreads}, in per cent. Bold: highest mean DER of its victim; underlined: "
        "second highest. A row opens its runs, with counts, seconds, config and the link to each record."
    )


def _head(name: str, words: str, kind: str, class_: str) -> Element:
    return tag("th", tag("abbr", name, title=words), scope="col", data_kind=kind, class_=class_)


# --- Rows ------------------------------------------------------------------------------------------------------------


def _group(
    content: Content,
    row: Row,
    numbers: Sequence[Column],
    names: Sequence[str],
    repeated: bool,
    published: Sequence[compared.Reported],
) -> Element:
    """Return a row, what papers report beside it, and its runs, which open below."""
    attributes = {f"data_{section}": row.name(section) for section, _ in _FILTERS}
    anchor = content.anchors[row]
    first = content.victims[content.titles[row]][0] is row
    head = tag("tr", class_="row first" if first else "row", id=anchor)
    for section in names:
        value = getattr(row, section)
        add(head, _defense(content, row) if section == "defense" else tag("td", value, class_=f"{section} text"))
    add(head, [_number(content, row, one, repeated) for one in numbers])
    opened = tag("td", runs.runs(content, row), colspan=len(names) + len(numbers))
    below = tag("tr", opened, class_="runs", id=f"{anchor}-runs")
    said = [compared.line(row, one, names, [(number.metric, number.class_) for number in numbers]) for one in published]
    return tag("tbody", head, said, below, **attributes)


def _defense(content: Content, row: Row) -> Element:
    anchor = content.anchors[row]
    victim = tag("span", content.titles[row], class_="of")
    link = tag("a", row.defense, href=f"#{anchor}-runs", class_="open", aria_controls=f"{anchor}-runs")
    return tag("th", victim, link, scope="row", class_="defense text", data_value=row.defense)


def _number(content: Content, row: Row, column: Column, repeated: bool) -> Element:
    value, text = column.value(row), column.cell(row)
    known = math.isfinite(value)
    style = f"--v:{value:.1f}%" if known and ("good" in column.class_ or "bad" in column.class_) else None
    mean, sign, std = text.partition(" ± ")
    cell = list(_marked(content, row, column, mean))
    if repeated and (sign or "rate" in column.class_):
        cell.append(tag("span", f" ± {std}" if sign else None, class_="std"))
    return tag("td", cell, class_=column.class_ or None, style=style, data_value=f"{value:.10g}" if known else None)


def _marked(content: Content, row: Row, column: Column, text: str) -> Iterator[Markup]:
    if column.metric != "der":
        yield text
    elif row in content.best:
        yield tag("strong", text, title=f"highest mean DER of {content.titles[row]}")
    elif row in content.runners_up:
        yield tag("u", text, title=f"second highest mean DER of {content.titles[row]}")
    else:
        yield text


# --- Around the table ------------------------------------------------------------------------------------------------


def _controls(content: Content, switches: Iterable[tuple[str, str]]) -> Element:
    """Return what filters the rows and shows more of them; it works, and is shown, only where scripts run."""
    form = tag("form", class_="controls scripted", role="search", aria_label="Filter the table")
    add(form, tag("label", "Search", tag("input", type="search", id="search", placeholder="ft_sam, 0.1, seed …")))
    for section, head in _FILTERS:
        names = dict.fromkeys(row.name(section) for row in content.rows)
        if len(names) > 1:
            options = [tag("option", "all", value=""), *(tag("option", name, value=name) for name in names)]
            add(form, tag("label", head.capitalize(), tag("select", options, id=f"filter-{section}")))
    for name, words in switches:
        box = tag("input", type="checkbox", id=f"with-{name}", data_shows=name)
        add(form, tag("label", box, words, class_="switch"))
    return add(form, tag("output", count(len(content.rows), "row"), id="shown", aria_live="polite"))


def _downloads(content: Content) -> Element:
    links = []
    for name, style, suffix, kind in _DOWNLOADS:
        text = table(content.rows, style) + "\n"
        address = data_uri(text.encode("utf-8", "replace"), f"{kind};charset=utf-8")
        links += [tag("a", name, href=address, download=f"bdjax.{suffix}"), " "]
    return tag("p", "The same table as a file: ", links, class_="downloads")
