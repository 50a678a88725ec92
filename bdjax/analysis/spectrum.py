"""Spectral density of the loss's Hessian before and after a defense."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from bdjax.checks import DRAWS, integer, one_of
from bdjax.curvature.hessian import Spectrum, smoothed, spectral_density
from bdjax.curvature.loss_surface import VARIANTS, mean_loss, sample
from bdjax.devices import compilation
from bdjax.report import layout
from bdjax.report.layout import BLUE, ORANGE
from bdjax.runs.subject import Findings, Subject
from bdjax.types import Model, Split, Variables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NETWORKS = (("victim", "before", ORANGE), ("defended", "after", BLUE))
_FLOOR = 1e-7  # the density's smallest print, so that a logarithm is there where it is 0


def spectrum(
    images: int = 200, steps: int = 100, starts: int = 1, variant: str = "mixed"
) -> SpectrumOfRuns:
    """Draw the density of the Hessian's eigenvalues before and after a defense, by stochastic Lanczos quadrature.

    Of the mean cross-entropy of a fixed sample, as `bdjax.curvature.loss_surface.measure` takes it, each Ritz value a
    Gaussian as PyHessian draws it (Yao et al., 2020); after figure 1 of SFT (Karim et al., 2023). Both networks have
    the same images and random vectors. Holds ``steps`` vectors as long as the parameters.

    Args:
      images: in the sample.
      steps: of Lanczos.
      starts: random vectors that the density is averaged over.
      variant: ``clean``, ``triggered`` or ``mixed``, half of each; with true labels.

    Raises:
      InputError: a value out of range or an unknown variant.
    """
    integer(2, images=images)
    integer(2, maximum=DRAWS, steps=steps)
    integer(1, maximum=DRAWS, starts=starts)
    one_of(VARIANTS, variant=variant)
    return SpectrumOfRuns(images, steps, starts, variant)


@dataclasses.dataclass(frozen=True)
class SpectrumOfRuns:
    """The analysis `spectrum`."""

    images: int
    steps: int
    starts: int
    variant: str

    def measure(self, subject: Subject) -> Findings:
        """Return nodes and weights [starts, steps] of both networks' spectra: ``victim_nodes`` and so on."""
        rows_key, key = jax.random.split(subject.key)
        chosen = sample(
            rows_key, subject.test, subject.triggered, variant=self.variant, images=self.images
        )
        found = {}
        for name, variables in (("victim", subject.victim), ("defended", subject.defended)):
            size = self.steps, self.starts
            find = functools.partial(_spectrum, key, subject.model, variables, chosen, *size)
            of = subject.once(self, find) if name == "victim" else find()
            found |= {f"{name}_{part}": np.asarray(values) for part, values in of._asdict().items()}
        return found

    def draw(self, found: Mapping[str, Findings]) -> Figure:
        """Draw two panels with the same axes for each run: the logarithmic density before and after the defense."""
        titles: list[str] = []
        for run in found:
            titles += (run, "")
        heading = f"Spectral density of the Hessian on {self.variant} test images"
        page, panels = layout.panels(titles, heading)
        for findings, before, after in zip(found.values(), panels[::2], panels[1::2], strict=True):
            after.sharex(before)
            after.sharey(before)
            for ax, network in zip((before, after), _NETWORKS, strict=True):
                _draw(ax, findings, *network)
            before.set_yscale("log")
            before.set_ylim(_FLOOR, None)
        return page


def _draw(ax: Axes, findings: Findings, name: str, when: str, color: str) -> None:
    """Draw one network's density and write between what its Ritz values lie; nothing where its loss is no number."""
    of = Spectrum(*(jnp.asarray(findings[f"{name}_{part}"]) for part in Spectrum._fields))
    ax.set_xlabel("eigenvalue")
    corner: dict[str, Any] = {"ha": "right", "va": "top"}  # where few eigenvalues are
    if not jnp.isfinite(of.nodes).all():
        ax.text(
            0.98,
            0.95,
            f"{when}: the loss is not finite",
            transform=ax.transAxes,
            color=color,
            **corner,
        )
        return
    grid, density = map(np.asarray, smoothed(of))
    ax.fill_between(grid, _FLOOR, density + _FLOOR, color=color, alpha=0.25, lw=0)
    ax.plot(grid, density + _FLOOR, color=color, lw=0.8)
    nodes = of.nodes[of.weights > 0]
    words = f"{when}: λ from {nodes.min():.3g} to {nodes.max():.3g}".replace("-", "−")
    ax.text(0.98, 0.95, words, transform=ax.transAxes, color=color, **corner)


def _of_sample(
    key: Key[Array, ""], model: Model, variables: Variables, split: Split, steps: int, starts: int
) -> Spectrum:
    loss = mean_loss(model, variables, split)
    return spectral_density(key, loss, variables["params"], steps=steps, starts=starts)


_spectrum = compilation.jit(_of_sample, static_argnames=("model", "steps", "starts"))
