"""Smoothness of the loss surface over the epochs of a defense, which is carried out again for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from bdjax import evaluate
from bdjax.checks import integer, one_of
from bdjax.curvature.loss_surface import VARIANTS, Settings, measure
from bdjax.report import layout
from bdjax.report.layout import BLUE, GREEN, ORANGE
from bdjax.runs.subject import METRICS, Findings, Subject, metrics_of
from bdjax.tasks.metrics import ATTACK, UTILITY, names, of_roles, to_text
from bdjax.types import Variables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHARPNESS = (
    ("largest_eigenvalue", r"$\lambda_{\max}$", BLUE, "o"),
    ("hessian_trace", "Tr(H) ± 2 standard errors", ORANGE, "s"),
    ("fisher_trace", "Tr(F)", GREEN, "^"),
)
_COLORS = {UTILITY: BLUE, ATTACK: ORANGE}  # of the metrics that are drawn


# --- Over the epochs of a defense ------------------------------------------------------------------------------------


def smoothness(
    every: int = 10, images: int = 200, draws: int = 100, variant: str = "mixed"
) -> Curves:
    """Draw λ_max, Tr(H) and Tr(F), with ACC and ASR, over the epochs of a defense, which is carried out again.

    The same images and random vectors at each epoch, after figure 2 of SFT (Karim et al., 2023). One point costs up to
    100 + ``draws`` Hessian-vector products on the images.

    Args:
      every: epochs between two points; the first and the last are always measured.
      images: in the sample.
      draws: Hutchinson's, for Tr(H).
      variant: ``clean``, ``triggered`` or ``mixed``, half of each; with true labels.

    Raises:
      InputError: a value out of range or an unknown variant.
    """
    integer(1, every=every)
    one_of(VARIANTS, variant=variant)
    settings = Settings(images=images, draws=draws)
    settings.check()
    return Curves(every, variant, settings)


@dataclasses.dataclass(frozen=True)
class Curves:
    """The analysis `smoothness`."""

    every: int
    variant: str
    settings: Settings

    def measure(self, subject: Subject) -> Findings:
        """Return ``epoch`` [k], and [k] of each field of `Smoothness`, of utility and of attack success at epochs."""
        metrics = of_roles(subject.model.spec.task.metrics, *_COLORS)
        rows = {}

        def row(epoch: int, variables: Callable[[], Variables]) -> None:
            if epoch % self.every and epoch != subject.epochs:
                return
            of = (subject.model, jax.device_get(variables()), subject.test, subject.triggered)
            rates = evaluate.evaluate(*of)
            surface = measure(subject.key, *of, variant=self.variant, settings=self.settings)
            rows[epoch] = {
                **surface._asdict(),
                **{name: getattr(rates, name) for name in names(metrics)},
            }

        subject.replay(row)
        findings = {"epoch": np.asarray(list(rows)), METRICS: np.asarray(to_text(metrics))}
        for name in next(iter(rows.values())):
            findings[name] = np.asarray([np.asarray(found[name]) for found in rows.values()])
        return findings

    def draw(self, found: Mapping[str, Findings]) -> Figure:
        """Draw two panels for each run, all with the same axes: the sharpness, logarithmic, and the rates."""
        from matplotlib.lines import Line2D
        from matplotlib.ticker import MaxNLocator

        titles = [title for run in found for title in (run, "")]
        page, panels = layout.panels(
            titles, f"Sharpness of the loss on {self.variant} test images during the defense"
        )
        last = max(1, *(int(findings["epoch"][-1]) for findings in found.values()))
        limits = _limits(
            [_positive(findings[name]) for findings in found.values() for name, *_ in _SHARPNESS]
        )
        for findings, left, right in zip(found.values(), panels[::2], panels[1::2], strict=True):
            _draw_sharpness(left, findings)
            left.set_ylim(*limits)
            left.tick_params(which="both", length=0)
            for metric in metrics_of(findings):
                style = {"color": _COLORS[metric.role], "marker": ".", "lw": 1.4}
                right.plot(findings["epoch"], 100 * findings[metric.name], **style)
            right.set_ylim(-3, 103)
            right.set_yticks(range(0, 101, 25), ["0", "25", "50", "75", "100 %"])
            for ax in (left, right):
                ax.set_xlim(-0.02 * last, 1.02 * last)
                ax.xaxis.set_major_locator(MaxNLocator(integer=True))
                ax.set_xlabel("epochs")
        key = [
            Line2D([], [], color=color, marker=mark, ms=3, label=words)
            for _, words, color, mark in _SHARPNESS
        ]
        drawn = {
            metric.name: metric for findings in found.values() for metric in metrics_of(findings)
        }
        for metric in drawn.values():
            key.append(
                Line2D([], [], color=_COLORS[metric.role], marker="", ms=3, label=metric.head)
            )
        layout.legend(page, key, page.get_figheight() - layout.KEY)
        return page


def _draw_sharpness(ax: Axes, findings: Findings) -> None:
    """Draw the three curves; points of a λ_max that did not settle are hollow."""
    epoch = findings["epoch"]
    for name, _, color, mark in _SHARPNESS:
        shown = _positive(findings[name])
        settled = (
            findings["eigenvalue_converged"]
            if name == "largest_eigenvalue"
            else np.ones(len(epoch), bool)
        )
        ax.plot(epoch, shown, color=color, lw=1.4)
        for fill, rows in ((color, settled), ("white", ~settled)):
            ax.plot(epoch[rows], shown[rows], mark, color=color, ms=3, mfc=fill)
        if name == "hessian_trace":
            error = 2 * findings["hessian_trace_error"]
            low = np.maximum(shown - error, np.finfo(np.float32).tiny)
            ax.fill_between(epoch, low, shown + error, color=color, alpha=0.15, lw=0)
    ax.set_yscale("log")


def _positive(values: np.ndarray) -> np.ndarray:
    """Return the values with NaN, a gap, where a logarithmic axis has no place for them."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _limits(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the ends of a logarithmic axis for all points of curves with gaps."""
    points = np.concatenate([curve[np.isfinite(curve)] for curve in curves])
    return (float(points.min()) / 2, 2 * float(points.max())) if points.size else (0.1, 10.0)
