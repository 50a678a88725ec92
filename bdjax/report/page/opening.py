"""The top of the page: what was measured, and what came out, computed from the rows."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from xml.etree.ElementTree import Element

from bdjax.report.cells import spread
from bdjax.report.grid import SIGN
from bdjax.report.labels import count
from bdjax.report.page.content import PERCENT, Content, article, listed, mapping, percent
from bdjax.report.page.markup import add, tag
from bdjax.report.records import Record
from bdjax.report.rows import Row, names_in, records_of
from bdjax.report.standing import best, target_classes
from bdjax.report.statistics import Statistic
from bdjax.runs import soundness
from bdjax.runs.record_format import SECTIONS
from bdjax.runs.soundness import LOW_ATTACK_SUCCESS
from bdjax.tasks.metrics import ATTACK, RATING, UTILITY, of_roles

CARDS = 12  # victims that are shown at once
MOST_NOTES = 3  # of what is not counted; all stand below the table


def title(content: Content) -> str:
    """Return the title of the page.

    Its words are ``Backdoors on``, the data, and how many attacks and defenses there are.
    """
    defenses = count(len(names_in(_defended(content.rows), "defense")), "defense")
    attacks = count(len(names_in(content.rows, "attack")), "attack")
    data = listed(names_in(content.rows, "data"), 3)
    return f"Backdoors on {data}: {attacks}, {defenses}"


def header(content: Content) -> Element:
    """Return the header: title, one sentence of what was measured, and the findings."""
    header = tag("header", tag("p", "bdjax report", class_="brand"), tag("h1", title(content)))
    add(header, tag("p", _measured(content), class_="lead"), _other_pages(content))
    add(
        header, tag("ul", [tag("li", finding) for finding in _findings(content)], class_="findings")
    )
    cards = [_card(victim, group) for victim, group in content.victims.items()]
    add(header, tag("div", cards[:CARDS], class_="cards"))
    if more := cards[CARDS:]:
        summary = tag("summary", f"{count(len(more), 'more victim')}")
        add(header, tag("details", summary, tag("div", more, class_="cards")))
    return header


def _other_pages(content: Content) -> Element | None:
    """Say that other runs were measured differently, and lead to their pages; None where there are none."""
    if not content.others:
        return None
    links = [tag("a", words, href=address) for address, words in content.others.items()]
    words = "Runs of tasks with different metrics have pages of their own: "
    return tag("p", words, [part for link in links for part in (link, " ")], class_="note")


def _measured(content: Content) -> str:
    """Say which runs these are."""
    rows, records = content.rows, content.records
    data, networks, attacks, defenses = (listed(names_in(rows, section)) for section in SECTIONS)
    seeds = sorted({record.seed for record in records})
    return (
        f"{count(len(records), 'run')} of {networks} on {data}: {attacks} against {defenses}; "
        f"{count(len(seeds), 'seed')} ({_span(seeds)}). {_targets(rows)}{_circumstances(records)}"
    )


def _targets(rows: Sequence[Row]) -> str:
    """Name the class that the attackers want, if they want one."""
    targets = target_classes(rows)
    return f"{targets[:1].upper()}{targets[1:]}. " if targets else ""


def _span(numbers: Sequence[int]) -> str:
    whole = len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}–{numbers[-1]}" if whole else listed(numbers)


def _circumstances(records: Sequence[Record]) -> str:
    """Say with which versions, on what and when."""
    bdjax, jax = (_told(records, "versions", package) for package in ("bdjax", "jax"))
    made = f"Made with bdjax {bdjax}, jax {jax} on {_told(records, 'device', 'kind')}"
    dates = _dates(records)
    return f"{made}; records of {dates}." if dates else f"{made}."


def _told(records: Iterable[Record], section: str, key: str) -> str:
    """Return what records say under a key of a section, a question mark for those that say nothing."""
    found: dict[str, None] = {}
    for record in records:
        found[str(mapping(record.content.get(section)).get(key, "?"))] = None
    return listed(found, 3)


def _dates(records: Iterable[Record]) -> str:
    """Return when the records were written, but for those that are in no file: a day in UTC, or the first and last."""
    written = [record.file.stat().st_mtime for record in records if record.file.is_file()]
    days = [time.strftime("%Y-%m-%d", time.gmtime(moment)) for moment in sorted(written)]
    return " to ".join(dict.fromkeys([*days[:1], *days[-1:]]))


# --- Findings --------------------------------------------------------------------------------------------------------


def _findings(content: Content) -> Iterator[str]:
    """Say what came out where there was something to compare (`bdjax.runs.soundness`), and what is left out."""
    defended = [row for row in _defended(content.rows) if row.competes]
    attacked = [row for row in content.rows if row.name("defense") == "none" and row.has_attack]
    attack = content.attack
    if attacked:
        yield f"Without a defense the mean {attack.head} is {_reach(row.attack_success for row in attacked)}."
    if defended:
        runs = records_of(defended)
        low = sum(record.value(attack.name) < LOW_ATTACK_SUCCESS for record in runs)
        below = f"{article(attack.head)} {attack.head} below {percent(LOW_ATTACK_SUCCESS)}"
        yield f"{low} of {count(len(runs), 'run')} with a defense end with {below}."
        yield from _winners(content)
        yield from _overall(content)
    if content.notes:
        more = (
            [f"{len(content.notes) - MOST_NOTES} more"] if len(content.notes) > MOST_NOTES else []
        )
        yield f"Not counted: {'; '.join([*content.notes[:MOST_NOTES], *more])}."


def _defended(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.name("defense") != "none"]


def _winners(content: Content) -> Iterator[str]:
    """Say whose rating is the highest, on how many victims."""
    victims = [group for group in content.victims.values() if _defended(group) and best(group)]
    if len(victims) < 2:
        return
    wins = Counter()
    for group in victims:
        wins.update({row.name("defense") for row in best(group)})
    (name, times), *others = wins.most_common()
    also = "".join(f", {other} on {number}" for other, number in others[:3])
    of = count(len(victims), "victim")
    yield f"Highest mean {content.rating.head}: {name} on {times} of {of}{also}."


def _overall(content: Content) -> Iterator[str]:
    """Name the defense, with one setting, whose rating is the highest over all victims, if several were run on all."""
    victims = [group for group in content.victims.values() if all(row.has_attack for row in group)]
    ratings: dict[str, list[float]] = {}
    for group in victims:
        for row in _defended(group):
            if row.competes:
                ratings.setdefault(row.defense, []).append(row.rating.mean)
    known: dict[str, float] = {}
    for name, of in ratings.items():
        mean = sum(of) / len(of)
        if len(of) == len(victims) and not math.isnan(mean):
            known[name] = mean
    if len(known) > 1 and len(victims) > 1:
        name = max(known, key=lambda one: known[one])
        which = "all victims" if len(victims) == len(content.victims) else f"{len(victims)} victims"
        mean = f"{100 * known[name]:.1f}{PERCENT}"
        yield f"Over {which} {name} has the highest mean {content.rating.head}, {mean}."


def _reach(statistics: Iterable[Statistic]) -> str:
    means = [100 * statistic.mean for statistic in statistics if not math.isnan(statistic.mean)]
    if not means:
        return "not known"
    low, high = f"{min(means):.1f}", f"{max(means):.1f}"
    return f"{low}{PERCENT}" if low == high else f"{low} to {high}{PERCENT}"


def _card(victim: str, group: Sequence[Row]) -> Element:
    """Return one victim's best defense, and the rates before and after it; or why there is none."""
    card = tag("div", tag("h2", victim), class_="card finding")
    winners = [row for row in group if row in best(group)]
    row = next(iter(winners or group))
    if not winners:
        faults = "; ".join(soundness.told(row.faults))
        reason = f"{SIGN} {faults}" if faults else "no image was poisoned"
        return add(card, tag("p", reason, class_="winner"), _changes(row))
    equal = f" and {len(winners) - 1} more" if len(winners) > 1 else ""
    name = row.defense
    if row.name("defense") == "none":
        name = "no defense did better than none" if _defended(group) else "no defense was run"
    add(card, tag("p", name, equal, class_="winner"))
    add(
        card,
        tag(
            "p",
            tag("b", spread(row.rating, 1, 100)),
            f" {row.metric(RATING).head}, ",
            f"n = {row.n}",
        ),
    )
    return add(card, _changes(row))


def _changes(row: Row) -> Element:
    changes = tag("dl")
    for metric in of_roles(row.metrics, ATTACK, UTILITY):
        after = spread(row.statistics[metric.name], 1, 100)
        words = f"{_before(row, metric.name):.1f} → {after}{PERCENT}"
        add(changes, tag("dt", metric.head), tag("dd", words))
    return changes


def _before(row: Row, name: str) -> float:
    return 100 * sum(record.before[name] for record in row.records) / row.n
