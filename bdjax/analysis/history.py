"""What a task measures, such as clean accuracy and attack success rate, over the epochs of a defense."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from bdjax import evaluate
from bdjax.checks import integer
from bdjax.report import layout
from bdjax.report.layout import BLUE, GREY, ORANGE
from bdjax.runs.subject import METRICS, Findings, Subject, metrics_of
from bdjax.tasks.metrics import ATTACK, RESTORED, UTILITY, names, of_roles, to_text
from bdjax.types import Variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = {UTILITY: (BLUE, "-"), ATTACK: (ORANGE, "-"), RESTORED: (GREY, "--")}


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
        """Return ``epoch`` [k] and the metrics [k] after so many epochs, in [0, 1], with what describes them."""
        metrics = of_roles(subject.model.spec.task.metrics, *_STYLES)
        rows: dict[int, list[float]] = {}

        def measure(epoch: int, variables: Callable[[], Variables]) -> None:
            if epoch % self.every == 0 or epoch == subject.epochs:
                found = evaluate.evaluate(
                    subject.model, variables(), subject.test, subject.triggered
                )
                rows[epoch] = [float(getattr(found, metric.name)) for metric in metrics]

        subject.replay(measure)
        measured = dict(zip(names(metrics), np.asarray(list(rows.values())).T, strict=True))
        return {"epoch": np.asarray(list(rows)), **measured, METRICS: np.asarray(to_text(metrics))}

    def draw(self, found: Mapping[str, Findings]) -> Figure:
        """Draw a panel for each run, all with the same axes."""
        from matplotlib.lines import Line2D
        from matplotlib.ticker import MaxNLocator

        drawn = {
            metric.name: metric for findings in found.values() for metric in metrics_of(findings)
        }
        utility, attack = of_roles(list(drawn.values()), UTILITY, ATTACK)
        what = f"{utility.brief[:1].upper()}{utility.brief[1:]} and {attack.brief}"
        page, panels = layout.panels(found, f"{what} over the epochs of the defense")
        last = max(int(findings["epoch"][-1]) for findings in found.values())
        for findings, ax in zip(found.values(), panels, strict=True):
            for metric in metrics_of(findings):
                style = dict(zip(("color", "ls"), _STYLES[metric.role], strict=True))
                ax.plot(
                    findings["epoch"],
                    100 * findings[metric.name],
                    marker="o",
                    ms=2.5,
                    lw=1.4,
                    **style,
                )
            ax.set_xlim(-0.02 * max(last, 1), 1.02 * max(last, 1))
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set_ylim(-3, 103)
            ax.set_yticks(range(0, 101, 25), ["0", "25", "50", "75", "100 %"])
            ax.set_xlabel("epochs")
        key = []
        for metric in drawn.values():
            color, dash = _STYLES[metric.role]
            key.append(Line2D([], [], color=color, ls=dash, label=f"{metric.head}: {metric.words}"))
        layout.legend(page, key, page.get_figheight() - layout.KEY)
        return page
