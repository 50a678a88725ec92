"""How the gradient at the perturbed weights grows with the radius of the perturbation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bdjax.analysis import _neurons
from bdjax.checks import InputError, integer, non_negative
from bdjax.devices import compilation
from bdjax.report import layout
from bdjax.report.layout import AFTER, BEFORE
from bdjax.runs.subject import Findings, Subject, convolution
from bdjax.structure import Path
from bdjax.types import Model, Split, Variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rho_gradients(
    rho: str = "0,0.5,1,2,4,8",
    adaptive: bool = True,
    batch_size: int = 256,
    layer: str | None = None,
) -> RhoGradients:
    """Draw the mean gradient norm of a layer's neurons at θ + ε against the radius ρ, before and after the defense.

    (1/K) Σ_k ‖∂L/∂W_k(θ + ε)‖₂ on one clean batch of the holdout, ε the perturbation of FT-SAM (or SAM) with radius ρ,
    with batch norm as in a training step and without augmentation. At ρ = 0 it is what plain fine-tuning feels.

    Args:
      rho: radii ρ ≥ 0, two at least, with commas between them.
      adaptive: FT-SAM's ASAM; False is plain SAM, whose radius has another scale.
      batch_size: images in the batch; the whole holdout if it is smaller.
      layer: such as ``layer4_1/conv2``; the last convolution if it is not given.

    Raises:
      InputError: a value out of range, or, when a run is measured, no such convolution.

    References:
      Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization, ICCV 2023, fig. 6 (c).
    """
    integer(1, batch_size=batch_size)
    return RhoGradients(_radii(rho), adaptive, batch_size, layer)


def _radii(words: str) -> tuple[float, ...]:
    try:
        radii = tuple(sorted({float(word) for word in words.split(",")}))
    except ValueError as error:
        right = "numbers with commas between them, such as 0,1,2"
        raise InputError(f"rho must be {right}; got {words!r}.") from error
    for radius in radii:
        non_negative(rho=radius)
    if len(radii) < 2:
        raise InputError(f"rho must be two numbers at least, such as 0,2; got {words!r}.")
    return radii


@dataclasses.dataclass(frozen=True)
class RhoGradients:
    """The analysis `rho_gradients`."""

    rho: tuple[float, ...]
    adaptive: bool
    batch_size: int
    layer: str | None

    def measure(self, subject: Subject) -> Findings:
        """Return the radii ``rho`` [r] and the mean norms ``victim`` and ``defended`` [r]."""
        layer = convolution(subject.model, subject.victim, self.layer)
        batch = _neurons.first_batch(subject.key, subject.holdout, self.batch_size)
        radii = jnp.asarray(self.rho, jnp.float32)
        found = {
            when: _mean_norms(subject.model, variables, batch, radii, self.adaptive, layer)
            for when, variables in (("victim", subject.victim), ("defended", subject.defended))
        }
        found |= {"rho": radii, "batch": len(batch.label), "layer": "/".join(layer[:-1])}
        return jax.tree.map(np.asarray, found)

    def draw(self, found: Mapping[str, Findings]) -> Figure:
        """Draw a panel for each run, all with the same axes."""
        page, panels = layout.panels(found, "Mean gradient norm of neurons at perturbed weights")
        line = {"ls": "-", "lw": 1.2, "ms": 4, "mew": 1}
        before, after = {**BEFORE, **line}, {**AFTER, **line}
        for findings, ax in zip(found.values(), panels, strict=True):
            ax.plot(findings["rho"], findings["victim"], **before)
            ax.plot(findings["rho"], findings["defended"], **after)
            ax.sharey(panels[0])
            ax.set_yscale("log")
            rule = "FT-SAM" if self.adaptive else "SAM"
            ax.set_xlabel(f"radius ρ of {rule}; neurons of {findings['layer']}")
            ax.set_ylabel("mean gradient norm")
        layout.legend(page, layout.key(before, after), page.get_figheight() - layout.KEY)
        return page


def _mean_norms_of_network(
    model: Model,
    variables: Variables,
    batch: Split,
    radii: Float[Array, " r"],
    adaptive: bool,
    layer: Path,
) -> Float[Array, " r"]:
    params, loss = variables["params"], _neurons.training_loss(model, variables, batch)

    def mean(rho: Array) -> Array:
        return _neurons.neuron_gradient_norms(loss, params, layer, rho, adaptive=adaptive).mean()

    return jax.lax.map(mean, radii)


_mean_norms = compilation.jit(
    _mean_norms_of_network, static_argnames=("model", "adaptive", "layer")
)
