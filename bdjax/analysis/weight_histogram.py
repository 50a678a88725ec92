"""Distribution of a layer's weights, or of its neurons' norms, before and after a defense."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bdjax import structure
from bdjax.analysis._neurons import norms
from bdjax.checks import integer, one_of
from bdjax.report import layout
from bdjax.report.layout import AFTER, BEFORE
from bdjax.runs.subject import Findings, Subject, convolution
from bdjax.structure import Path
from bdjax.types import Variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_BINS = 100_000
_WORDS = {"norms": layout.WEIGHT_NORM, "weights": "weight $w$"}


def weight_histogram(
    of: str = "norms", bins: int = 30, layer: str | None = None
) -> WeightHistogram:
    """Draw how a layer's weights, or the norms of its neurons, are distributed before and after the defense.

    Args:
      of: ``norms``, ‖W_k‖₂ of each output filter, as FT-SAM's text has it, or ``weights``, all entries of the kernel,
        as its caption has it.
      bins: of equal width, between the least and the largest value of both networks.
      layer: such as ``layer4_1/conv2``; the last convolution if it is not given.

    Raises:
      InputError: something else to count, fewer than 2 bins, or, when a run is measured, no such convolution.

    References:
      Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization, ICCV 2023, fig. 5.
    """
    one_of(_WORDS, of=of)
    integer(2, maximum=_MOST_BINS, bins=bins)
    return WeightHistogram(of, bins, layer)


@dataclasses.dataclass(frozen=True)
class WeightHistogram:
    """The analysis `weight_histogram`."""

    of: str
    bins: int
    layer: str | None

    def measure(self, subject: Subject) -> Findings:
        """Return ``edges`` [bins + 1], counts ``victim`` and ``defended`` [bins], and their deviations (``_std``)."""
        layer = convolution(subject.model, subject.victim, self.layer)
        victim = self._values(subject.victim, layer)
        defended = self._values(subject.defended, layer)
        edges = np.histogram_bin_edges(np.concatenate([victim, defended]), self.bins)
        found = {"edges": edges, "layer": np.asarray("/".join(layer[:-1]))}
        for when, values in (("victim", victim), ("defended", defended)):
            found[when] = np.histogram(values, edges)[0]
            found[f"{when}_std"] = np.asarray(values.std())
        return found

    def _values(self, variables: Variables, layer: Path) -> np.ndarray:
        kernel = structure.flat(variables["params"])[layer]
        return np.ravel(norms(kernel) if self.of == "norms" else kernel)

    def draw(self, found: Mapping[str, Findings]) -> Figure:
        """Draw a panel for each run with both outlines."""
        from matplotlib.patches import Patch
        from matplotlib.ticker import MaxNLocator

        what = "weight norms" if self.of == "norms" else "weights"
        page, panels = layout.panels(found, f"Distribution of {what}")
        key = [
            Patch(fc=BEFORE["color"], alpha=0.4, label=BEFORE["label"]),
            Patch(fc="none", ec=AFTER["color"], label=AFTER["label"]),
        ]
        for findings, ax in zip(found.values(), panels, strict=True):
            ax.stairs(
                findings["victim"], findings["edges"], fill=True, color=BEFORE["color"], alpha=0.4
            )
            ax.stairs(findings["defended"], findings["edges"], color=AFTER["color"], lw=1.4)
            ax.set_xlabel(f"{_WORDS[self.of]} in {findings['layer']}")
            ax.set_ylabel("neurons" if self.of == "norms" else "weights")
            before, after = float(findings["victim_std"]), float(findings["defended_std"])
            layout.remark(ax, f"standard deviation {before:.2g}, after {after:.2g}")
            ax.set_ylim(bottom=0)
            ax.xaxis.set_major_locator(MaxNLocator(5))
            ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        layout.legend(page, key, page.get_figheight() - layout.KEY)
        return page
