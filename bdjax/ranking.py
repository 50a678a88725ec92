"""Defenses ranked over attacks: what can be said of many of them where no single number compares."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from bdjax.report import Row, count, victims
from bdjax.tables import BEST, SECOND, Grid, Line, write
from bdjax.uncertainty import ranks


class Ranked(NamedTuple):
    """A defense, by its label, with the mean of its ranks and its rank for each attack of the `Ranking`."""

    defense: str
    mean_rank: float
    ranks: tuple[float, ...]


class Ranking(NamedTuple):
    """The defenses, the best first, over the attacks that all of them have; the others are left out."""

    defenses: tuple[Ranked, ...]
    attacks: tuple[str, ...]
    left_out: tuple[str, ...]


def rank(rows: Sequence[Row]) -> Ranking:
    """Rank the defenses of each victim by mean defense effectiveness rating, 1 for the highest; average over victims.

    Equal ratings share the mean of their ranks. Only victims that every defense of the rows was run on count: a mean
    over other victims for each would compare victims. Without any, there are no defenses in the ranking either.
    """
    labels = list(dict.fromkeys(row.defense for row in rows))
    ratings = {
        title: {row.defense: row.defense_effectiveness_rating.mean for row in group}
        for title, group in victims(rows).items()
    }
    attacks = tuple(title for title, of in ratings.items() if len(of) == len(labels))
    left_out = tuple(title for title in ratings if title not in attacks)
    if not attacks:
        return Ranking((), (), left_out)
    of_attacks = [ranks([ratings[title][label] for label in labels]) for title in attacks]
    of_labels = zip(*of_attacks, strict=True)
    found = [Ranked(label, statistics.fmean(own), own) for label, own in zip(labels, of_labels, strict=True)]
    return Ranking(tuple(sorted(found, key=lambda ranked: ranked.mean_rank)), attacks, left_out)


def with_mean_ranks(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the mean rank of their defense, None for victims that the ranking leaves out."""
    ranking = rank(rows)
    means = {ranked.defense: ranked.mean_rank for ranked in ranking.defenses}
    titles = {row: title for title, group in victims(rows).items() for row in group}
    return [
        dataclasses.replace(row, mean_rank=means[row.defense] if titles[row] in ranking.attacks else None)
        for row in rows
    ]


def table(ranking: Ranking, format: str = "console") -> str:
    """Write a ranking for the ``console``, as ``markdown`` or as ``latex``: mean rank, and the rank for each attack.

    Raises:
      InputError: an unknown format.
    """
    if not ranking.attacks:
        return "No ranking: there is no attack that all of these defenses were run on."
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
    if ranking.left_out:
        caption += f" Left out, without some of the defenses: {', '.join(ranking.left_out)}."
    heads = ["defense", "mean rank", *ranking.attacks]
    return write(Grid("", heads, {"": lines}, caption, 1, ("lowest mean rank", "second lowest")), format)
