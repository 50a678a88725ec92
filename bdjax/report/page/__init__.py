"""One page of a set of runs: a file that works offline, on a phone and without scripts, and leads from numbers to runs.

Everything is in the file. Tables and charts are markup; the script only sorts, filters and opens rows. The page's own
policy lets no other script run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Iterable, Mapping
from pathlib import Path

from bdjax.checks import InputError
from bdjax.files import atomic, failures, places
from bdjax.report.page import analyses, charts, opening, protocol, summary, triggers
from bdjax.report.page.content import Content, gather
from bdjax.report.page.markup import add, tag, to_html
from bdjax.report.rows import Record


def write(records: Iterable[Record], file: str | Path, figures: Mapping[str, bytes] | None = None) -> Path:
    """Write one self-contained HTML page of finished runs.

    Args:
      records: as `bdjax.report.load` returns them.
      file: where; links to ``record.json`` files are relative to it. It is replaced as a whole.
      figures: PNG or SVG files by caption, which the page shows under *Analyses*; the caption is the text alternative.

    Returns:
      The file.

    Raises:
      InputError: no records, a name that does not end in .html, damaged test images or measurements, a figure that is
        neither PNG nor SVG, or a file that cannot be written.
    """
    file = check(file)
    text = html(records, file.parent, figures)
    with failures.blaming_the_path(f"the page cannot be written to {file}"):
        atomic.write_text(file, text)
    return file


def check(file: str | Path) -> Path:
    """Return the path of a page that could be written.

    Raises:
      InputError: its name does not end in .html, or it is no file that could be.
    """
    if Path(file).suffix not in (".html", ".htm"):
        raise InputError(f"file must end in .html; got {str(file)!r}.")
    return places.check_file("file", file)


def html(records: Iterable[Record], folder: Path, figures: Mapping[str, bytes] | None = None) -> str:
    """Return the page as text, with links that are relative to a folder. Errors are those of `write`."""
    content = gather(records, folder)
    if not content.rows:
        raise InputError("there are no records to write a page of.")
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
    body = tag("body", _contents(content, figures or {}), tag("script", script))
    return "<!DOCTYPE html>\n" + to_html(tag("html", head, body, lang="en")) + "\n"


def _contents(content: Content, figures: Mapping[str, bytes]) -> list:
    before = [summary.section(content), charts.section(content), triggers.section(content)]
    parts = [*before, analyses.section(figures), protocol.section(content)]
    sections = [part for part in parts if part is not None]
    links = [tag("a", part.get("aria-label"), href=f"#{part.get('id')}") for part in sections]
    return [add(opening.header(content), tag("nav", links, aria_label="Sections")), tag("main", sections)]


def _own(name: str) -> str:
    return importlib.resources.files("bdjax.report.page").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """Return what a policy calls a script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
