"""One page of a set of runs: a file that works offline, on a phone and without scripts, and leads from numbers to runs.

Everything is in the file. Tables and charts are markup; the script only sorts, filters and opens rows. The page's own
policy lets no other script run and nothing be fetched.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.resources
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path

from bdjax.checks import InputError
from bdjax.files import atomic, failures, places
from bdjax.report.page import analyses, charts, opening, protocol, summary, triggers
from bdjax.report.page.content import Content
from bdjax.report.page.markup import add, tag, to_html
from bdjax.report.records import Record
from bdjax.report.rows import by_task, summarize


def write(
    records: Iterable[Record], file: str | Path, figures: Mapping[str, bytes] | None = None
) -> Path:
    """Write one self-contained HTML page of finished runs.

    Runs of tasks with different metrics have a page each, which lead to each other: further ones lie beside the first,
    under its name and that of the utility.

    Args:
      records: as `bdjax.report.load` returns them.
      file: where; links to ``record.json`` files are relative to it. It is replaced as a whole.
      figures: PNG or SVG files by caption, which the page shows under *Analyses*; the caption is the text alternative.

    Returns:
      The file, the first of several.

    Raises:
      InputError: no records, a name that does not end in .html, damaged test images or measurements, a figure that is
        neither PNG nor SVG, or a file that cannot be written.
    """
    file = check(file)
    texts = {
        page: _html(content, figures or {}) for page, content in _contents_of(records, file).items()
    }
    with failures.blaming_the_path(f"the page cannot be written to {file}"):
        for page, text in texts.items():
            atomic.write_text(page, text)
    return file


def _contents_of(records: Iterable[Record], file: Path) -> dict[Path, Content]:
    """Return what is on the page of each kind of task, by the files."""
    found: dict[Path, Content] = {}
    for rows in by_task(summarize(records, sharpness=True, stealth=True)):
        content = Content(tuple(rows), file.parent)
        page = file.with_name(f"{file.stem}-{content.utility.name}{file.suffix}") if found else file
        found[page] = content
    if not found:
        raise InputError("there are no records to write a page of.")
    names = {
        page: ", ".join(metric.head for metric in content.metrics)
        for page, content in found.items()
    }
    for page, content in found.items():
        others = {
            urllib.parse.quote(other.name): words for other, words in names.items() if other != page
        }
        found[page] = dataclasses.replace(content, others=others)
    return found


def check(file: str | Path) -> Path:
    """Return the path of a page that could be written.

    Raises:
      InputError: its name does not end in .html, or it is no file that could be.
    """
    if Path(file).suffix not in (".html", ".htm"):
        raise InputError(f"file must end in .html; got {str(file)!r}.")
    return places.check_file("file", file)


def html(
    records: Iterable[Record], folder: Path, figures: Mapping[str, bytes] | None = None
) -> str:
    """Return the page as text, with links that are relative to a folder.

    Raises:
      InputError: as `write`, or runs of tasks with different metrics, which have a page each.
    """
    (content, *others) = _contents_of(records, folder / "page.html").values()
    if others:
        raise InputError(
            "records must be of one kind of task for one page; got tasks with different metrics."
        )
    return _html(content, figures or {})


def _html(content: Content, figures: Mapping[str, bytes]) -> str:
    style, script = _own("style.css"), _own("script.js")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{_hash(script)}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", opening.title(content)),
        tag("link", rel="icon", href="data:,"),
        tag("style", style),
    )
    body = tag("body", _contents(content, figures), tag("script", script))
    return "<!DOCTYPE html>\n" + to_html(tag("html", head, body, lang="en")) + "\n"


def _contents(content: Content, figures: Mapping[str, bytes]) -> list:
    before = [summary.section(content), charts.section(content), triggers.section(content)]
    parts = [*before, analyses.section(figures), protocol.section(content)]
    sections = [part for part in parts if part is not None]
    links = [tag("a", part.get("aria-label"), href=f"#{part.get('id')}") for part in sections]
    return [
        add(opening.header(content), tag("nav", links, aria_label="Sections")),
        tag("main", sections),
    ]


def _own(name: str) -> str:
    return importlib.resources.files("bdjax.report.page").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """Return what a policy calls a script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode(
        "ascii"
    )
