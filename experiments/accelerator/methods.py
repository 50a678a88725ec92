"""To be written."""

from __future__ import annotations

from collections.abc import Sequence

from accelerator.session import Part, Row, Settings


def parts(settings: Settings) -> list[Part]:
    """Return the parts of this subject, in the order of their worth."""
    del settings
    return []


def tables(rows: Sequence[Row]) -> str:
    """Return the tables of this subject as Markdown; empty, where there are no rows of it."""
    del rows
    return ""
