"""The runs of a row: counts with their denominators for each seed, costs, where it ran, and the config."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree.ElementTree import Element

from bdjax.page.content import Content, environment, fingerprint, mapping
from bdjax.page.markup import Content as Markup
from bdjax.page.markup import tag
from bdjax.report import Record, Row, flatten, plain

_HEADS = ("run", "seed", "ACC", "ASR", "RA", "DER", "seconds", "compiling", "gradients", "ran on", "data", "record")


def runs(content: Content, row: Row) -> Element:
    """Return the runs of a row, and the config that they share."""
    chosen = any(mapping(record.content.get("selection")) for record in row.records)
    heads = (*_HEADS[:-1], *(["strength"] if chosen else []), _HEADS[-1])
    lines = [tag("tr", *_cells(content, record, chosen), id=content.run_anchors[record]) for record in row.records]
    head = tag("thead", tag("tr", [tag("th", name, scope="col") for name in heads]))
    grid = tag("div", tag("table", head, tag("tbody", lines)), class_="scroll")
    config = tag("details", tag("summary", "Config"), tag("pre", "\n".join(_config(row.records[0].config))))
    note = tag("p", "Counts are of test images, before → after the defense.", class_="note")
    close = tag("a", "close", href="#results", class_="close")
    return tag("div", close, grid, note, config, class_="inside")


def _cells(content: Content, record: Record, chosen: bool) -> Iterator[Element]:
    anchor, link = content.run_anchors[record], content.link(record)
    yield tag("th", tag("a", record.run_id, href=f"#{anchor}"), scope="row")
    yield tag("td", record.seed)
    for hits, total in (
        ("clean_correct", "clean_total"),
        ("attack_hits", "attack_total"),
        ("robust_correct", "attack_total"),
    ):
        yield tag("td", _counts(record, hits, total))
    yield tag("td", f"{record.value('defense_effectiveness_rating'):.4f}")
    yield tag("td", f"{record.value('run_seconds'):.2f}")
    yield tag("td", f"{record.value('compile_seconds'):.2f}")
    yield tag("td", f"{record.value('gradient_evaluations'):,.0f}")
    yield tag("td", _reference("environment", content.environments[environment(record)]))
    yield tag("td", _reference("data", content.fingerprints[fingerprint(record)]))
    if chosen:
        yield tag("td", _strength(mapping(record.content.get("selection"))))
    yield tag("td", tag("a", "record.json", href=link))


def _counts(record: Record, hits: str, total: str) -> str:
    before, after = record.before, record.after
    first = f" of {before[total]}" if before[total] != after[total] else ""
    return f"{before[hits]}{first} → {after[hits]} of {after[total]}"


def _reference(kind: str, number: int) -> Markup:
    return tag("a", f"{kind} {number}", href=f"#{kind}-{number}")


def _strength(selection: Mapping[str, Any]) -> str:
    option, chosen = selection.get("option"), selection.get("chosen")
    return "" if option is None else f"{plain(option)} = {plain(chosen)}"


def _config(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a config without seed and data folder, a line for each section."""
    flat = [(key.rpartition("."), plain(value)) for key, value in flatten(config).items()]
    for section, group in itertools.groupby(flat, lambda item: item[0][0]):
        parts = [f"{name}: {value}" for (_, _, name), value in group]
        yield f"{section or 'run'}: {{{', '.join(parts)}}}"
