"""How hard fine-tuning and sharpness-aware minimization pull at each neuron, in order of what the trigger moves."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array, Float

from bdjax import evaluate
from bdjax.analysis import _neurons
from bdjax.analysis.tac import of_network, pairs
from bdjax.checks import integer, non_negative
from bdjax.devices import compilation
from bdjax.report import layout
from bdjax.report.layout import BLUE, GREY, ORANGE
from bdjax.runs.subject import Findings, Subject, convolution
from bdjax.structure import Path
from bdjax.tasks.metrics import RATE
from bdjax.types import HParam, Model, Split, Variables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_IMAGES = 1000  # for TAC and the attack success rate
_WORDY = 8  # epochs whose success rates have room for their name
_COLORS = {"ft": GREY, "sam": BLUE, "asam": ORANGE}


def gradient_norms(
    epochs: int = 1,
    batch_size: int = 256,
    rho: float = 2.0,
    sam_rho: float = 0.5,
    layer: str | None = None,
) -> GradientNorms:
    """Draw the gradient norm of each neuron, at θ and where SAM and FT-SAM take it, in the first epochs of a defense.

    ‖∂L/∂W_k‖₂ of the mean cross-entropy on one clean batch of the holdout, at the weights θ with which an epoch begins:
    at θ itself (FT), at θ + ε with plain SAM's ε and with that of FT-SAM (ASAM). The neurons stand in the order of the
    victim's trigger-activated change (`bdjax.analysis.tac`). FT-SAM should pull most at the neurons to the right, until
    the attack success rate, measured on the images of TAC, has fallen.

    The batch is the same at all epochs, so that only the network changes, and not augmented; batch norm is that of a
    training step. In the paper it is each epoch's own first batch.

    Args:
      epochs: of the defense, from the first one, or as many as it has; more than 1 carry it out again, so far.
      batch_size: images in the batch; the whole holdout if it is smaller.
      rho: radius ρ ≥ 0 of FT-SAM.
      sam_rho: radius of plain SAM, which has another scale.
      layer: such as ``layer4_1/conv2``; the last convolution if it is not given.

    Raises:
      InputError: a value out of range; when a run is measured, no such convolution.

    References:
      Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization, ICCV 2023, fig. 6 (a), (b);
      supplement, fig. 1.
    """
    integer(1, epochs=epochs, batch_size=batch_size)
    non_negative(rho=rho, sam_rho=sam_rho)
    return GradientNorms(epochs, batch_size, rho, sam_rho, layer)


class _Enough(Exception):
    """The epochs that were wanted are measured; the rest of the defense need not be carried out."""


@dataclasses.dataclass(frozen=True)
class GradientNorms:
    """The analysis `gradient_norms`."""

    epochs: int
    batch_size: int
    rho: float
    sam_rho: float
    layer: str | None
    works_on: ClassVar[str] = "image"
    labels: ClassVar[str] = "class"

    def measure(self, subject: Subject) -> Findings:
        """Return norms ``ft``, ``sam``, ``asam`` [epochs, k] in the network's order, and ``tac`` [k] to sort them by.

        ``attack_success_rate`` [epochs], in [0, 1], is that at the beginning of each epoch, on ``images`` images;
        ``rank`` [epochs] the rank correlation of ``asam`` with ``tac``; ``batch`` the size of the batch.
        """
        layer = convolution(subject.model, subject.victim, self.layer)
        clean, triggered, wanted = pairs(subject, _IMAGES)
        tac = of_network(subject.model, subject.victim, clean, triggered, layer).l1
        batch = _neurons.first_batch(subject.key, subject.holdout, self.batch_size)
        rows: list[dict[str, Any]] = []

        def measure(epoch: int, variables: Callable[[], Variables]) -> None:
            at = variables()
            row = _norms(subject.model, at, batch, self.rho, self.sam_rho, layer)
            hits = evaluate.predict(subject.model, at, triggered) == wanted
            rows.append(
                {**row, "rank": _neurons.correlation(tac, row["asam"]).rank, RATE.name: hits.mean()}
            )
            if epoch + 1 == min(self.epochs, max(subject.epochs, 1)):
                raise _Enough

        with contextlib.suppress(_Enough):
            subject.replay(measure)
        found = {
            "tac": tac,
            "images": len(clean),
            "batch": len(batch.label),
            "layer": "/".join(layer[:-1]),
        }
        return jax.tree.map(np.asarray, found) | jax.tree.map(
            lambda *of_epochs: np.stack(of_epochs), *rows
        )

    def draw(self, found: Mapping[str, Findings]) -> Figure:
        """Draw a panel for each run, its epochs side by side."""
        most = max(len(findings["rank"]) for findings in found.values())
        page, panels = layout.panels(
            found,
            "Gradient norms of neurons, in the order of the victim's TAC",
            columns=1 if most > 2 else 2,
        )
        dot = {"marker": "o", "ms": 2.2, "mew": 0, "ls": ""}
        marks = [{"color": color, **dot} for color in _COLORS.values()]
        words = (
            "FT: at θ",
            f"SAM: at θ + ε, ρ = {self.sam_rho:g}",
            f"FT-SAM: at θ + ε, ρ = {self.rho:g}",
        )
        for findings, ax in zip(found.values(), panels, strict=True):
            for rule, style in zip(_COLORS, marks, strict=True):
                order = np.argsort(findings["tac"], kind="stable")
                _draw_epochs(ax, findings[rule][:, order], style)
            _label_epochs(ax, findings)
        styles: list[dict[str, Any]] = []
        for style, word in zip(marks, words, strict=True):
            styles.append({**style, "ms": 4, "label": word})
        key = layout.key(*styles)
        layout.legend(page, key, page.get_figheight() - layout.KEY)
        return page


def _draw_epochs(ax: Axes, norms: np.ndarray, style: dict[str, Any]) -> None:
    """Draw one block of neurons after the other, those with a norm of 0 left out."""
    for epoch, norm in enumerate(norms):
        there = norm > 0
        ax.plot(
            (epoch + (np.arange(len(norm)) + 0.5) / len(norm))[there],
            norm[there],
            rasterized=True,
            **style,
        )


def _label_epochs(ax: Axes, findings: Findings) -> None:
    rates = 100 * findings[RATE.name]
    for border in range(1, len(rates)):
        ax.axvline(border, color=GREY, lw=0.8)
    ax.set_yscale("log")
    ax.set_xlim(0, len(rates))
    word = f"{RATE.head} " if len(rates) <= _WORDY else ""
    ticks = [f"{epoch}: {word}{rate:.0f} %" for epoch, rate in enumerate(rates, 1)]
    ax.set_xticks(np.arange(len(rates)) + 0.5, ticks)
    ax.set_xlabel(f"epoch: {RATE.words}; neurons of {findings['layer']}, by rising TAC")
    ax.set_ylabel("gradient norm")
    ax.grid(axis="x", visible=False)


def _norms_of_network(
    model: Model, variables: Variables, batch: Split, rho: HParam, sam_rho: HParam, layer: Path
) -> dict[str, Float[Array, " k"]]:
    params, loss = variables["params"], _neurons.training_loss(model, variables, batch)
    return {
        "ft": _neurons.neuron_gradient_norms(loss, params, layer),
        "sam": _neurons.neuron_gradient_norms(loss, params, layer, sam_rho),
        "asam": _neurons.neuron_gradient_norms(loss, params, layer, rho, adaptive=True),
    }


_norms = compilation.jit(_norms_of_network, static_argnames=("model", "layer"))
