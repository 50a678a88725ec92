"""Grad-CAM: which parts of an image speak for a class, before and after a defense."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from bdjax.checks import InputError, integer, one_of
from bdjax.data import splits
from bdjax.data.augment import as_float
from bdjax.devices import compilation
from bdjax.report import layout
from bdjax.report.layout import GREEN, GREY, MARGIN, ORANGE, WIDTH
from bdjax.runs.subject import Findings, Subject, convolution
from bdjax.structure import Path
from bdjax.types import ProbedModel, Variables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TARGETS = ("predicted", "true", "attacker")
_NAMES, _GAP, _LINE = 0.7, 0.04, 0.16  # inches: names of the rows, between tiles, a line of print
_HEAT = 0.75  # how much of the color covers the image where a map is 1


# --- Any network -----------------------------------------------------------------------------------------------------


def class_activation(
    output: Float[Array, "n h w k"], gradient: Float[Array, "n h w k"]
) -> Float[Array, "n h w"]:
    """Return relu(Σ_k α_k A_k), α_k the mean over positions of ∂y/∂A_k (Selvaraju et al., 2017, eq. 1 and 2).

    Args:
      output: A, the feature maps of a convolution.
      gradient: of a class' logit y with respect to them.
    """
    weight = gradient.mean((1, 2), keepdims=True)
    return jax.nn.relu((weight * output).sum(-1))


def as_heat(
    maps: Float[Array, "n h w"], height: int, width: int
) -> Float[Array, "n {height} {width}"]:
    """Return maps at the size of the images, bilinearly, each scaled to [0, 1]; one that is the same everywhere is 0.

    So a map without any evidence stays black, and one of a single position, which tells no places apart, becomes so.
    """
    large = jax.image.resize(maps, (maps.shape[0], height, width), "bilinear")
    low, high = large.min((1, 2), keepdims=True), large.max((1, 2), keepdims=True)
    span = high - low
    flat = span <= 1e-6 * high  # rounding of the interpolation is no evidence
    return jnp.where(flat, 0, (large - low) / jnp.where(flat, 1, span))


def class_maps(
    model: ProbedModel,
    variables: Variables,
    image: Num[Array, "n h w c"],
    layer: Path,
    label: Int[Array, " n"] | None = None,
) -> tuple[Float[Array, "n a b"], Int[Array, " n"]]:
    """Return the `class_activation` of a convolution for one class an image, and the predicted classes.

    Evaluation mode, so that images do not see each other; one forward and one backward pass.

    Args:
      model, variables: the network.
      image: uint8, or float in [0, 1].
      layer: the path of the convolution's kernel; its output is taken as it is, before any norm or activation.
      label: the classes explained; None for those predicted.

    Raises:
      InputError: the layer's output has no two axes of positions.
    """
    image = as_float(image)
    shape = jax.eval_shape(lambda: model.probe(variables, image, layer)[1])
    if len(shape.shape) != 4:
        name = "/".join(layer[:-1])
        wanted = "put out maps [n, h, w, k] for Grad-CAM"
        raise InputError(f"layer must {wanted}; {name} puts out {shape.shape}.")
    (logits, output), pull = jax.vjp(
        lambda shift: model.probe(variables, image, layer, shift),
        jnp.zeros(shape.shape, shape.dtype),
    )
    predicted = logits.argmax(-1)
    if label is None:
        label = predicted
    explained = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
    (gradient,) = pull((explained, jnp.zeros_like(output)))
    return class_activation(output, gradient), predicted


def _heat(
    model: ProbedModel,
    variables: Variables,
    image: Array,
    label: Array | None,
    layer: Path,
    chunk: int,
) -> tuple[Array, Array]:
    height, width = image.shape[1:3]

    def of_one(image: Array, label: Array | None) -> tuple[Array, Array]:
        explained = None if label is None else label[None]
        maps, predicted = class_maps(model, variables, image[None], layer, explained)
        return as_heat(maps, height, width)[0], predicted[0]

    return jax.lax.map(lambda rows: of_one(*rows), (image, label), batch_size=chunk)


_heat_of = compilation.jit(_heat, static_argnames=("model", "layer", "chunk"))


def heat(
    model: ProbedModel,
    variables: Variables,
    image: Num[Array | np.ndarray, "n h w c"],
    layer: Path,
    label: Int[Array | np.ndarray, " n"] | None = None,
    *,
    chunk: int = 100,
) -> tuple[Float[Array, "n h w"], Int[Array, " n"]]:
    """Return what `class_maps` does, as `as_heat` shows it, and the predicted classes, chunk by chunk."""
    return _heat_of(
        model,
        variables,
        jnp.asarray(image),
        None if label is None else jnp.asarray(label),
        layer,
        chunk,
    )


# --- Runs ------------------------------------------------------------------------------------------------------------


def grad_cam(images: int = 4, target: str = "predicted", layer: str | None = None) -> GradCam:
    """Draw Grad-CAM (Selvaraju et al., 2017) of test images with and without trigger, before and after a defense.

    After figure 7 of FT-SAM (Zhu et al., 2023). Maps are scaled image by image, so they compare places, not networks.

    Args:
      images: how many, of as many classes as there are.
      target: the class explained: the ``predicted`` one of each network and image, the ``true`` one, or the
        ``attacker``'s.
      layer: of a convolution, such as ``layer3_1/conv2``; the last by default.

    Raises:
      InputError: a value out of range or an unknown target, and when measured: no such layer, or too few test images.
    """
    integer(1, images=images)
    one_of(TARGETS, target=target)
    return GradCam(images, target, layer)


@dataclasses.dataclass(frozen=True)
class GradCam:
    """The analysis `grad_cam`."""

    images: int
    target: str
    layer: str | None
    works_on: ClassVar[str] = "image"
    labels: ClassVar[str] = "class"

    def measure(self, subject: Subject) -> Findings:
        """Return images and maps, the first axes (network: before, after), (kind: clean, triggered) and image.

        ``image`` [2, n, h, w, c] uint8, ``heat`` [2, 2, n, h, w] in [0, 1], ``predicted`` [2, 2, n]; ``label`` [n], the
        true ones, and ``attacker_label`` [n]; ``class_names`` and the ``layer``'s name.
        """
        layer = convolution(subject.model, subject.victim, self.layer)
        spec = subject.model.spec
        seen = subject.triggered.visible
        true = seen._replace(label=subject.triggered.original_label)
        rows = splits.subset(subject.key, true, self.images, num_classes=spec.num_classes)
        image = np.stack([np.asarray(split.input)[rows] for split in (subject.test, seen)])
        label, attackers = np.asarray(true.label)[rows], np.asarray(seen.label)[rows]
        explained = {"predicted": None, "true": label, "attacker": attackers}[self.target]
        maps: list[np.ndarray] = []
        predicted: list[np.ndarray] = []
        for variables, kind in itertools.product((subject.victim, subject.defended), image):
            of_kind = heat(subject.model, variables, kind, layer, explained)
            maps.append(np.asarray(of_kind[0]))
            predicted.append(np.asarray(of_kind[1]))
        class_names = spec.class_names or list(map(str, range(spec.num_classes)))
        return {
            "image": image,
            "heat": np.stack(maps).reshape(2, 2, *maps[0].shape),
            "predicted": np.stack(predicted).reshape(2, 2, *predicted[0].shape),
            "label": label,
            "attacker_label": attackers,
            "class_names": np.asarray(class_names),
            "layer": np.asarray("/".join(layer[:-1])),
        }

    def draw(self, found: Mapping[str, Findings]) -> Figure:
        """Draw two rows for each run, clean and triggered: each image, and its maps before and after the defense."""
        from matplotlib.figure import Figure

        heights: list[float] = []
        for findings in found.values():
            _, down = _tile(findings)
            heights.append(0.4 + 2 * (down + _LINE + _GAP) + _LINE)
        page = Figure(figsize=(WIDTH, 0.4 + sum(heights) + 0.35), facecolor="white")
        of = {
            "predicted": "the predicted class",
            "true": "the true class",
            "attacker": "the attacker's class",
        }
        layout.write(page, MARGIN, 0.12, f"Grad-CAM for {of[self.target]}", **layout.HEADING)
        top = 0.4
        for (title, findings), height in zip(found.items(), heights, strict=True):
            layout.write(page, MARGIN, top, layout.cut(title, 5), weight="bold")
            layout.write(page, WIDTH - MARGIN, top, str(findings["layer"]), color=GREY, ha="right")
            _draw(
                layout.axes(page, MARGIN, top + 0.2, WIDTH - 2 * MARGIN, height - 0.2),
                findings,
                height - 0.2,
            )
            top += height
        _key(layout.axes(page, WIDTH / 2 - 0.6, top + 0.05, 1.2, 0.1))
        return page


def _tile(findings: Findings) -> tuple[float, float]:
    """Return the width and height of a tile in inches: three for each image, and a wider gap after them."""
    count, height, width = findings["image"].shape[1:4]
    across = (WIDTH - 2 * MARGIN - _NAMES - 3 * _GAP * (count - 1)) / (3 * count) - _GAP
    across = min(across, 0.9)
    return across, across * height / width


def _draw(ax: Axes, findings: Findings, height: float) -> None:
    """Draw a run's tiles on axes of so many inches, which are its units."""
    across, down = _tile(findings)
    ax.axis("off")
    ax.set(xlim=(0, WIDTH - 2 * MARGIN), ylim=(height, 0))
    for kind, words in enumerate(("clean", "triggered")):
        top = _LINE + kind * (down + _LINE + _GAP)
        ax.text(0, top + down / 2, words, va="center", weight="bold")
        for number, place in itertools.product(range(findings["image"].shape[1]), range(3)):
            left = _NAMES + (3 * number + place) * (across + _GAP) + 3 * _GAP * number
            tile, name, color = _content(findings, kind, number, place)
            ax.imshow(
                tile,
                extent=(left, left + across, top + down, top),
                aspect="auto",
                interpolation="nearest",
            )
            middle = {"x": left + across / 2, "ha": "center", "va": "center", "size": 7}
            if kind == 0:
                ax.text(
                    y=top - _LINE / 2, s=("image", "before", "after")[place], color=GREY, **middle
                )
            ax.text(
                y=top + down + _LINE / 2, s=layout.cut(name, 1.25 * across), color=color, **middle
            )


def _content(findings: Findings, kind: int, number: int, place: int) -> tuple[np.ndarray, str, str]:
    """Return a tile, the class below it and its color: the image, or its map before or after the defense."""
    image, true = findings["image"][kind, number], findings["label"][number]
    names = findings["class_names"]
    if place == 0:
        return np.broadcast_to(image, (*image.shape[:2], 3)), str(names[true]), GREY
    gray = np.broadcast_to(image.mean(-1, keepdims=True) / 255, (*image.shape[:2], 3))
    label = findings["predicted"][place - 1, kind, number]
    color = GREY
    if label == true:
        color = GREEN
    elif label == findings["attacker_label"][number]:
        color = ORANGE
    return _warmed(gray, findings["heat"][place - 1, kind, number]), str(names[label]), color


def _warmed(gray: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Cover a gray image with the heat's color, and more of it where there is more."""
    import matplotlib

    share = _HEAT * heat[..., None]
    return (1 - share) * gray + share * matplotlib.colormaps["inferno"](heat)[..., :3]


def _key(ax: Axes) -> None:
    """Draw the colors from none to most."""
    ramp = np.linspace(0, 1, 100)[None]
    ax.imshow(_warmed(np.full((1, 100, 3), 0.5), ramp), extent=(0, 1, 0, 1), aspect="auto")
    ax.text(-0.05, 0.5, "no evidence", ha="right", va="center")
    ax.text(1.05, 0.5, "most of the image", ha="left", va="center")
    ax.axis("off")
