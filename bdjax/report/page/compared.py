"""What papers report of a row's data, network, attack and defense, and how far the row is from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from bdjax.report import published
from bdjax.report.page.content import mapping
from bdjax.report.page.markup import add, tag
from bdjax.report.published import Value
from bdjax.report.rows import Row


class Reported(NamedTuple):
    """What a paper says of one setting, in per cent by metric, in each of these tables."""

    paper: str
    tables: tuple[str, ...]
    setting: str
    values: Mapping[str, float]
    notes: tuple[str, ...]  # on what is known to be wrong with them

    @property
    def source(self) -> str:
        """The paper and its tables in words."""
        numbers = [table.removeprefix("Table ") for table in self.tables]
        return f"{self.paper}, {'Table' if len(numbers) == 1 else 'Tables'} {', '.join(numbers)}"


def of_row(row: Row) -> list[Reported]:
    """Return what papers report of the same data, network, attack and defense, in the order of the papers.

    Where they have the run's poison rate it is that alone, and so with the defender's share of clean data. Tables of a
    paper that repeat each other are one.
    """
    config = row.records[0].config
    try:
        values = [value for value in published.of_config(config) if value.metric in _measured(row)]
    except (AttributeError, KeyError, TypeError, ValueError):
        return []  # a config that no bdjax wrote, of a record from elsewhere
    for column, wanted in _setting(config).items():
        values = [value for value in values if getattr(value, column) == wanted] or values
    tables: dict[tuple[str, ...], list[Value]] = {}
    for value in values:
        key = (value.paper, value.table, value.poison_rate, value.clean_data, value.defense)
        tables.setdefault(key, []).append(value)
    merged: dict[tuple[Any, ...], list[Value]] = {}
    for of in tables.values():
        one, numbers = of[0], frozenset((value.metric, value.value) for value in of)
        merged.setdefault(
            (one.paper, one.poison_rate, _clean_data(one), one.defense, numbers), []
        ).extend(of)
    return list(map(_reported, merged.values()))


def _measured(row: Row) -> dict[str, float]:
    """Return the means of a row in percent, by what papers' tables call the metrics."""
    return {metric.head.lower(): 100 * row.statistics[metric.name].mean for metric in row.metrics}


def _setting(config: Mapping[str, Any]) -> dict[str, str]:
    """Return a run's poison rate and clean data as the papers print them."""
    rate = mapping(config.get("attack")).get("poison_rate")
    holdout = mapping(config.get("holdout"))
    share, each = holdout.get("share"), holdout.get("per_class")
    found = {"poison_rate": f"{100 * rate:g}%"} if isinstance(rate, int | float) else {}
    if isinstance(each, int):
        return found | {"clean_data": f"spc={each}"}
    return found | ({"clean_data": f"{100 * share:g}%"} if isinstance(share, int | float) else {})


def _clean_data(value: Value) -> str:
    """Return the defender's images, on which nothing depends where there is no defense."""
    return "" if value.defense == "none" else value.clean_data


def _reported(values: Sequence[Value]) -> Reported:
    one = values[0]
    named = (
        f"poison {one.poison_rate}" if one.poison_rate else "",
        f"clean {_clean_data(one)}" if _clean_data(one) else "",
        one.defense.partition(":")[2],
    )
    notes = tuple(dict.fromkeys(value.note for value in values if value.note))
    tables = tuple(dict.fromkeys(value.table for value in values))
    return Reported(
        one.paper,
        tables,
        ", ".join(filter(None, named)),
        {v.metric: v.value for v in values},
        notes,
    )


def numbered(reported: Iterable[Iterable[Reported]]) -> dict[str, int]:
    """Return the number of each note."""
    notes = dict.fromkeys(note for of in reported for one in of for note in one.notes)
    return {note: number for number, note in enumerate(notes, 1)}


def line(
    row: Row,
    reported: Reported,
    notes: Mapping[str, int],
    names: Sequence[str],
    columns: Iterable[tuple[str, str]],
) -> Element:
    """Return the table row of what one paper reports: each value below the measured one, with the difference to it.

    ``names`` are the columns before it, the defense last; ``columns`` have a metric, if it is one, and a class.
    """
    made = tag("tr", class_="published")
    for section in names[:-1]:
        add(made, tag("td", class_=f"{section} text"))
    marks = []
    for note in reported.notes:
        address = f"#note-{notes[note]}"
        marks.append(tag("a", f" †{notes[note]}", href=address, title=note, class_="sign"))
    head = tag(
        "th",
        reported.source,
        marks,
        tag("small", reported.setting),
        scope="row",
        class_="defense text",
    )
    return add(made, head, _cells(row, reported, columns))


def _cells(row: Row, reported: Reported, columns: Iterable[tuple[str, str]]) -> Iterator[Element]:
    measured = _measured(row)
    for metric, class_ in columns:
        value = reported.values.get(metric)
        if value is None:
            yield tag("td", class_=class_ or None)
            continue
        difference = measured[metric] - value
        sign = "−" if round(difference, 1) < 0 else "+"
        apart = tag("span", f" ({sign}{abs(difference):.1f})", class_="std")
        yield tag("td", f"{value:.1f}", apart, class_="rate")


def footnote(notes: Mapping[str, int]) -> Element:
    """Return what the published values are, and what is known to be wrong with those that are marked."""
    words = (
        "Published values are what a paper prints for the same data set, network, attack and defense, and in "
        "parentheses how many points the measured mean lies above (+) or below (−) it. Width, training and other "
        "settings may differ from these runs: they are for orientation."
    )
    made = tag("div", tag("p", words, class_="note"), class_="about-published")
    if notes:
        lines = [
            tag("li", note, value=number, id=f"note-{number}") for note, number in notes.items()
        ]
        summary = tag("summary", "†: what is known to be wrong with published values")
        add(made, tag("details", summary, tag("ol", lines, class_="numbered")))
    return made
