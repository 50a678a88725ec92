"""Trigger-activated change: which neurons the trigger moves, and whether those have the large weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from bdjax import structure
from bdjax.analysis._neurons import correlation, norms
from bdjax.checks import InputError, integer, one_of
from bdjax.curvature.chunks import accumulate, weighted_sum
from bdjax.data import splits
from bdjax.data.augment import as_float
from bdjax.devices import compilation
from bdjax.report import layout
from bdjax.report.layout import AFTER, BEFORE
from bdjax.runs.subject import Findings, Subject, convolution
from bdjax.structure import Path
from bdjax.types import ProbedModel, Variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHUNK = 100  # images at once


class Change(NamedTuple):
    """What the trigger changes in each neuron: ℓ1 and ℓ2 norm, over the positions of a feature map, of the difference.

    Attributes:
      l1, l2: [k], or [n, k] for each image; ≥ 0, in units of the activations.
    """

    l1: Float[Array, "*n k"]
    l2: Float[Array, "*n k"]


class Pairs(NamedTuple):
    """Test images (uint8) without and with the trigger, and the attacker's label for each."""

    clean: np.ndarray
    triggered: np.ndarray
    wanted: np.ndarray


def tac(images: int = 1000, form: str = "l1", layer: str | None = None) -> Tac:
    """Draw weight norm against trigger-activated change (TAC), neuron by neuron, before and after the defense.

    TAC_k is the mean over triggered test images of ‖z_k(x ⊕ trigger) − z_k(x)‖, z_k the map that a convolution puts out
    for neuron k before whatever follows, in evaluation mode; ‖W_k‖₂ is the norm of its filter. Both networks' norms are
    drawn over the *backdoored* one's TAC, as in FT-SAM's figures: backdoor neurons should be to the right, have large
    norms before a defense that works and small ones after it. The images are those that count for the attack success
    rate, equally many of each class.

    Args:
      images: drawn, at most.
      form: the norm over positions. ``l2`` is that of the paper that introduced TAC; ``l1``, that of FT-SAM's released
        code, sums the mean absolute change over positions. Both are kept, this one is drawn.
      layer: such as ``layer4_1/conv2``; the last convolution if it is not given.

    Raises:
      InputError: fewer images than classes, another form, or, when a run is measured, no such convolution.

    References:
      Zheng et al., Data-free Backdoor Removal based on Channel Lipschitzness, ECCV 2022, sec. 4 (TAC);
      Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization, ICCV 2023, fig. 2 (right), fig. 4.
    """
    integer(1, images=images)
    one_of(("l1", "l2"), form=form)
    return Tac(images, form, layer)


@dataclasses.dataclass(frozen=True)
class Tac:
    """The analysis `tac`."""

    images: int
    form: str
    layer: str | None
    works_on: ClassVar[str] = "image"
    labels: ClassVar[str] = "class"

    def measure(self, subject: Subject) -> Findings:
        """Return, with ``victim_`` or ``defended_`` before their names, arrays of one number for each neuron, [k].

        ``l1`` and ``l2`` are TAC, ``norm`` is that of the filter. ``victim_pearson``, ``victim_rank`` and those of
        ``defended`` correlate the network's norms with the victim's TAC. ``images`` were averaged over; ``layer`` names
        the convolution.
        """
        layer = convolution(subject.model, subject.victim, self.layer)
        clean, triggered, _ = pairs(subject, self.images)
        found: dict[str, Any] = {}
        for when, variables in (("victim", subject.victim), ("defended", subject.defended)):
            change = of_network(subject.model, variables, clean, triggered, layer)
            found |= {f"{when}_l1": change.l1, f"{when}_l2": change.l2}
            found[f"{when}_norm"] = norms(structure.flat(variables["params"])[layer])
            together = correlation(found[f"victim_{self.form}"], found[f"{when}_norm"])
            found |= {f"{when}_pearson": together.pearson, f"{when}_rank": together.rank}
        found |= {"images": len(clean), "layer": "/".join(layer[:-1])}
        return jax.tree.map(np.asarray, found)

    def draw(self, found: Mapping[str, Findings]) -> Figure:
        """Draw a panel for each run, each neuron as two dots."""
        page, panels = layout.panels(
            found, f"Weight norm and trigger-activated change ({self.form})"
        )
        for findings, ax in zip(found.values(), panels, strict=True):
            change = findings[f"victim_{self.form}"]
            ax.plot(change, findings["victim_norm"], **BEFORE)
            ax.plot(change, findings["defended_norm"], **AFTER)
            ax.set_xlabel(f"victim's TAC in {findings['layer']}, {findings['images']} images")
            ax.set_ylabel(layout.WEIGHT_NORM)
            before, after = float(findings["victim_rank"]), float(findings["defended_rank"])
            layout.remark(ax, f"rank correlation {before:.2f}, after {after:.2f}")
        layout.legend(page, layout.key(BEFORE, AFTER), page.get_figheight() - layout.KEY)
        return page


def change(
    clean: Float[Array, "n *positions k"], triggered: Float[Array, "n *positions k"]
) -> Change:
    """Return the ℓ1 and ℓ2 norms over positions of the difference of two stacks of feature maps, [n, k].

    >>> import jax.numpy as jnp
    >>> l1, l2 = change(jnp.zeros((1, 2, 2, 1)), jnp.array([[1.0, 0.0], [-2.0, 4.0]]).reshape(1, 2, 2, 1))
    >>> l1.item(), round(l2.item(), 6)
    (7.0, 4.582576)
    """
    difference = triggered - clean
    positions = tuple(range(1, difference.ndim - 1))
    return Change(
        jnp.abs(difference).sum(positions), jnp.sqrt(jnp.square(difference).sum(positions))
    )


def of_network(
    model: ProbedModel,
    variables: Variables,
    clean: Num[Array | np.ndarray, "n h w c"],
    triggered: Num[Array | np.ndarray, "n h w c"],
    layer: Path,
) -> Change:
    """Return TAC: the mean of `change` over pairs of images for what a layer puts out, in evaluation mode, [k].

    Args:
      model: the network.
      variables: its parameters and statistics.
      clean: images, uint8 or in [0, 1].
      triggered: the same ones with the trigger.
      layer: path of its kernel.
    """
    return _of_network(model, variables, jnp.asarray(clean), jnp.asarray(triggered), layer)


def pairs(subject: Subject, images: int) -> Pairs:
    """Draw so many test images at most of those that count for the attack success rate, equally many of each class.

    Raises:
      InputError: there would be less than one of each class.
    """
    visible, label = subject.triggered.visible, subject.triggered.original_label
    rows = splits.balanced(subject.key, visible._replace(label=label), images)
    if not rows.size:
        classes = len(np.unique(np.asarray(label)[np.asarray(visible.valid)]))
        least = f"{classes} or more, one of each class that the attack changes"
        raise InputError(f"images must be {least}; got {images}.")
    clean = np.asarray(subject.test.input)[rows]
    return Pairs(clean, np.asarray(visible.input)[rows], np.asarray(visible.label)[rows])


def _mean_change(
    model: ProbedModel,
    variables: Variables,
    clean: Array,
    triggered: Array,
    layer: Path,
) -> Change:
    def total(some: tuple[Array, Array], weight: Array) -> Change:
        outputs = [model.probe(variables, as_float(image), layer)[1] for image in some]
        return jax.tree.map(lambda values: weighted_sum(weight, values), change(*outputs))

    summed = accumulate(total, (clean, triggered), chunk=_CHUNK)
    return jax.tree.map(lambda values: values / clean.shape[0], summed)


_of_network = compilation.jit(_mean_change, static_argnames=("model", "layer"))
