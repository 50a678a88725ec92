"""What is measured of a network: the name, head, words and denominator of each number, once for all of bdjax.

Records describe their metrics by this, and tables, figures, pages and files loop over the description. Nothing here
needs JAX, so that reports start without it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

UTILITY, ATTACK, RESTORED, RATING = "utility", "attack", "restored", "rating"
ROLES = (UTILITY, ATTACK, RESTORED, RATING)
NEEDED = (UTILITY, ATTACK, RATING)  # of the roles: what every task has a metric of


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number that a task measures, in [0, 1]; it is printed in percent.

    Attributes:
      name: its key in records, and its column in files.
      head: what stands over its column in a table.
      words: what it is, for a page or a caption.
      role: what it says of a defense. ``utility``: what a clean network is for, and a defense should keep; ``attack``:
        what the attacker wants, so that less is better; ``restored``: what triggered inputs should give; ``rating``:
        both networks in one. Of several metrics of one role the first counts in ratings, ranks and figures.
      part: the name of the count in the record whose share of ``total`` it is; empty where it is no ratio of counts.
      total: the name of the count of the test inputs that it is measured on; empty for a rating.
      definition: how it is found, in a sentence that follows ``words``. It may refer to the number of its inputs
        (``{total}``), to the attackers' targets, which a page puts in brackets (``{targets}``), and to the first
        metrics of two roles (``{utility_head}``, ``{utility}``, ``{attack_head}``).
      short: ``words`` where they are a part of a sentence, if those are others.
    """

    name: str
    head: str
    words: str
    role: str
    part: str = ""
    total: str = ""
    definition: str = ""
    short: str = ""

    @property
    def brief(self) -> str:
        """The words for it within a sentence."""
        return self.short or self.words

    def plain(self) -> dict[str, str]:
        """Return it as a record has it; `described` reads it back."""
        return dataclasses.asdict(self)


def described(values: Iterable[Mapping[str, Any]]) -> tuple[Metric, ...]:
    """Return the metrics that a record describes; what a later version tells of them besides is passed over."""
    known = [field.name for field in dataclasses.fields(Metric)]
    return tuple(Metric(**{name: of[name] for name in known if name in of}) for of in values)


def to_text(metrics: Iterable[Metric]) -> str:
    """Return a description as text, for files that hold nothing but arrays; `from_text` reads it back."""
    return json.dumps([metric.plain() for metric in metrics])


def from_text(text: str) -> tuple[Metric, ...]:
    """Return the metrics that such a text describes."""
    return described(json.loads(text))


def names(metrics: Iterable[Metric]) -> tuple[str, ...]:
    """Return the names of metrics: tasks that agree in them share their tables."""
    return tuple(metric.name for metric in metrics)


def first(metrics: Iterable[Metric], role: str) -> Metric:
    """Return the first metric of a role, which the task must have one of."""
    return next(metric for metric in metrics if metric.role == role)


def of_roles(metrics: Sequence[Metric], *roles: str) -> tuple[Metric, ...]:
    """Return the first metric of each of some roles, in their order; a task need not have one of each."""
    found = {metric.role: metric for metric in reversed(metrics)}
    return tuple(found[role] for role in roles if role in found)


def totals(metrics: Iterable[Metric]) -> tuple[str, ...]:
    """Return the names of the counts of test inputs, each once."""
    return tuple(dict.fromkeys(metric.total for metric in metrics if metric.total))


def effectiveness(
    attack_drop: Any, utility_drop: Any, larger: Callable[[Any, Any], Any] = max
) -> Any:
    """Return DER = (max(0, Δ attack) − max(0, Δ utility) + 1) / 2, where Δ is before minus after the defense.

    In [0, 1]; 0.5 where nothing changed. A gain in utility is never rewarded (FT-SAM, sec. 5.1; Zhu et al., 2023).
    Arrays need another function than ``max`` that returns the ``larger`` of two values.
    """
    return (larger(0.0, attack_drop) - larger(0.0, utility_drop) + 1) / 2


RATE = Metric(
    "attack_success_rate",
    "ASR",
    "attack success rate",
    ATTACK,
    "attack_hits",
    "attack_total",
    "the share of {total} triggered test images that get the attacker's label. Images whose label is the attacker's "
    "without any trigger are left out{targets}.",
    "attack success",
)
EFFECTIVENESS = Metric(
    "defense_effectiveness_rating",
    "DER",
    "defense effectiveness rating",
    RATING,
    definition="(max(0, Δ{attack_head}) − max(0, Δ{utility_head}) + 1) / 2, where Δ is before minus after the "
    "defense. 100 % is a backdoor of 100 % removed at no cost in {utility}, 50 % is no change.",
)
SINGLE_LABEL = (
    Metric(
        "clean_accuracy",
        "ACC",
        "clean accuracy",
        UTILITY,
        "clean_correct",
        "clean_total",
        "the share of {total} untouched test images that get their true label.",
        "accuracy",
    ),
    RATE,
    Metric(
        "robust_accuracy",
        "RA",
        "robust accuracy",
        RESTORED,
        "robust_correct",
        "attack_total",
        "the share of the same triggered images that get their true label.",
    ),
    EFFECTIVENESS,
)
MULTI_LABEL = (
    Metric(
        "mean_average_precision",
        "mAP",
        "mean average precision",
        UTILITY,
        total="clean_total",
        definition="the mean over the classes of the average precision, at all points, with which the network's scores "
        "rank {total} untouched test images by whether they have the class.",
    ),
    RATE,
    EFFECTIVENESS,
)
