"""Whether there is anything to compare: a victim that has learned its task, and an attack that it has learned.

A defense has nothing to remove where the attack did not take, and a network that names one class for everything hits
nothing: both earn ratings as good as those of a perfect defense. The rules by which a record is marked stand here
alone, on its counts:

- *At chance*: the clean accuracy is not above that of a guess, 1 / classes or the share of the most frequent class
  where the record has that, by more than `DEVIATIONS` standard deviations of a guess on so many images. That is the
  one-sided score test at 5 %: of networks that only guess it marks 95 of 100, and of those that always name one class
  all.
- *Did not take*: the attack success rate of the victim is not above `LOW_ATTACK_SUCCESS`, below which the field calls
  an attack removed, or not above 1 / classes where that is more, by the same test. A network without a backdoor that
  is right more often than a guess, and errs evenly, hits the attacker's class less often than a guess.
- *No pixel*: the trigger leaves each test image as it was, as the measured share of changed pixels says.

Where the attacker poisons nothing on purpose (a rate of 0), nothing is said of the attack; it is no fault, but there is
no attack to be removed either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

LOW_ATTACK_SUCCESS = 0.1  # attack success rates fall on both sides of it and rarely near it
DEVIATIONS = 1.645  # of a normal distribution, one-sided, 5 %
MAJORITY = "test_majority_count"  # among a record's data: test images of the most frequent class


class Fault(NamedTuple):
    """What is wrong in words, and the rate that shows it under its abbreviation, if one does."""

    words: str
    abbreviation: str = ""
    rate: float = math.nan


def of_victim(content: Mapping[str, Any]) -> tuple[Fault, ...]:
    """Return what is wrong with the victim of a record, as `bdjax.report.load` checks it, or with its attack."""
    before, stealth = content["metrics"]["before"], content.get("stealth", {})
    found = []
    if _is_at_chance(before, content["data"]):
        found.append(Fault("victim at chance", "ACC", before["clean_accuracy"]))
    if is_benign(content["config"]["attack"]):
        return tuple(found)
    for which, words in (("test", "the trigger"), ("train", "the trigger in training")):
        if stealth.get(which, {}).get("changed_share") == 0:
            found.append(Fault(f"{words} changes no pixel"))
    bound = max(LOW_ATTACK_SUCCESS, 1 / content["data"]["num_classes"])
    if not _is_above(before["attack_hits"], before["attack_total"], bound):
        found.append(Fault("attack did not take", "ASR", before["attack_success_rate"]))
    return tuple(found)


def of_defended(content: Mapping[str, Any]) -> tuple[Fault, ...]:
    """Return whether the defense has left a network at chance, if the victim was none."""
    before, after = (content["metrics"][when] for when in ("before", "after"))
    if _is_at_chance(after, content["data"]) and not _is_at_chance(before, content["data"]):
        return (Fault("network at chance after the defense", "ACC", after["clean_accuracy"]),)
    return ()


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
    first = faults[0]
    often = f" in {len(faults)} of {seeds} seeds" if len(faults) < seeds else ""
    if not first.abbreviation:
        return first.words + often
    mean = sum(fault.rate for fault in faults) / len(faults)
    return f"{first.words}{often} ({first.abbreviation} {100 * mean:.1f} %)"


def _is_at_chance(metrics: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    total = metrics["clean_total"]
    guess = max(1 / data["num_classes"], data.get(MAJORITY, 0) / total)
    return not _is_above(metrics["clean_correct"], total, guess)


def _is_above(hits: int, total: int, share: float) -> bool:
    """Say whether so many hits are more than come of a share by chance."""
    return hits - total * share > DEVIATIONS * math.sqrt(total * share * (1 - share))
