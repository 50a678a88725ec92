"""What is read of a purified network: a page and a card, made of its record alone."""

from __future__ import annotations

from pathlib import Path

from bdjax.checks import InputError
from bdjax.files import atomic, failures
from bdjax.report.purified import card, page, pictures, words
from bdjax.runs.purified import CARD, PAGE, PurifiedFolder


def write(folder: Path) -> list[str]:
    """Write the page and the card of a finished purification, and return what is to be told of it, in lines.

    Raises:
      InputError: there is none in the folder, or it is damaged, or cannot be written.
    """
    own = PurifiedFolder(folder)
    record = own.record()
    if record is None:
        raise InputError(f"{folder} holds no finished purification.")
    shown = pictures.of(record, own)
    with failures.blaming_the_path(f"the page cannot be written to {folder}"):
        atomic.write_text(own.file(CARD), card.markdown(record))
        atomic.write_text(own.file(PAGE), page.html(record, shown))
    said = [f"{words.title(record)}: {words.network(record)}", "", "Known:"]
    said += [f"- {line}" for line in words.known(record)]
    said += ["", "Not known:", *[f"- {line}" for line in words.unknown(record)]]
    said += [f"Look at this: {line}" for line in words.warnings(record)]
    return [*said, "", f"page: {own.file(PAGE)}"]
