"""Defenses ranked over attacks: what can be said of many of them where no single number compares."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from bdjax.report.rows import Row, count, victims
from bdjax.report.tables import BEST, SECOND, Grid, Line, write
from bdjax.report.uncertainty import ranks


class Ranked(NamedTuple):
    """A defense, by its label, with the mean of its ranks and its rank for each attack of the `Ranking`."""

    defense: str
    mean_rank: float
    ranks: tuple[float, ...]


class Ranking(NamedTuple):
    """The defenses, the best first, over the attacks that all of them have; the others are left out.

    So are attacks that are none, ``unattacked``, and defenses that left a network at chance, ``collapsed``.
    """

    defenses: tuple[Ranked, ...]
    attacks: tuple[str, ...]
    left_out: tuple[str, ...]
    unattacked: tuple[str, ...] = ()
    collapsed: tuple[str, ...] = ()


def rank(rows: Sequence[Row]) -> Ranking:
    """Rank the defenses of each victim by mean defense effectiveness rating, 1 for the highest; average over victims.

    Equal ratings share the mean of their ranks. Only victims that every defense of the rows was run on count: a mean
    over other victims for each would compare victims. Without any, there are no defenses in the ranking either. A
    victim that has not learned its task and the attack has nothing to rank, and a defense that has left one at chance
    has no rank for it, and so no mean rank (`bdjax.runs.soundness`).
    """
    groups = victims(rows)
    attacked = {title: group for title, group in groups.items() if all(row.has_attack for row in group)}
    unattacked = tuple(title for title in groups if title not in attacked)
    defended = [row for group in attacked.values() for row in group]
    collapsed = tuple(dict.fromkeys(row.defense for row in defended if not row.competes))
    labels = [label for label in dict.fromkeys(row.defense for row in defended) if label not in collapsed]
    ratings = {
        title: {row.defense: row.defense_effectiveness_rating.mean for row in group if row.defense in labels}
        for title, group in attacked.items()
    }
    attacks = tuple(title for title, of in ratings.items() if labels and len(of) == len(labels))
    left_out = tuple(title for title in ratings if title not in attacks)
    if not attacks:
        return Ranking((), (), left_out, unattacked, collapsed)
    of_attacks = [ranks([ratings[title][label] for label in labels]) for title in attacks]
    of_labels = zip(*of_attacks, strict=True)
    found = [Ranked(label, statistics.fmean(own), own) for label, own in zip(labels, of_labels, strict=True)]
    ordered = tuple(sorted(found, key=lambda ranked: ranked.mean_rank))
    return Ranking(ordered, attacks, left_out, unattacked, collapsed)


def with_mean_ranks(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the mean rank of their defense, None for what the ranking leaves out."""
    ranking = rank(rows)
    means = {ranked.defense: ranked.mean_rank for ranked in ranking.defenses}
    titles = {row: title for title, group in victims(rows).items() for row in group}
    return [
        dataclasses.replace(row, mean_rank=means.get(row.defense) if titles[row] in ranking.attacks else None)
        for row in rows
    ]


def table(ranking: Ranking, format: str = "console") -> str:
    """Write a ranking for the ``console``, as ``markdown`` or as ``latex``: mean rank, and the rank for each attack.

    Raises:
      InputError: an unknown format.
    """
    if not ranking.attacks:
        return " ".join(["No ranking: there is no attack that all of these defenses were run on.", *_left_out(ranking)])
    means = sorted({ranked.mean_rank for ranked in ranking.defenses})
    marks = dict(zip(means, (BEST, SECOND), strict=False))
    lines = []
    for one in ranking.defenses:
        cells = [one.defense, f"{one.mean_rank:.2f}", *(f"{place:g}" for place in one.ranks)]
        lines.append(Line(cells, marks.get(one.mean_rank, "")))
    caption = (
        f"Rank of {len(lines)} defenses by mean DER, 1 for the highest, ties averaged, and its mean over "
        f"{count(len(ranking.attacks), 'attack')}."
    )
    caption = " ".join([caption, *_left_out(ranking)])
    heads = ["defense", "mean rank", *ranking.attacks]
    return write(Grid("", heads, {"": lines}, caption, 1, ("lowest mean rank", "second lowest")), format)


def _left_out(ranking: Ranking) -> list[str]:
    """Say what has no place in the ranking, and why."""
    reasons = {
        "without some of the defenses": ranking.left_out,
        "without an attack that took": ranking.unattacked,
        "at chance after the defense": ranking.collapsed,
    }
    return [f"Left out, {why}: {', '.join(names)}." for why, names in reasons.items() if names]
