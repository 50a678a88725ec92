"""Which rows are the best of their victim, which cannot be, and what is to be told of victims beside their rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from bdjax.files.printable import printable
from bdjax.report.labels import LONGEST
from bdjax.report.records import Record
from bdjax.report.rows import Row, victims
from bdjax.runs import soundness
from bdjax.runs.soundness import Fault


def best(rows: Sequence[Row]) -> set[Row]:
    """Return the rows whose mean defense effectiveness rating is the highest of their victim (``none`` competes).

    Rows do not compete where there is no attack to remove, or a network at chance; see `Row.competes`.
    """
    return _at_place(rows, 0)


def runners_up(rows: Sequence[Row]) -> set[Row]:
    """Return the rows with the second highest mean rating of their victim, where there are two different ones."""
    return _at_place(rows, 1)


def _at_place(rows: Sequence[Row], place: int) -> set[Row]:
    marked = set()
    for group in victims(rows).values():
        competing = [row for row in group if row.competes]
        ratings = sorted(set(map(_rating, competing)), reverse=True)
        marked |= {row for row in competing if [_rating(row)] == ratings[place : place + 1]}
    return marked


def _rating(row: Row) -> float:
    mean = row.rating.mean
    return -math.inf if math.isnan(mean) else mean


def notes(rows: Sequence[Row]) -> list[str]:
    """Write what is wrong with victims and with defended networks, by the titles of the victims."""
    written = []
    for title, group in victims(rows).items():
        written += [f"{title}: {words}" for words in soundness.told(_of_victims(group))]
        for row in group:
            defended = [soundness.of_defended(record.content) for record in row.records]
            written += [f"{title}, {row.defense}: {words}" for words in soundness.told(defended)]
    return written


def _of_victims(group: Iterable[Row]) -> list[tuple[Fault, ...]]:
    """Return what is wrong with each of the victims that rows share."""
    found: dict[tuple[str | None, int], tuple[Fault, ...]] = {}
    for row in group:
        for record in row.records:
            found.setdefault(
                (record.content.get("victim_id"), record.seed), soundness.of_victim(record.content)
            )
    return list(found.values())


def target_classes(rows: Sequence[Row]) -> str:
    """Name the class that the attacker wants, where one is wanted for all images, or that of each victim."""
    titles: dict[str, dict[str, None]] = {}
    for title, group in victims(rows).items():
        for row in group:
            if target := _target_class(row.records[0]):
                titles.setdefault(target, {})[title] = None
    if len(titles) == 1:
        return f"target class: {next(iter(titles))}"
    each = (f"{target} of {', '.join(of)}" for target, of in titles.items())
    return f"target classes: {'; '.join(each)}" if titles else ""


def _target_class(record: Record) -> str:
    """Return the number and the name of an all-to-one attack's class, or nothing."""
    attack, names = record.config["attack"], record.content["data"]["class_names"]
    target = attack.get("target_label")
    if attack.get("label_map") != "all_to_one" or not isinstance(target, int | str):
        return ""
    if isinstance(target, str) and target in names:
        target = names.index(target)
    named = (
        isinstance(target, int) and 0 <= target < len(names) and str(names[target]) != str(target)
    )
    return printable(f"{target} ({names[target]})" if named else str(target), LONGEST)
