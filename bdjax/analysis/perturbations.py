"""How far sharpness-aware minimization moves each neuron, against how large its weights are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Array, Float

from bdjax import optim, structure
from bdjax.analysis import _neurons
from bdjax.analysis._neurons import Loss, norms
from bdjax.checks import integer, positive
from bdjax.devices import compilation
from bdjax.report import layout
from bdjax.report.layout import BLUE, ORANGE
from bdjax.runs.subject import Findings, Subject, convolution
from bdjax.structure import Path
from bdjax.types import HParam, Model, Params, Split, Variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RULES = {"sam": "SAM, T = 1", "asam": "FT-SAM, T = |w|"}


def perturbations(
    rho: float = 2.0, batch_size: int = 256, layer: str | None = None
) -> Perturbations:
    """Draw, for each neuron of the victim, the norm of its perturbation by SAM and FT-SAM against its weight norm.

    ε = ρ T² g / ‖T g‖₂ with T = 1 (SAM) or T = diag(|θ|) (FT-SAM), the gradient g that of one clean batch of the
    holdout (batch norm as in a training step, no augmentation) and the norm one over *all* parameters; drawn are
    ‖ε_k‖₂ and ‖W_k‖₂ of the neurons k of one layer. With both the louder neurons should move
    further, with FT-SAM more steeply so. Both have the same ρ, which only shifts the dots up or down.

    Args:
      rho: radius ρ > 0 of both.
      batch_size: images in the batch; the whole holdout if it is smaller.
      layer: such as ``layer4_1/conv2``; the last convolution if it is not given.

    Raises:
      InputError: a value out of range, or, when a run is measured, no such convolution.

    References:
      Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization, ICCV 2023, eq. 4, fig. 6 (d), (e).
    """
    positive(rho=rho)
    integer(1, batch_size=batch_size)
    return Perturbations(rho, batch_size, layer)


@dataclasses.dataclass(frozen=True)
class Perturbations:
    """The analysis `perturbations`."""

    rho: float
    batch_size: int
    layer: str | None

    def measure(self, subject: Subject) -> Findings:
        """Return ‖ε_k‖₂ as ``sam`` and ``asam``, ‖W_k‖₂ as ``norm`` [k], and rank correlations ``sam_rank`` …"""
        layer = convolution(subject.model, subject.victim, self.layer)
        batch = _neurons.first_batch(subject.key, subject.holdout, self.batch_size)
        norm = norms(structure.flat(subject.victim["params"])[layer])
        found = _both(subject.model, subject.victim, batch, self.rho, layer)
        for rule in _RULES:
            found[f"{rule}_rank"] = _neurons.correlation(norm, found[rule]).rank
        found |= {"norm": norm, "batch": len(batch.label), "layer": "/".join(layer[:-1])}
        return jax.tree.map(np.asarray, found)

    def draw(self, found: Mapping[str, Findings]) -> Figure:
        """Draw a panel for each run, each neuron as two dots; those that do not move are left out."""
        page, panels = layout.panels(found, f"Perturbation of neurons at ρ = {self.rho:g}")
        dot = {"marker": "o", "ms": 2.8, "mew": 0, "ls": "", "alpha": 0.65}
        sam, asam = _RULES.values()
        styles = [{**dot, "color": BLUE, "label": sam}, {**dot, "color": ORANGE, "label": asam}]
        for findings, ax in zip(found.values(), panels, strict=True):
            for rule, style in zip(_RULES, styles, strict=True):
                moved = findings[rule] > 0
                ax.plot(findings["norm"][moved], findings[rule][moved], rasterized=True, **style)
            ax.set_yscale("log")
            ax.set_xlabel(f"{layout.WEIGHT_NORM} in {findings['layer']}")
            ax.set_ylabel(r"perturbation $\|\epsilon_k\|_2$")
            layout.remark(
                ax,
                "rank correlation {:.2f}, {:.2f}".format(
                    *(findings[f"{rule}_rank"] for rule in _RULES)
                ),
            )
        layout.legend(page, layout.key(*styles), page.get_figheight() - layout.KEY)
        return page


def perturbation_norms(
    loss: Loss, params: Params, layer: Path, rho: HParam, *, adaptive: bool = False
) -> Float[Array, " k"]:
    """Return ‖ε_k‖₂ of a layer's neurons, ε = `bdjax.optim.perturbation` of all parameters at the loss's gradient."""
    epsilon = optim.perturbation(jax.grad(loss)(params), params, rho, adaptive=adaptive)
    return norms(structure.flat(epsilon)[layer])


def _of_network(
    model: Model, variables: Variables, batch: Split, rho: HParam, layer: Path
) -> dict[str, Float[Array, " k"]]:
    params, loss = variables["params"], _neurons.training_loss(model, variables, batch)
    return {
        rule: perturbation_norms(loss, params, layer, rho, adaptive=rule == "asam")
        for rule in _RULES
    }


_both = compilation.jit(_of_network, static_argnames=("model", "layer"))
