"""What every part of the page refers to: rows and runs with their anchors, environments and data sets with numbers."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bdjax.report.records import Record
from bdjax.report.rows import Row, records_of, victims
from bdjax.report.standing import best, notes, runners_up
from bdjax.tasks.metrics import ATTACK, RATING, UTILITY, Metric, first

PERCENT = "\N{NO-BREAK SPACE}%"


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """Rows of one kind of task, as `bdjax.report.summarize` orders them, and the folder of the page, for its links.

    ``others`` says what is measured on the pages of other kinds of task, by their addresses from this one.
    """

    rows: tuple[Row, ...]
    folder: Path
    others: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What was measured."""
        return self.rows[0].metrics

    @property
    def utility(self) -> Metric:
        """What a defense should keep."""
        return first(self.metrics, UTILITY)

    @property
    def attack(self) -> Metric:
        """What a defense should remove."""
        return first(self.metrics, ATTACK)

    @property
    def rating(self) -> Metric:
        """By what defenses are compared."""
        return first(self.metrics, RATING)

    @functools.cached_property
    def records(self) -> tuple[Record, ...]:
        """All runs, row by row and by seed."""
        return tuple(records_of(self.rows))

    @functools.cached_property
    def best(self) -> set[Row]:
        """The rows with the highest mean rating of their victim."""
        return best(self.rows)

    @functools.cached_property
    def runners_up(self) -> set[Row]:
        """The rows with the second highest."""
        return runners_up(self.rows)

    @functools.cached_property
    def notes(self) -> list[str]:
        """What is wrong with victims, attacks and defended networks, in words."""
        return notes(self.rows)

    @functools.cached_property
    def victims(self) -> dict[str, list[Row]]:
        """The rows of each victim under its title."""
        return victims(self.rows)

    @functools.cached_property
    def titles(self) -> dict[Row, str]:
        """The title of each row's victim."""
        return {row: title for title, group in self.victims.items() for row in group}

    @functools.cached_property
    def anchors(self) -> dict[Row, str]:
        """The id of each row in the page."""
        return {row: f"row-{number}" for number, row in enumerate(self.rows, 1)}

    @functools.cached_property
    def run_anchors(self) -> dict[Record, str]:
        """The id of each run in the page: its own, made fit for an address, and never one twice."""
        found: dict[str, Record] = {}
        for record in self.records:
            name = base = "run-" + re.sub(r"[^\w.-]", "-", record.run_id)
            repeated = 1
            while name in found:
                repeated += 1
                name = f"{base}-{repeated}"
            found[name] = record
        return {record: name for name, record in found.items()}

    @functools.cached_property
    def environments(self) -> dict[str, int]:
        """The number of each environment: versions and device, as canonical text."""
        return _numbered(map(environment, self.records))

    @functools.cached_property
    def fingerprints(self) -> dict[str, int]:
        """The number of each data set: name, sizes and hashes, as canonical text."""
        return _numbered(map(fingerprint, self.records))

    def path(self, record: Record) -> str:
        """Return the path of a record's file from the folder of the page."""
        return os.path.relpath(record.file.resolve(), self.folder.resolve())

    def link(self, record: Record) -> str:
        """Return the relative address of a record's file."""
        # A : too, so that no folder's name is a scheme
        return urllib.parse.quote(os.fsencode(self.path(record)))


def environment(record: Record) -> str:
    """Return the versions and the device of a run, without what changes from run to run, as canonical text."""
    device = mapping(record.content.get("device"))
    kept = {key: value for key, value in device.items() if "peak_bytes" not in key}
    found = {"versions": record.content.get("versions"), "device": kept}
    return json.dumps(found, sort_keys=True)


def fingerprint(record: Record) -> str:
    """Return what is known of a run's data, whatever was poisoned or held out, as canonical text."""
    data = mapping(record.content.get("data"))
    kept = ("name", "shape", "num_classes", "train_count", "test_count", "fingerprint")
    return json.dumps({key: data[key] for key in kept if key in data}, sort_keys=True)


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping, or an empty one for whatever else a record has in its place."""
    return value if isinstance(value, Mapping) else {}


def listed(words: Iterable[object], most: int = 12) -> str:
    """Write words with commas, and only the number of those that are too many."""
    every = list(map(str, words))
    more = [f"{len(every) - most} more"] if len(every) > most else []
    return ", ".join([*every[:most], *more])


def article(head: str) -> str:
    """Return the article before a head that is spelled: an ASR, a DER."""
    return "an" if head[:1] in tuple("AEFHILMNORSXaeiou") else "a"


def percent(share: float) -> str:
    """Write a share as a whole percentage, with a space that does not break."""
    return f"{100 * share:.0f}{PERCENT}"


def _numbered(texts: Iterable[str]) -> dict[str, int]:
    return {text: number for number, text in enumerate(dict.fromkeys(texts), 1)}
