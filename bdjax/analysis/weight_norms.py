"""Weight norms of a layer's neurons before and after a defense."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bdjax import structure
from bdjax.analysis._neurons import norms
from bdjax.report import layout
from bdjax.report.layout import AFTER, BEFORE
from bdjax.runs.subject import Findings, Subject, convolution

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def weight_norms(layer: str | None = None) -> WeightNorms:
    """Draw the weight norm of each neuron before and after the defense, by falling norm before it.

    The norm of neuron k is ‖W_k‖₂ of its output filter. A defense that hardly moves the weights leaves the profile as
    it was; one that takes back what makes single neurons loud flattens it.

    Args:
      layer: such as ``layer4_1/conv2``; the last convolution if it is not given.

    Raises:
      InputError: when a run is measured, no such convolution.

    References:
      Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization, ICCV 2023, fig. 2, second column.
    """
    return WeightNorms(layer)


@dataclasses.dataclass(frozen=True)
class WeightNorms:
    """The analysis `weight_norms`."""

    layer: str | None

    def measure(self, subject: Subject) -> Findings:
        """Return the norms ``victim`` and ``defended`` [k], in the network's order, and the name of the ``layer``."""
        layer = convolution(subject.model, subject.victim, self.layer)
        victim = np.asarray(norms(structure.flat(subject.victim["params"])[layer]))
        defended = np.asarray(norms(structure.flat(subject.defended["params"])[layer]))
        return {"victim": victim, "defended": defended, "layer": np.asarray("/".join(layer[:-1]))}

    def draw(self, found: Mapping[str, Findings]) -> Figure:
        """Draw a panel for each run, the neurons side by side."""
        page, panels = layout.panels(found, "Weight norms, in the order before the defense")
        for findings, ax in zip(found.values(), panels, strict=True):
            order = np.argsort(-findings["victim"], kind="stable")
            place = np.arange(1, len(order) + 1)
            ax.plot(place, findings["victim"][order], **BEFORE)
            ax.plot(place, findings["defended"][order], **AFTER)
            ax.set_xlabel(f"neurons of {findings['layer']}, by falling norm")
            ax.set_ylabel(layout.WEIGHT_NORM)
            means = [
                f"{findings[when].mean():.3g} ± {findings[when].std():.2g}"
                for when in ("victim", "defended")
            ]
            layout.remark(ax, "mean {}, after {}".format(*means))
        layout.legend(page, layout.key(BEFORE, AFTER), page.get_figheight() - layout.KEY)
        return page
