"""The page of a purified network: what is known of it, what is not, and how it came about. One file, no script."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree.ElementTree import Element

from bdjax.files.printable import printable
from bdjax.report.page.markup import add, data_uri, tag, to_html
from bdjax.report.purified import words
from bdjax.report.purified.words import Record

Pictures = Mapping[str, bytes]  # PNG files by caption
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_LAYERS = 12  # that are shown at once
_LONGEST = 200


def html(record: Record, pictures: Pictures | None = None) -> str:
    """Return the page as text.

    Args:
      record: of the purification.
      pictures: of what inversion found, by caption.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", words.title(record)),
        tag("link", rel="icon", href="data:,"),
        tag("style", _own("page", "style.css"), "\n", _own("purified", "style.css")),
    )
    sections = [
        _known(record),
        _unknown(record),
        _accuracy(record),
        _inversion(record, pictures or {}),
        _weights(record),
        _files(record),
        _made(record),
    ]
    shown = [section for section in sections if section is not None]
    links = [tag("a", one.get("aria-label"), href=f"#{one.get('id')}") for one in shown]
    body = tag(
        "body", _header(record), tag("nav", links, aria_label="Sections"), tag("main", shown)
    )
    return "<!DOCTYPE html>\n" + to_html(tag("html", head, body, lang="en")) + "\n"


def _header(record: Record) -> Element:
    header = tag("header", tag("p", "bdjax purify", class_="brand"), tag("h1", words.title(record)))
    add(header, tag("p", f"{words.network(record)}.", class_="lead"))
    for warning in words.warnings(record):
        add(header, tag("p", tag("b", "Look at this: "), warning, class_="card warning"))
    before, after = (words.share(record["accuracy"][when]) for when in ("before", "after"))
    whole = words.percent(record["weights"]["whole"])
    cards = [
        _card("Clean accuracy before", words.percent(before.value), _interval(before)),
        _card("Clean accuracy after", words.percent(after.value), _interval(after)),
        _card("Attack success rate", "not known", "nobody knows the attacker's trigger"),
        _card("Weights moved by", whole, "of their length (L2)"),
    ]
    return add(header, tag("div", cards, class_="cards"))


def _card(head: str, value: str, below: str) -> Element:
    return tag(
        "div",
        tag("h2", head),
        tag("p", value, class_="winner"),
        tag("p", below),
        class_="card finding",
    )


def _interval(share: words.Share) -> str:
    low, high = share.interval
    return f"{share.right} of {share.of}; 95 % interval {100 * low:.1f}–{100 * high:.1f} %"


def _known(record: Record) -> Element:
    return _section("What is known", "known", _list(words.known(record)))


def _unknown(record: Record) -> Element:
    return _section("What is not", "unknown", _list(words.unknown(record)))


def _accuracy(record: Record) -> Element:
    rows = []
    for when in ("before", "after"):
        share = words.share(record["accuracy"][when])
        rows.append([f"{when} the defense", *_numbers(share)])
    parts = [_table(["images kept aside", "accuracy", "95 % interval", "right of"], rows)]
    chosen = record["selection"]
    if chosen is not None:
        parts.append(tag("h3", f"The strength {chosen['option']}"))
        said = (
            f"Tried from the strongest down on {chosen['trials'][0]['of']} images that were neither given to the "
            "defense nor kept aside; the first that costs no more than the budget is taken."
        )
        parts.append(tag("p", said, class_="note"))
        parts.append(_table([chosen["option"], "accuracy", "taken"], list(_trials(chosen))))
    return _section("Accuracy", "accuracy", *parts)


def _numbers(share: words.Share) -> list[str]:
    low, high = share.interval
    whole = f"{share.right} of {share.of}"
    return [words.percent(share.value), f"{100 * low:.1f}–{100 * high:.1f} %", whole]


def _trials(chosen: Mapping[str, Any]) -> Iterable[list[str]]:
    for trial in chosen["trials"]:
        share = "diverged"
        if trial["right"] is not None:
            share = words.percent(trial["right"] / trial["of"])
        yield [f"{trial['value']:g}", share, "yes" if trial["value"] == chosen["chosen"] else ""]


def _inversion(record: Record, pictures: Pictures) -> Element | None:
    found = record["inversion"]
    if found is None:
        return None
    said = (
        "For each class, the smallest patch that sends images of other classes there: its size in pixels, the share of "
        f"the other classes' images among {found['images']} that it sends there, and how far its size lies from the "
        "median of all classes, in their usual deviations (the anomaly index). A backdoor of a small patch shows as a "
        "class with a far smaller one; a small one with an index above 2 is called a suspect."
    )
    heads = ["class"]
    for when in ("before", "after"):
        heads += [f"pixels {when}", f"sent {when}", f"index {when}"]
    rows = [_of_class(record, number) for number in range(len(found["before"]["norm"]))]
    parts = [tag("p", said, class_="note"), _table(heads, rows)]
    figures = [
        tag(
            "figure",
            tag("img", src=data_uri(png, "image/png"), alt=caption),
            tag("figcaption", printable(caption, _LONGEST)),
        )
        for caption, png in pictures.items()
    ]
    if figures:
        parts.append(tag("div", figures, class_="sheet"))
    return _section("Trigger inversion", "inversion", *parts)


def _of_class(record: Record, number: int) -> list[str]:
    names = record["network"]["class_names"]
    row = [printable(names[number], 40) if number < len(names) else str(number)]
    for when in ("before", "after"):
        one = record["inversion"][when]
        if not one["found"][number]:
            row += ["none found", "–", "–"]
            continue
        index = one["index"][number]
        row += [
            f"{one['norm'][number]:.1f}",
            words.percent(one["success"][number]),
            "–" if index is None else f"{index:.1f}",
        ]
    return row


def _weights(record: Record) -> Element:
    layers = words.most_moved(record)
    farthest = max((layer["relative"] for layer in layers), default=0.0) or 1.0
    rows = [_layer(layer, farthest) for layer in layers]
    said = "How far each layer's parameters moved, as a share of their length (relative L2), the farthest first."
    parts = [tag("p", said, class_="note"), tag("table", rows[:_LAYERS], class_="bars")]
    if more := rows[_LAYERS:]:
        summary = tag("summary", f"{len(more)} more layers")
        parts.append(tag("details", summary, tag("table", more, class_="bars")))
    return _section("Weights", "weights", *parts)


def _layer(layer: Mapping[str, Any], farthest: float) -> Element:
    bar = tag("span", class_="moved", style=f"--v:{100 * layer['relative'] / farthest:.1f}%")
    return tag(
        "tr",
        tag("th", printable(layer["name"], 80), scope="row"),
        tag("td", words.percent(layer["relative"])),
        tag("td", bar, class_="scale"),
        tag("td", f"{layer['count']:,} parameters"),
    )


def _files(record: Record) -> Element:
    said = "The weights in the names of the file that came in; the same as safetensors in model.safetensors."
    parts = [tag("p", said), tag("pre", words.into_pytorch(record))]
    return _section("Back into PyTorch", "files", *parts)


def _made(record: Record) -> Element:
    return _section("How it was made", "made", tag("dl", list(_terms(record)), class_="terms"))


def _terms(record: Record) -> Iterable[Element]:
    for head, said in words.made(record):
        yield tag("dt", head)
        yield tag("dd", said)


def _section(title: str, name: str, *content: Any) -> Element:
    return tag("section", tag("h2", title), *content, id=name, aria_label=title)


def _list(lines: Iterable[str]) -> Element:
    return tag("ul", [tag("li", line) for line in lines], class_="findings")


def _table(heads: list[str], rows: list[list[str]]) -> Element:
    head = tag("thead", tag("tr", [tag("th", one, scope="col") for one in heads]))
    body = [
        tag("tr", tag("th", row[0], scope="row"), [tag("td", cell) for cell in row[1:]])
        for row in rows
    ]
    return tag("div", tag("table", head, tag("tbody", body), class_="plain"), class_="scroll")


def _own(folder: str, name: str) -> str:
    place = importlib.resources.files("bdjax.report").joinpath(folder, name)
    return place.read_text(encoding="utf-8")
