"""Defenses ranked over attacks: what can be said of many of them where no single number compares."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bdjax.report.grid import BEST, SECOND, Grid, Line, write
from bdjax.report.labels import count
from bdjax.report.rows import Row, by_task, victims
from bdjax.report.statistics import ranks
from bdjax.report.tables import for_each_task
from bdjax.tasks.metrics import EFFECTIVENESS, RATING


class Ranked(NamedTuple):
    """A defense, by its label, with the mean of its ranks and its rank for each attack of the `Ranking`."""

    defense: str
    mean_rank: float
    ranks: tuple[float, ...]


class Ranking(NamedTuple):
    """The defenses, the best first, over the attacks that all of them have; the others are left out.

    So are attacks that are none, ``unattacked``, and defenses that left a network at chance, ``collapsed``. ``rating``
    is the head of the metric by which they are ranked.
    """

    defenses: tuple[Ranked, ...]
    attacks: tuple[str, ...]
    left_out: tuple[str, ...]
    unattacked: tuple[str, ...] = ()
    collapsed: tuple[str, ...] = ()
    rating: str = EFFECTIVENESS.head


def rank(rows: Sequence[Row]) -> Ranking:
    """Rank the defenses of each victim by mean defense effectiveness rating, 1 for the highest; average over victims.

    Equal ratings share the mean of their ranks. Only victims that every defense of the rows was run on count: a mean
    over other victims for each would compare victims. Without any, there are no defenses in the ranking either. A
    victim that has not learned its task and the attack has nothing to rank, and a defense that has left one at chance
    has no rank for it, and so no mean rank (`bdjax.runs.soundness`).
    """
    groups = victims(rows)
    attacked = {
        title: group for title, group in groups.items() if all(row.has_attack for row in group)
    }
    unattacked = tuple(title for title in groups if title not in attacked)
    defended = [row for group in attacked.values() for row in group]
    collapsed = tuple(dict.fromkeys(row.defense for row in defended if not row.competes))
    labels = [
        label for label in dict.fromkeys(row.defense for row in defended) if label not in collapsed
    ]
    ratings: dict[str, dict[str, float]] = {}
    for title, group in attacked.items():
        ratings[title] = {row.defense: row.rating.mean for row in group if row.defense in labels}
    attacks = tuple(title for title, of in ratings.items() if labels and len(of) == len(labels))
    left_out = tuple(title for title in ratings if title not in attacks)
    ranked = _averaged(labels, [ratings[title] for title in attacks])
    head = rows[0].metric(RATING).head if rows else EFFECTIVENESS.head
    return Ranking(ranked, attacks, left_out, unattacked, collapsed, head)


def _averaged(labels: Sequence[str], ratings: Sequence[Mapping[str, float]]) -> tuple[Ranked, ...]:
    """Return defenses with their ranks by the ratings of each attack, and the means of these, the best first."""
    if not ratings:
        return ()
    of_attacks = [ranks([of[label] for label in labels]) for of in ratings]
    found = []
    for label, own in zip(labels, zip(*of_attacks, strict=True), strict=True):
        found.append(Ranked(label, statistics.fmean(own), own))
    return tuple(sorted(found, key=lambda ranked: ranked.mean_rank))


def with_mean_ranks(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the mean rank of their defense on their kind of task, None for what a ranking leaves out."""
    found: dict[Row, float | None] = {}
    for own in by_task(rows):
        ranking = rank(own)
        means = {ranked.defense: ranked.mean_rank for ranked in ranking.defenses}
        for title, group in victims(own).items():
            found |= {
                row: means.get(row.defense) if title in ranking.attacks else None for row in group
            }
    return [dataclasses.replace(row, mean_rank=found[row]) for row in rows]


def tables(rows: Sequence[Row], format: str = "console") -> str:
    """Write the ranking of each kind of task among the rows as `table` does."""
    return for_each_task(rows, lambda own: table(rank(own), format))


def table(ranking: Ranking, format: str = "console") -> str:
    """Write a ranking for the ``console``, as ``markdown`` or as ``latex``: mean rank, and the rank for each attack.

    Raises:
      InputError: an unknown format.
    """
    if not ranking.attacks:
        return " ".join(
            [
                "No ranking: there is no attack that all of these defenses were run on.",
                *_left_out(ranking),
            ]
        )
    means = sorted({ranked.mean_rank for ranked in ranking.defenses})
    marks = dict(zip(means, (BEST, SECOND), strict=False))
    lines = []
    for one in ranking.defenses:
        cells = [one.defense, f"{one.mean_rank:.2f}", *(f"{place:g}" for place in one.ranks)]
        lines.append(Line(cells, marks.get(one.mean_rank, "")))
    caption = (
        f"Rank of {len(lines)} defenses by mean {ranking.rating}, 1 for the highest, ties averaged, and its mean over "
        f"{count(len(ranking.attacks), 'attack')}."
    )
    caption = " ".join([caption, *_left_out(ranking)])
    heads = ["defense", "mean rank", *ranking.attacks]
    return write(
        Grid("", heads, {"": lines}, caption, 1, ("lowest mean rank", "second lowest")), format
    )


def _left_out(ranking: Ranking) -> list[str]:
    """Say what has no place in the ranking, and why."""
    reasons = {
        "without some of the defenses": ranking.left_out,
        "without an attack that took": ranking.unattacked,
        "at chance after the defense": ranking.collapsed,
    }
    return [f"Left out, {why}: {', '.join(names)}." for why, names in reasons.items() if names]
