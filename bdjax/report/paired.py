"""Two defenses compared on the same victims, holdouts and seeds, so that what varies among victims cancels."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from bdjax.checks import InputError, did_you_mean, one_of
from bdjax.files.printable import printable
from bdjax.report import values
from bdjax.report.cells import bounds, spread
from bdjax.report.grid import FORMATS, UNSOUND, Grid, Line, write
from bdjax.report.labels import LONGEST, SYMBOLS, label, of_defense, plain, without_defense
from bdjax.report.records import Record
from bdjax.report.rows import Row, common, metrics_of, records_of, summarize, victims
from bdjax.report.statistics import (
    DRAWS,
    EXACT_PAIRS,
    Interval,
    SignFlip,
    Statistic,
    interval,
    sign_flip,
    statistic,
)
from bdjax.runs import soundness
from bdjax.tasks.metrics import ATTACK, RATING, UTILITY, Metric, names, of_roles

ROLES = (RATING, ATTACK, UTILITY)  # of the metrics that are compared by default
Pair: TypeAlias = tuple[Record, Record]  # of the first defense and of the second

ALL = "all"  # in place of an attack, where there are several: the pairs of all of them
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One metric of two defenses over the pairs of an attack, or of all. Values lie in [0, 1], differences in [-1, 1].

    Attributes:
      attack: as a table names the victim, or ``ALL``.
      metric: which, of those that the records describe.
      n: how many pairs.
      first: mean and deviation of the first defense.
      second: of the second one.
      difference: of first - second, pair by pair.
      interval: the 95 % interval of the mean difference, None of one pair.
      test: whether the differences center on zero.
    """

    attack: str
    metric: Metric
    n: int
    first: Statistic
    second: Statistic
    difference: Statistic
    interval: Interval | None
    test: SignFlip


@dataclasses.dataclass(frozen=True)
class Paired:
    """The comparisons of two defenses, and what is to be known of them.

    Attributes:
      first: what a table calls the one defense.
      second: and the other.
      comparisons: of each attack and, where there are several, of all pairs with an attack (``ALL``).
      unpaired: the runs of either that have no counterpart of the other.
      where: data and model, if all runs share them.
      notes: of attacks, what is wrong with their victims or with the defended networks (`bdjax.runs.soundness`).
      apart: how many pairs are not in ``ALL``, as their victim has no attack.
    """

    first: str
    second: str
    comparisons: tuple[Comparison, ...]
    unpaired: tuple[Record, ...]
    where: str
    notes: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    apart: int = 0


def compare(
    records: Iterable[Record], first: str, second: str, metrics: Sequence[str] | None = None
) -> Paired:
    """Compare two defenses over all runs that differ in nothing but the defense and its options.

    That is: the same attacked network, holdout and seed. Runs without a counterpart are left out, named in a warning,
    and returned.

    Args:
      records: of any runs; those of other defenses are passed over.
      first: the label of a defense as a table prints it, or as much of it as tells it from the others: ``ft_sam``,
        ``ft_sam ρ=2``, ``ft_sam rho=2``.
      second: likewise.
      metrics: the names of some that the records describe; by default the rating, what the attacker wants, and the
        utility of each task.

    Raises:
      InputError: no such defense, several for one label, one for both, an unknown metric, or no pair.
    """
    rows = summarize(records)
    for metric in metrics or ():
        one_of(names(metrics_of(rows)), metric=metric)
    sides = [_named(rows, wanted) for wanted in (first, second)]
    if set(sides[0]) & set(sides[1]):
        raise InputError(f"{first!r} and {second!r} name the same defense; name two.")
    pairs, unpaired = _pairs(*sides)
    if not pairs:
        raise InputError(
            f"no run of {first!r} has a counterpart of {second!r} with the same victim, holdout and seed."
        )
    labels = (_name(sides[0]), _name(sides[1]))
    notes = {title: _notes(title, labels, of_attack) for title, of_attack in pairs.items()}
    attacked = {title: list(filter(_has_attack, of_attack)) for title, of_attack in pairs.items()}
    apart = sum(map(len, pairs.values())) - sum(map(len, attacked.values()))
    if sum(map(bool, attacked.values())) > 1:
        pairs[ALL] = [pair for of_attack in attacked.values() for pair in of_attack]
    found = []
    for title, own in pairs.items():
        found += [_comparison(title, metric, own) for metric in _compared(own, metrics)]
    if not found:
        raise InputError(
            f"no run of {first!r} and {second!r} has the metric {', '.join(metrics or ())}."
        )
    return Paired(
        *labels,
        comparisons=tuple(found),
        unpaired=unpaired,
        where=common(sides[0]),
        notes={title: own for title, own in notes.items() if own},
        apart=apart,
    )


def _pairs(
    first: Sequence[Row], second: Sequence[Row]
) -> tuple[dict[str, list[Pair]], tuple[Record, ...]]:
    """Return the runs of two defenses that belong together, by what a table calls their victim; and those left over."""
    here, there = (
        {_pairing(record): record for record in records_of(side)} for side in (first, second)
    )
    titles = _titles(first)
    pairs: dict[str, list[Pair]] = defaultdict(list)
    for pairing, record in here.items():
        if pairing in there:
            pairs[titles[pairing[0]]].append((record, there[pairing]))
    unpaired = tuple(
        (here | there)[pairing]
        for pairing in [*here, *there]
        if (pairing in here) != (pairing in there)
    )
    if pairs and unpaired:
        left_out = ", ".join(printable(record.run_id, LONGEST) for record in unpaired)
        _log.warning(
            "Left out, without a counterpart of the other defense: %d (%s).",
            len(unpaired),
            left_out,
        )
    return pairs, unpaired


def _compared(pairs: Sequence[Pair], wanted: Sequence[str] | None) -> list[Metric]:
    """Return the metrics to be compared, in the order asked for, that all of the pairs have."""
    of_pairs = [{metric.name: metric for metric in record.metrics} for record, _ in pairs]
    known = of_pairs[0]
    if wanted is None:
        wanted = names(of_roles(list(known.values()), *ROLES))
    return [known[name] for name in wanted if all(name in of for of in of_pairs)]


def _has_attack(pair: Pair) -> bool:
    """Say whether there is a backdoor to remove from the victim of a pair."""
    content = pair[0].content
    return not soundness.is_benign(content["config"]["attack"]) and not soundness.of_victim(content)


def _notes(title: str, names: tuple[str, str], pairs: Sequence[Pair]) -> list[str]:
    """Say what is wrong with the victims of an attack, and with what either defense made of them."""
    of_victims = [soundness.of_victim(pair[0].content) for pair in pairs]
    found = [f"{title}: {words}" for words in soundness.told(of_victims)]
    for name, side in zip(names, zip(*pairs, strict=True), strict=True):
        told = soundness.told([soundness.of_defended(record.content) for record in side])
        found += [f"{title}, {name}: {words}" for words in told]
    return found


def _comparison(title: str, metric: Metric, pairs: Sequence[Pair]) -> Comparison:
    first, second = (
        [record.value(metric.name) for record in side] for side in zip(*pairs, strict=True)
    )
    moved = [one - other for one, other in zip(first, second, strict=True)]
    means = (statistic(first), statistic(second), statistic(moved))
    return Comparison(title, metric, len(pairs), *means, interval(moved), sign_flip(moved))


def _pairing(record: Record) -> tuple[str, int]:
    return without_defense(record.settings), record.seed


# --- Labels ----------------------------------------------------------------------------------------------------------


def _named(rows: Sequence[Row], wanted: str) -> list[Row]:
    """Return the rows of the defense that a label names: one for each victim and holdout."""
    labels = {row: _own_label(row) for row in rows}
    words = _words(wanted)
    found = [row for row in rows if _words(labels[row]) == words]
    found = found or [
        row
        for row in rows
        if words[:1] == [row.name("defense")] and {*words} <= {*_words(labels[row])}
    ]
    known = list(dict.fromkeys(labels.values()))
    if not found:
        listed = ", ".join(map(repr, known))
        raise InputError(
            f"there is no run of the defense {wanted!r}{did_you_mean(wanted, known)}; there are {listed}."
        )
    of_victims = [without_defense(row.records[0].settings) for row in found]
    if len(set(of_victims)) < len(of_victims):
        listed = ", ".join(map(repr, dict.fromkeys(labels[row] for row in found)))
        raise InputError(f"the defense {wanted!r} may be any of {listed}; name one of them.")
    return found


def _own_label(row: Row) -> str:
    """Return the label of a row's defense without what is told of the holdout, which pairs share."""
    own = {key: value for key, value in row.settings.items() if of_defense(key)}
    return label(row.records[0].config, "defense", own)


def _words(wanted: str) -> list[str]:
    """Return the words of a label, its options under their symbols, its numbers as they are printed."""
    words = []
    for word in wanted.split():
        key, equals, value = word.partition("=")
        with contextlib.suppress(ValueError):
            value = plain(float(value))
        words.append(SYMBOLS.get(key, key) + equals + value)
    return words


def _name(rows: Sequence[Row]) -> str:
    """Return the label that the rows share, else the name of their defense."""
    labels = {_own_label(row) for row in rows}
    return labels.pop() if len(labels) == 1 else rows[0].name("defense")


def _titles(rows: Sequence[Row]) -> dict[str, str]:
    """Return what a table calls each victim, with what is told of the holdout, by the text that pairs share."""
    titles = {}
    for title, group in victims(rows).items():
        for row in group:
            others = {key: value for key, value in row.settings.items() if not of_defense(key)}
            holdout = (
                label(row.records[0].config, "defense", others)
                .removeprefix(row.name("defense"))
                .strip()
            )
            titles[without_defense(row.records[0].settings)] = " · ".join(
                filter(None, (title, holdout))
            )
    return titles


# --- Table -----------------------------------------------------------------------------------------------------------


def table(paired: Paired, format: str = "console", decimals: int = 1) -> str:
    """Write comparisons as a table; printed in percent and points with ``decimals`` digits, in CSV unrounded.

    Raises:
      InputError: an unknown format.
    """
    one_of(FORMATS, format=format)
    if format == "csv":
        return _csv(paired)
    groups: dict[str, list[Line]] = defaultdict(list)
    for one in paired.comparisons:
        means = [spread(value, decimals, 100) for value in (one.first, one.second, one.difference)]
        test = [f"{one.test.p:.3g}", f"{one.test.smallest_p:.3g}"]
        cells = [one.metric.head, *means, bounds(one.interval, decimals, 100), *test, str(one.n)]
        groups[one.attack].append(Line(cells, UNSOUND if one.attack in paired.notes else ""))
    heads = [
        "metric",
        paired.first,
        paired.second,
        "difference",
        "95 %",
        "p",
        "smallest p",
        "pairs",
    ]
    notes = [note for own in paired.notes.values() for note in own]
    return write(Grid("attack", heads, groups, _caption(paired), notes=notes), format)


def _caption(paired: Paired) -> str:
    repeated = any(one.n > 1 for one in paired.comparisons)
    several = any(one.attack == ALL for one in paired.comparisons)
    large = any(not one.test.exact for one in paired.comparisons)
    parts = (
        f"{paired.where}{': ' if paired.where else ''}{paired.first} less {paired.second} on the same victims, "
        f"holdouts and seeds{', mean ± sample standard deviation over pairs' if repeated else ''}, in % and points.",
        "95 %: bootstrap percentile interval of the mean difference (of two or three, their range)."
        if repeated
        else "",
        "p: two-sided, from flipping the signs of the differences"
        + (
            f" (of more than {EXACT_PAIRS}, {DRAWS} times at random)."
            if large
            else ", in all ways."
        ),
        "smallest p: the least that so many differences can give, however large they are.",
        f"{ALL}: the pairs of all attacks, as if independent." if several else "",
        f"Left out of it, without an attack that took: {paired.apart}."
        if several and paired.apart
        else "",
        f"Left out without a counterpart: {len(paired.unpaired)}." if paired.unpaired else "",
    )
    return " ".join(filter(None, parts))


def _csv(paired: Paired) -> str:
    compared = [
        f"{which}_{part}"
        for which in ("first", "second", "difference")
        for part in Statistic._fields
    ]
    limits = [f"difference_{bound}" for bound in Interval._fields]
    noted = ("notes",) if paired.notes else ()
    head = (
        "attack",
        "metric",
        "first",
        "second",
        "n",
        *compared,
        *limits,
        *SignFlip._fields,
        *noted,
    )
    lines = []
    for one in paired.comparisons:
        measured = (
            *one.first,
            *one.second,
            *one.difference,
            *(one.interval or (None, None)),
            *one.test,
        )
        notes = ("; ".join(paired.notes.get(one.attack, ())),) if paired.notes else ()
        lines.append(
            (one.attack, one.metric.name, paired.first, paired.second, one.n, *measured, *notes)
        )
    return values.write(head, lines)
