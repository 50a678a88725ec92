"""What is measured of a network: the name, head, words and denominator of each number, once for all of bdjax.

Records describe their metrics by this, and tables, figures, pages and files loop over the description. Nothing here
needs JAX, so that reports start without it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

UTILITY, ATTACK, RESTORED, RATING = "utility", "attack", "restored", "rating"
ROLES = (UTILITY, ATTACK, RESTORED, RATING)


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number that a task measures.

    Attributes:
      name: its key in records, and its column in files.
      head: what stands over its column in a table.
      words: what it is, for a page or a caption.
      role: what it says of a defense. ``utility``: what a clean network is for, and a defense should keep; ``attack``:
        what the attacker wants; ``restored``: what triggered inputs should give; ``rating``: both networks in one.
      higher_is_better: for the defender.
      counts: the names of two counts in the record whose ratio it is; None where it is no ratio of counts.
      unit: ``share``, in [0, 1] and printed in percent.
    """

    name: str
    head: str
    words: str
    role: str
    higher_is_better: bool = True
    counts: tuple[str, str] | None = None
    unit: str = "share"

    def plain(self) -> dict[str, Any]:
        """Return it as a record has it; `described` reads it back."""
        values = dataclasses.asdict(self)
        return {**values, "counts": None if self.counts is None else list(self.counts)}


def described(values: dict[str, Any]) -> Metric:
    """Return the metric that a record describes."""
    counts = values["counts"]
    return Metric(**{**values, "counts": None if counts is None else tuple(counts)})


RATE = Metric("attack_success_rate", "ASR", "attack success rate", ATTACK, False, ("attack_hits", "attack_total"))
EFFECTIVENESS = Metric("defense_effectiveness_rating", "DER", "defense effectiveness rating", RATING)
SINGLE_LABEL = (
    Metric("clean_accuracy", "ACC", "clean accuracy", UTILITY, True, ("clean_correct", "clean_total")),
    RATE,
    Metric("robust_accuracy", "RA", "robust accuracy", RESTORED, True, ("robust_correct", "attack_total")),
    EFFECTIVENESS,
)
