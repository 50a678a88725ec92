"""The runs of a row: counts with their denominators for each seed, costs, where it ran, and the config."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree.ElementTree import Element

from bdjax.report.labels import plain
from bdjax.report.page.content import Content, environment, fingerprint, mapping
from bdjax.report.page.markup import Content as Markup
from bdjax.report.page.markup import tag
from bdjax.report.records import Record
from bdjax.report.rows import Row
from bdjax.tasks.metrics import RATING, Metric

_NAMES, _COSTS, _WHERE = (
    ("record", "seed"),
    ("seconds", "compiling", "gradients"),
    ("ran on", "data"),
)


def of_row(content: Content, row: Row) -> Element:
    """Return the runs of a row, and the config that they share."""
    chosen = any(mapping(record.content.get("selection")) for record in row.records)
    metrics = [metric.head for metric in row.metrics]
    heads = [*_NAMES, *metrics, *_COSTS, *_WHERE, *(["strength"] if chosen else [])]
    lines = []
    for record in row.records:
        cells = _cells(content, record, chosen)
        lines.append(tag("tr", *cells, id=content.run_anchors[record]))
    head = tag("thead", tag("tr", [tag("th", name, scope="col") for name in heads]))
    grid = tag("div", tag("table", head, tag("tbody", lines)), class_="scroll")
    config = tag("details", tag("summary", "Config"), tag("pre", _yaml(row.records[0].config)))
    words = "Counts are of test images, before → after the defense. "
    note = tag(
        "p",
        words,
        tag("a", "Close", href=f"#{content.anchors[row]}", class_="close"),
        class_="note",
    )
    return tag("div", grid, note, config, class_="inside")


def _cells(content: Content, record: Record, chosen: bool) -> Iterator[Element]:
    # The result of another defense (`bdjax.saved.with_defense`) is in no file
    written = record.file.is_file()
    name = tag("a", record.run_id, href=content.link(record)) if written else record.run_id
    yield tag("th", name, scope="row")
    yield tag("td", record.seed)
    for metric in record.metrics:
        yield tag("td", _measured(record, metric))
    for quantity, form in (
        ("run_seconds", ".2f"),
        ("compile_seconds", ".2f"),
        ("gradient_evaluations", ",.0f"),
    ):
        value = record.value(quantity)
        yield tag("td", "–" if math.isnan(value) else format(value, form))
    yield tag("td", _reference("environment", content.environments[environment(record)]))
    yield tag("td", _reference("data", content.fingerprints[fingerprint(record)]))
    if chosen:
        yield tag("td", _strength(mapping(record.content.get("selection"))))


def _measured(record: Record, metric: Metric) -> str:
    """Write a rating, or a metric before and after the defense: the counts that it is a ratio of, if it is one."""
    if metric.role == RATING:
        return f"{record.value(metric.name):.4f}"
    before, after = record.before, record.after
    if not metric.part:
        return f"{before[metric.name]:.4f} → {after[metric.name]:.4f}"
    part, total = metric.part, metric.total
    first = f" of {before[total]}" if before[total] != after[total] else ""
    return f"{before[part]}{first} → {after[part]} of {after[total]}"


def _reference(kind: str, number: int) -> Markup:
    return tag("a", f"{kind} {number}", href=f"#{kind}-{number}")


def _strength(selection: Mapping[str, Any]) -> str:
    option, chosen = selection.get("option"), selection.get("chosen")
    return "" if option is None else f"{plain(option)} = {plain(chosen)}"


def _yaml(config: Mapping[str, Any]) -> str:
    """Return a config as YAML that can be run, without seed and data folder."""
    data = {key: value for key, value in config["data"].items() if key != "data_dir"}
    lines = {key: value for key, value in {**config, "data": data}.items() if key != "seed"}
    return "\n".join(f"{key}: {_flow(value)}" for key, value in lines.items())


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(one)}" for key, one in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
