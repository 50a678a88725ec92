"""The summary table: a row for each defense of each victim, what papers report beside it, and its runs below it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable
from xml.etree.ElementTree import Element

from bdjax.report.grid import SIGN
from bdjax.report.labels import count
from bdjax.report.page import compared, runs
from bdjax.report.page.columns import Column, columns
from bdjax.report.page.compared import Reported
from bdjax.report.page.content import Content
from bdjax.report.page.markup import Content as Markup
from bdjax.report.page.markup import add, data_uri, tag
from bdjax.report.rows import Row, is_repeated, names_in
from bdjax.report.tables import table
from bdjax.runs import soundness

_FILTERS = (("data", "data"), ("model", "network"), ("attack", "attack"), ("defense", "defense"))
_SWITCHES = {"stealth": "Stealth of the triggers", "published": "Published values"}
_DOWNLOADS = (
    ("CSV", "csv", "csv", "text/csv"),
    ("Markdown", "markdown", "md", "text/markdown"),
    ("LaTeX", "latex", "tex", "application/x-tex"),
)


def section(content: Content) -> Element:
    """Return the section of the table, with what filters it and the same numbers as files."""
    grid = _Grid(content)
    made = tag("section", tag("h2", "Results"), id="results", aria_label="Results")
    add(made, tag("p", _how_to_read(content), class_="note"), _controls(content, grid.switches))
    scroll = {"class_": "scroll", "tabindex": 0, "role": "region", "aria_label": "Table of results"}
    add(made, tag("div", grid.element(), **scroll))
    add(made, tag("p", "No row is left: choose less.", id="nothing", hidden=True), _notes(content))
    add(made, compared.footnote(grid.notes) if grid.published else None)
    return add(made, _downloads(content))


def _how_to_read(content: Content) -> str:
    repeated = is_repeated(content.rows)
    seeds = "the mean over n seeds ± its sample standard deviation" if repeated else "of one seed"
    return (
        f"Each rate is {seeds}, in per cent. Bold: highest mean {content.rating.head} of its victim; underlined: "
        "second highest. A row opens its runs, with counts, seconds, config and the link to each record."
    )


def _notes(content: Content) -> Element | None:
    """Return what is wrong with the rows that are marked, or None."""
    if not content.notes:
        return None
    words = "Rows with this mark are no candidates for the best, and an attack that is none is in no mean over attacks:"
    lines = [tag("li", f"{SIGN} {note}") for note in content.notes]
    return tag("div", tag("p", words), tag("ul", lines), class_="note unsound")


# --- Rows ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Grid:
    """The table and what its rows have in common."""

    content: Content

    @functools.cached_property
    def names(self) -> list[tuple[str, str]]:
        """The columns of names, as sections of a config and their heads; data and network only where they vary."""
        rows = self.content.rows
        varying = [one for one in _FILTERS[:2] if len({getattr(row, one[0]) for row in rows}) > 1]
        return [*varying, *_FILTERS[2:]]

    @functools.cached_property
    def numbers(self) -> list[Column]:
        return columns(self.content.rows)

    @functools.cached_property
    def published(self) -> dict[Row, list[Reported]]:
        return {row: found for row in self.content.rows if (found := compared.of_row(row))}

    @functools.cached_property
    def notes(self) -> dict[str, int]:
        return compared.numbered(self.published.values())

    @functools.cached_property
    def repeated(self) -> bool:
        return is_repeated(self.content.rows)

    @property
    def switches(self) -> list[str]:
        """What is not shown until it is asked for."""
        stealth = any(column.class_ == "stealth" for column in self.numbers)
        return ["stealth"] * stealth + ["published"] * bool(self.published)

    def element(self) -> Element:
        heads = [
            _head(name, f"{name} and its settings", "text", section) for section, name in self.names
        ]
        heads += [_head(one.head, one.words, "number", one.class_) for one in self.numbers]
        caption = tag("caption", "Results of each attack and defense", class_="unseen")
        groups = [self._group(row) for row in self.content.rows]
        return tag("table", caption, tag("thead", tag("tr", heads)), groups, id="table")

    def _group(self, row: Row) -> Element:
        """Return a row, what papers report beside it, and its runs, which open below."""
        content, anchor = self.content, self.content.anchors[row]
        first = content.victims[content.titles[row]][0] is row
        head = tag("tr", class_="row first" if first else "row", id=anchor)
        for section, _ in self.names[:-1]:
            add(head, tag("td", getattr(row, section), class_=f"{section} text"))
        add(head, _defense(content, row), [self._number(row, column) for column in self.numbers])
        before = [section for section, _ in self.names]
        after = [(column.metric, column.class_) for column in self.numbers]
        said = [
            compared.line(row, one, self.notes, before, after)
            for one in self.published.get(row, ())
        ]
        opened = tag("td", runs.of_row(content, row), colspan=len(before) + len(after))
        below = tag("tr", opened, class_="runs", id=f"{anchor}-runs")
        named = {f"data_{section}": row.name(section) for section, _ in _FILTERS}
        return tag("tbody", head, said, below, **named)

    def _number(self, row: Row, column: Column) -> Element:
        value = column.value(row)
        mean, sign, std = column.cell(row).partition(" ± ")
        cell = [_marked(self.content, row, column, mean)]
        # An empty place, so that means stand below means
        if self.repeated and (sign or "rate" in column.class_):
            cell.append(tag("span", f" ± {std}" if sign else None, class_="std"))
        attributes: dict[str, str | None] = {"class_": column.class_ or None}
        if math.isfinite(value):
            attributes["style"] = f"--v:{value:.1f}%" if "bar" in column.class_ else None
            attributes["data_value"] = f"{value:.10g}"
        return tag("td", cell, **attributes)


def _head(name: str, words: str, kind: str, class_: str) -> Element:
    return tag(
        "th", tag("abbr", name, title=words), scope="col", data_kind=kind, class_=class_ or None
    )


def _defense(content: Content, row: Row) -> Element:
    anchor = content.anchors[row]
    victim = tag("span", content.titles[row], class_="of")
    link = tag(
        "a", row.defense, href=f"#{anchor}-runs", class_="open", aria_controls=f"{anchor}-runs"
    )
    return tag("th", victim, link, scope="row", class_="defense text", data_value=row.defense)


def _marked(content: Content, row: Row, column: Column, text: str) -> Markup:
    if not column.is_rating:
        return text
    victim = f"highest mean {content.rating.head} of {content.titles[row]}"
    if row.is_marked:
        return [
            text,
            tag("span", f" {SIGN}", title="; ".join(soundness.told(row.faults)), class_="sign"),
        ]
    if row in content.best:
        return tag("strong", text, title=victim)
    if row in content.runners_up:
        return tag("u", text, title=f"second {victim}")
    return text


# --- Around the table ------------------------------------------------------------------------------------------------


def _controls(content: Content, switches: Iterable[str]) -> Element:
    """Return what filters the rows and shows more of them; it works, and is shown, only where scripts run."""
    form = tag("form", class_="controls scripted", role="search", aria_label="Filter the table")
    search = tag("input", type="search", id="search", placeholder="name, setting or run")
    add(form, tag("label", "Search", search))
    for section, head in _FILTERS:
        names = names_in(content.rows, section)
        if len(names) > 1:
            options = [
                tag("option", "all", value=""),
                *(tag("option", name, value=name) for name in names),
            ]
            add(
                form,
                tag("label", head.capitalize(), tag("select", options, id=f"filter-{section}")),
            )
    for name in switches:
        box = tag("input", type="checkbox", id=f"with-{name}", data_shows=name)
        add(form, tag("label", box, _SWITCHES[name], class_="switch"))
    return add(form, tag("output", count(len(content.rows), "row"), id="shown", aria_live="polite"))


def _downloads(content: Content) -> Element:
    links = []
    for name, style, suffix, kind in _DOWNLOADS:
        text = table(content.rows, style) + "\n"
        address = data_uri(text.encode("utf-8", "replace"), f"{kind};charset=utf-8")
        links += [tag("a", name, href=address, download=f"bdjax.{suffix}"), " "]
    return tag("p", "The same table as a file: ", links, class_="downloads")
