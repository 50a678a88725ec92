"""What a defense made of each neuron's scale: the masks of NFT, layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bdjax import structure
from bdjax.parametrizations import NeuronMasks
from bdjax.report import layout
from bdjax.runs.subject import Findings, Subject
from bdjax.structure import Path
from bdjax.types import Params

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_UNKNOWN = "#8C8C8C"


def masks() -> Masks:
    """Draw the factor by which a defense scaled each neuron, layer by layer, as NFT draws its masks.

    m_k = γ_k / γ̄_k of the batch-norm scales after and before the defense, for all batch norms but the first. NFT
    scales nothing else, so of its runs these are the masks, with or without its bound and its regularizer, and lie in
    [μ(l), 1]. In a network without batch norm it is ⟨W_k, W̄_k⟩ / ‖W̄_k‖² of the filters that NFT masks.

    Any other defense has such factors too, and its runs may stand beside those of NFT; they need not lie in [0, 1],
    and they do not tell all that it did. Where γ̄_k = 0 nothing can tell the factor, which is NaN, and grey.

    References:
      Augmented Neural Fine-Tuning for Efficient Backdoor Purification, ECCV 2024, supplement, fig. 1, fig. 2.
    """
    return Masks()


@dataclasses.dataclass(frozen=True)
class Masks:
    """The analysis `masks`."""

    def measure(self, subject: Subject) -> Findings:
        """Return ``mask`` [n] of all neurons, the number ``layer`` [n], from 1, of each's, and the names ``layers``.

        Layers and the neurons in them are in the network's order.
        """
        tuned, frozen = NeuronMasks().init(subject.model, subject.victim)
        depth = structure.flat(frozen["depth"])
        paths = sorted(structure.flat(tuned), key=lambda path: float(depth[path]))
        found = factors(subject.victim["params"], subject.defended["params"], paths)
        sizes = [found[path].shape[0] for path in paths]
        return {
            "mask": np.concatenate([np.asarray(found[path]) for path in paths]),
            "layer": np.repeat(np.arange(1, len(paths) + 1), sizes),
            "layers": np.asarray(["/".join(path[:-1]) for path in paths]),
        }

    def draw(self, found: Mapping[str, Findings]) -> Figure:
        """Draw a panel for each run: a row for each layer, of its neurons by falling factor; red is less, blue more."""
        import matplotlib

        most = max(len(findings["layers"]) for findings in found.values())
        page, panels = layout.panels(
            found,
            "Factor of each neuron's scale, after the defense over before it",
            height=max(1.0, 0.11 * most),
        )
        colors = matplotlib.colormaps["RdBu"].with_extremes(bad=_UNKNOWN)
        for findings, ax in zip(found.values(), panels, strict=True):
            rows, count = _rows(findings), len(findings["layers"])
            place = (-0.5, rows.shape[1] - 0.5, count + 0.5, 0.5)  # layers count from 1
            image = ax.imshow(
                rows, colors, extent=place, vmin=0, vmax=2, aspect="auto", interpolation="nearest"
            )
            _label(ax, rows.shape[1])
        bar = layout.axes(page, layout.WIDTH / 2 - 1, page.get_figheight() - layout.KEY, 2, 0.08)
        page.colorbar(
            image, cax=bar, orientation="horizontal", extend="both", ticks=(0, 0.5, 1, 1.5, 2)
        )
        return page


def factors(before: Params, after: Params, paths: list[Path]) -> dict[Path, Float[Array, " k"]]:
    """Return for the neurons of each parameter the factor m_k that makes m_k w̄_k nearest to w_k: ⟨w_k, w̄_k⟩ / ‖w̄_k‖².

    Args:
      before: parameters; after: the same ones, later.
      paths: of parameters whose last axis counts neurons, such as batch norm's scales, for which it is the ratio.

    A neuron that was all zeros has no factor, NaN.
    """
    old, new = structure.flat(before), structure.flat(after)
    return {path: _factor(old[path], new[path]) for path in paths}


def _factor(old: Array, new: Array) -> Array:
    others = tuple(range(old.ndim - 1))
    # Divided out first, so that no square of a small number is zero
    largest = jnp.abs(old).max(others, initial=0)
    unit = old / jnp.where(largest > 0, largest, 1)
    length = largest * jnp.square(unit).sum(others)
    factor = (unit * new).sum(others) / jnp.where(largest > 0, length, 1)
    return jnp.where(largest > 0, factor, jnp.nan)


def _rows(findings: Findings) -> np.ndarray:
    """Return one row for each layer, stretched to the widest one, its factors falling and unknown ones at the end."""
    numbers = range(1, len(findings["layers"]) + 1)
    layers = [findings["mask"][findings["layer"] == number] for number in numbers]
    widest = max(map(len, layers))
    rows: list[np.ndarray] = []
    for factors in layers:
        stretched = np.arange(widest) * len(factors) // widest
        rows.append(-np.sort(-factors)[stretched])
    return np.stack(rows)


def _label(ax: Axes, width: int) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_xticks(np.linspace(0, width, 5) - 0.5, ["0", "25", "50", "75", "100 %"])
    ax.yaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    ax.set_xlabel("neurons of a layer, by falling factor")
    ax.set_ylabel("layer")
    ax.grid(visible=False)
    ax.spines[:].set(visible=True, color=_UNKNOWN, lw=0.6)  # a factor of one is white
