"""Clean accuracy and attack success rate over the epochs of a defense."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from bdjax import evaluate
from bdjax.checks import integer
from bdjax.report import layout
from bdjax.report.layout import BLUE, GREY, ORANGE
from bdjax.runs.subject import Findings, Subject
from bdjax.types import Variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RATES = (
    ("clean_accuracy", "ACC: clean accuracy", BLUE, "-"),
    ("attack_success_rate", "ASR: attack success rate", ORANGE, "-"),
    ("robust_accuracy", "RA: robust accuracy", GREY, "--"),
)


def history(every: int = 1) -> History:
    """Draw ACC, ASR and RA over the epochs of a defense, which is carried out again for it, bit for bit.

    Args:
      every: epochs between two points; the first and the last are always measured.

    Raises:
      InputError: ``every`` below 1.
    """
    integer(1, every=every)
    return History(every)


@dataclasses.dataclass(frozen=True)
class History:
    """The analysis `history`."""

    every: int

    def measure(self, subject: Subject) -> Findings:
        """Return ``epoch`` [k] and the rates [k] after so many epochs, in [0, 1]."""
        rows = {}

        def measure(epoch: int, variables: Callable[[], Variables]) -> None:
            if epoch % self.every == 0 or epoch == subject.epochs:
                found = evaluate.evaluate(subject.model, variables(), subject.test, subject.triggered)
                rows[epoch] = [float(getattr(found, name)) for name, *_ in _RATES]

        subject.replay(measure)
        rates = np.asarray(list(rows.values())).T
        return {"epoch": np.asarray(list(rows)), **dict(zip((name for name, *_ in _RATES), rates, strict=True))}

    def draw(self, found: Mapping[str, Findings]) -> Figure:
        """Draw a panel for each run, all with the same axes."""
        from matplotlib.lines import Line2D
        from matplotlib.ticker import MaxNLocator

        page, panels = layout.panels(found, "Accuracy and attack success over the epochs of the defense")
        last = max(int(findings["epoch"][-1]) for findings in found.values())
        for findings, ax in zip(found.values(), panels, strict=True):
            for name, _, color, dash in _RATES:
                ax.plot(findings["epoch"], 100 * findings[name], dash, color=color, marker="o", ms=2.5, lw=1.4)
            ax.set_xlim(-0.02 * max(last, 1), 1.02 * max(last, 1))
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set_ylim(-3, 103)
            ax.set_yticks(range(0, 101, 25), ["0", "25", "50", "75", "100 %"])
            ax.set_xlabel("epochs")
        key = [Line2D([], [], color=color, ls=dash, label=label) for _, label, color, dash in _RATES]
        layout.legend(page, key, page.get_figheight() - layout.KEY)
        return page
