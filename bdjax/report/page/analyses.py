"""Figures that were made elsewhere, such as those of `bdjax.analysis`, each with a caption."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element

from bdjax.checks import InputError
from bdjax.report.page.markup import add, data_uri, tag


def section(figures: Mapping[str, bytes]) -> Element | None:
    """Return the section of PNG or SVG files under their captions, in order, or None where there is none.

    An SVG stands in the page as an image, so that nothing in it can run. Captions are what a screen reader says too.

    Raises:
        InputError: a file that is neither.
    """
    if not figures:
        return None
    made = tag("section", tag("h2", "Analyses"), id="analyses", aria_label="Analyses")
    for caption, file in figures.items():
        image = tag("img", src=data_uri(file, _kind(caption, file)), alt=caption)
        add(
            made,
            tag(
                "figure",
                tag("div", image, class_="scroll"),
                tag("figcaption", caption),
                class_="card made",
            ),
        )
    return made


def _kind(caption: str, file: bytes) -> str:
    if file.startswith(b"\x89PNG\r\n"):
        return "image/png"
    if b"<svg" in file[:4096]:
        return "image/svg+xml"
    raise InputError(
        f"the figure {caption!r} must be a PNG or an SVG file; got one that begins with {file[:8]!r}."
    )
