"""What papers report of a row's data, network, attack and defense, and how far the row is from it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

from bdjax import published
from bdjax.page.markup import add, tag
from bdjax.report import RATES, Row

METRICS: dict[str, str] = dict(zip(("acc", "asr", "ra", "der"), RATES, strict=True))


class Reported(NamedTuple):
    """What one table of one paper says of one setting, in per cent by metric."""

    paper: str
    table: str
    setting: str
    values: Mapping[str, float]
    notes: tuple[str, ...]  # on what is known to be wrong with them


def of_row(row: Row) -> list[Reported]:
    """Return what papers report of the same data, network, attack and defense, in the order of the papers."""
    try:
        values = published.of_config(row.records[0].config)
    except (AttributeError, KeyError, TypeError, ValueError):
        return []  # a config that no bdjax wrote, of a record from elsewhere
    values = [value for value in values if value.metric in METRICS]
    groups = itertools.groupby(values, lambda v: (v.paper, v.table, v.model, v.poison_rate, v.clean_data, v.defense))
    found = []
    for (paper, where, model, rate, clean, defense), group in groups:
        of = list(group)
        named = (model, f"poison rate {rate}" if rate else "", f"clean data {clean}" if clean else "", defense)
        notes = tuple(dict.fromkeys(value.note for value in of if value.note))
        found.append(Reported(paper, where, ", ".join(filter(None, named)), {v.metric: v.value for v in of}, notes))
    return found


def line(row: Row, reported: Reported, names: Sequence[str], columns: Iterable[tuple[str, str]]) -> Element:
    """Return the table row of what one paper reports: each value below the measured one, with the difference to it.

    ``names`` are the columns before it, the defense last; ``columns`` have a metric, if it is one, and a class.
    """
    source = f"{reported.paper}, {reported.table}"
    title = "; ".join([reported.setting, *reported.notes])
    made = tag("tr", class_="published")
    add(made, [tag("td", class_=f"{section} text") for section in names[:-1]])
    mark = " †" if reported.notes else ""
    add(made, tag("th", source, mark, tag("small", reported.setting), scope="row", class_="defense text", title=title))
    for metric, class_ in columns:
        value = reported.values.get(metric)
        if value is None:
            add(made, tag("td", class_=class_ or None))
            continue
        difference = 100 * getattr(row, METRICS[metric]).mean - value
        sign = "−" if round(difference, 1) < 0 else "+"
        far = tag("span", f" ({sign}{abs(difference):.1f})", class_="std")
        add(made, tag("td", f"{value:g}", far, class_="rate"))
    return made


def footnote(reported: Iterable[Iterable[Reported]]) -> Element:
    """Return what the published values are, and what is known to be wrong with those that are marked."""
    words = (
        "Published values are what a paper prints for the same data set, network, attack and defense, and in "
        "parentheses how many points the measured mean lies above (+) or below (−) it. Poison rate, clean data, width "
        "and training may differ from these runs: they are for orientation."
    )
    notes = dict.fromkeys(note for of in reported for one in of for note in one.notes)
    marked = tag("ul", [tag("li", f"† {note}") for note in notes]) if notes else None
    return tag("div", tag("p", words, class_="note"), marked, class_="about-published")
