"""Whether there is anything to compare: a victim that has learned its task, and an attack that it has learned.

A defense has nothing to remove where the attack did not take, and a network that names one class for everything hits
nothing: both earn ratings as good as those of a perfect defense. The rules by which a record is marked stand here
alone, on its counts:

- *At chance*: the utility of the network, which is the accuracy on clean inputs where each has one class, is not above
  that of a guess by more than `DEVIATIONS` standard deviations of a guess on so many inputs. That is the one-sided
  score test at 5 %: of networks that only guess it marks 95 of 100, and of those that always name one class all. A
  utility that is no ratio of counts has no such deviation, and is at chance where it is not above a guess.
- *Did not take*: the attack success rate of the victim is not above `LOW_ATTACK_SUCCESS`, below which the field calls
  an attack removed, or not above a guess where that is more, by the same test. A network without a backdoor that
  is right more often than a guess, and errs evenly, hits the attacker's class less often than a guess.
- *A guess* has what the record says, ``metrics.chance`` by the names of metrics. Where it says nothing and each input
  has one class, that is 1 / classes or, of the accuracy, the share of the most frequent class where the record has
  that. Of any other task nothing is known then, and no network is called at chance.
- *No pixel*: the trigger leaves each test image as it was, as the measured share of changed pixels says.

Where the attacker poisons nothing on purpose (a rate of 0), nothing is said of the attack; it is no fault, but there is
no attack to be removed either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bdjax.runs.record_format import metrics_of
from bdjax.tasks.metrics import ATTACK, SINGLE_LABEL, UTILITY, Metric, first, names

LOW_ATTACK_SUCCESS = 0.1  # attack success rates fall on both sides of it and rarely near it
DEVIATIONS = 1.645  # of a normal distribution, one-sided, 5 %
MAJORITY = "test_majority_count"  # among a record's data: test images of the most frequent class


class Fault(NamedTuple):
    """What is wrong in words, and the rate that shows it under its head in tables, if one does."""

    words: str
    head: str = ""
    rate: float = math.nan


def of_victim(content: Mapping[str, Any]) -> tuple[Fault, ...]:
    """Return what is wrong with the victim of a record, as `bdjax.report.load` checks it, or with its attack."""
    before, stealth = content["metrics"]["before"], content.get("stealth", {})
    found = []
    if _is_at_chance(content, "before"):
        found.append(_fault("victim at chance", content, "before", UTILITY))
    if is_benign(content["config"]["attack"]):
        return tuple(found)
    for which, words in (("test", "the trigger"), ("train", "the trigger in training")):
        if stealth.get(which, {}).get("changed_share") == 0:
            found.append(Fault(f"{words} changes no pixel"))
    attack = first(metrics_of(content), ATTACK)
    bound = max(LOW_ATTACK_SUCCESS, _chance(content, attack, before) or 0.0)
    if not _is_above(before, attack, bound):
        found.append(_fault("attack did not take", content, "before", ATTACK))
    return tuple(found)


def of_defended(content: Mapping[str, Any]) -> tuple[Fault, ...]:
    """Return whether the defense has left a network at chance, if the victim was none."""
    if _is_at_chance(content, "after") and not _is_at_chance(content, "before"):
        return (_fault("network at chance after the defense", content, "after", UTILITY),)
    return ()


def _fault(words: str, content: Mapping[str, Any], when: str, role: str) -> Fault:
    """Return what is wrong, with the metric that shows it."""
    metric = first(metrics_of(content), role)
    return Fault(words, metric.head, content["metrics"][when][metric.name])


def is_benign(attack: Mapping[str, Any]) -> bool:
    """Say whether the config of an attack asks for no poisoned image: the control of the attack."""
    rate = attack.get("poison_rate")
    return (attack.get("target_class_rate") if rate is None else rate) == 0


def told(of_seeds: Sequence[Iterable[Fault]]) -> list[str]:
    """Write what is wrong with victims or networks, one for each seed, with the mean rate of those it is wrong with.

    >>> from bdjax.runs.soundness import Fault, told
    >>> told([[Fault("victim at chance", "ACC", 0.1)], []])
    ['victim at chance in 1 of 2 seeds (ACC 10.0 %)']
    """
    found: dict[str, list[Fault]] = {}
    for faults in of_seeds:
        for fault in faults:
            found.setdefault(fault.words, []).append(fault)
    return [_said(faults, len(of_seeds)) for faults in found.values()]


def _said(faults: Sequence[Fault], seeds: int) -> str:
    one = faults[0]
    often = f" in {len(faults)} of {seeds} seeds" if len(faults) < seeds else ""
    if not one.head:
        return one.words + often
    mean = sum(fault.rate for fault in faults) / len(faults)
    return f"{one.words}{often} ({one.head} {100 * mean:.1f} %)"


def _is_at_chance(content: Mapping[str, Any], when: str) -> bool:
    """Say whether a network is no better than a guess; not where nobody knows what a guess gives."""
    utility, of = first(metrics_of(content), UTILITY), content["metrics"][when]
    guess = _chance(content, utility, of)
    return guess is not None and not _is_above(of, utility, guess)


def _chance(content: Mapping[str, Any], metric: Metric, of: Mapping[str, Any]) -> float | None:
    """Return what a guess gives on the inputs of a network's values, None where that is not known."""
    given = content["metrics"].get("chance", {}).get(metric.name)
    if given is not None or names(metrics_of(content)) != names(SINGLE_LABEL):
        return given
    data = content["data"]
    evenly = 1 / data["num_classes"]
    if metric.role != UTILITY:
        return evenly
    return max(evenly, data.get(MAJORITY, 0) / of[metric.total])


def _is_above(of: Mapping[str, Any], metric: Metric, share: float) -> bool:
    """Say whether a value is more than comes of a share by chance, or than the share where it is no ratio of counts."""
    if not metric.part:
        return of[metric.name] > share
    total = of[metric.total]
    return of[metric.part] - total * share > DEVIATIONS * math.sqrt(total * share * (1 - share))
