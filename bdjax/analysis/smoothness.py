"""Smoothness of a network's loss surface: λ_max and Tr(H) of the Hessian and Tr(F), over the epochs of a defense too.

`measure` applies `bdjax.hessian` and `bdjax.fisher` to a network as the papers on sharpness and backdoors do; the
analysis `smoothness` repeats it while a defense is carried out again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key

from bdjax import evaluate, fisher, layout
from bdjax.analysis._subject import Findings, Subject
from bdjax.checks import DRAWS, InputError, integer, one_of, positive
from bdjax.chunks import accumulate
from bdjax.data import splits
from bdjax.data.augment import as_float
from bdjax.hessian import Loss, largest_eigenvalue, trace
from bdjax.layout import BLUE, GREEN, ORANGE
from bdjax.train import compilation
from bdjax.types import Model, Params, PoisonedSplit, Split, Variables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VARIANTS = ("clean", "triggered", "mixed")
_SHARPNESS = (
    ("largest_eigenvalue", r"$\lambda_{\max}$", BLUE, "o"),
    ("hessian_trace", "Tr(H) ± 2 standard errors", ORANGE, "s"),
    ("fisher_trace", "Tr(F)", GREEN, "^"),
)
_RATES = (("clean_accuracy", "ACC", BLUE, ""), ("attack_success_rate", "ASR", ORANGE, ""))


class Smoothness(NamedTuple):
    """The loss surface at a network's parameters θ, on one fixed sample.

    ``largest_eigenvalue`` of the Hessian H (of largest magnitude, with its sign), whether the iteration settled,
    Tr(H) with its standard error, Tr(F) = mean ‖∇θ ℓᵢ‖² over the labels given, and the mean cross-entropy itself.
    """

    largest_eigenvalue: Float[Array, ""]
    eigenvalue_converged: Bool[Array, ""]
    hessian_trace: Float[Array, ""]
    hessian_trace_error: Float[Array, ""]
    fisher_trace: Float[Array, ""]
    loss: Float[Array, ""]

    def plain(self) -> dict[str, float | bool | None]:
        """Return Python values for a file; None where a number is not finite."""
        numbers = {name: np.asarray(value).item() for name, value in self._asdict().items()}
        return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How `measure` works; hashable.

    Attributes:
      images: in the sample; half of them triggered in ``mixed``.
      draws: Hutchinson's, for Tr(H).
      iterations, tolerance: of the power iteration for λ_max.
      chunk: images worked on at once; bounds the memory, and changes results within rounding.
    """

    images: int = 200
    draws: int = 100
    iterations: int = 100
    tolerance: float = 1e-3
    chunk: int = 100

    def check(self) -> None:
        """Raise InputError for a value out of range."""
        integer(2, images=self.images)
        integer(2, maximum=DRAWS, draws=self.draws)
        integer(1, maximum=DRAWS, iterations=self.iterations)
        integer(1, chunk=self.chunk)
        positive(tolerance=self.tolerance)

    def identity(self) -> dict[str, int | float]:
        """Return what decides the result, as plain values: all but the chunk."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "chunk"}


def measure(
    key: Key[Array, ""],
    model: Model,
    variables: Variables,
    clean: Split,
    triggered: PoisonedSplit,
    *,
    variant: str = "mixed",
    settings: Settings = Settings(),
) -> Smoothness:
    """Measure the loss surface of a network: λ_max and Tr(H) of its mean cross-entropy, and Tr(F).

    On one fixed `sample` without augmentation, with true labels, over all parameters, batch norm in evaluation mode.
    SFT (Karim et al., 2023) reports λ_max and Tr(H) on 200 images, clean and triggered: ``mixed``. A backdoored
    network's loss on triggered images with true labels is large, and so is its sharpness there; its published script
    takes clean training images with light augmentation, so numbers are comparable within bdjax first of all. A bfloat16
    network is measured as it computes, with that noise.

    Args:
      key: decides the images and the random vectors; the images do not depend on the network.
      model: the network.
      variables: its parameters and statistics; left as they are.
      clean: images with their labels, a test split.
      triggered: the same with triggers, of `bdjax.poison.poison_test`.
      variant: ``clean``, ``triggered`` or ``mixed``, half of each.
      settings: sizes of the sample and the estimates.

    Raises:
      InputError: an unknown variant, a setting out of range, or fewer images than wanted.
    """
    settings.check()
    rows_key, measure_key = jax.random.split(key)
    chosen = sample(rows_key, clean, triggered, variant=variant, images=settings.images)
    return _measure(measure_key, model, variables, chosen, settings)


def sample(
    key: Key[Array, ""], clean: Split, triggered: PoisonedSplit, *, variant: str = "mixed", images: int = 200
) -> Split:
    """Draw valid rows without replacement, with their true labels: clean, triggered, or ⌈k/2⌉ clean, ⌊k/2⌋ triggered.

    Raises:
      InputError: an unknown variant, or fewer valid rows than ``images`` asks for.
    """
    one_of(VARIANTS, variant=variant)
    of_triggered = {"clean": 0, "triggered": images, "mixed": images // 2}[variant]
    true = triggered.visible._replace(label=triggered.original_label)
    wanted = (("clean", clean, images - of_triggered), ("triggered", true, of_triggered))
    parts = []
    for purpose, (kind, split, count) in enumerate(wanted):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, purpose), len(split.label)))
        rows = order[np.asarray(split.valid)[order]]
        if count > rows.size:
            there = f"{count} {kind} ones of them are drawn, and the test split has {rows.size}"
            raise InputError(f"images must be fewer for {variant!r}: {there}; got {images}.")
        parts.append(splits.take(split, rows[:count]))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def mean_loss(model: Model, variables: Variables, split: Split, *, chunk: int = 100) -> Loss:
    """Return the mean cross-entropy over a split's valid rows as a function of the parameters, in evaluation mode.

    Only one chunk's activations are alive at a time, in the derivatives too: each chunk is computed anew on the way
    back, which makes a Hessian-vector product a fifth slower than in one piece.
    """
    image, label, valid = jax.tree.map(jnp.asarray, split)

    def loss(params: Params) -> Array:
        def of_chunk(part: tuple[Array, Array], weight: Array) -> Array:
            image, label = part
            logits, _ = model.apply({**variables, "params": params}, as_float(image))
            return weight @ _cross_entropy(logits, label)

        total = accumulate(jax.checkpoint(of_chunk), (image, label), chunk=chunk, valid=valid)
        return total / jnp.maximum(valid.sum(), 1)

    return loss


def _cross_entropy(logits: Array, label: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, label.astype(jnp.int32))


def _measure_sample(
    key: Key[Array, ""], model: Model, variables: Variables, split: Split, settings: Settings
) -> Smoothness:
    eigenvalue_key, trace_key = jax.random.split(key)
    params = variables["params"]
    loss = mean_loss(model, variables, split, chunk=settings.chunk)
    eigenvalue = largest_eigenvalue(
        eigenvalue_key, loss, params, iterations=settings.iterations, tolerance=settings.tolerance
    )
    hessian = trace(trace_key, loss, params, draws=settings.draws)

    def example_loss(params: Params, example: Split) -> Array:
        logits, _ = model.apply({**variables, "params": params}, as_float(example.image[None]))
        return _cross_entropy(logits, example.label[None])[0]

    examples, chunk = jax.tree.map(jnp.asarray, split), min(32, settings.chunk)
    with jax.default_matmul_precision("highest"):
        information = fisher.trace(example_loss, params, examples, valid=examples.valid, chunk=chunk)
    return Smoothness(eigenvalue.value, eigenvalue.converged, hessian.mean, hessian.error, information, loss(params))


_measure = compilation.jit(_measure_sample, static_argnames=("model", "settings"))


# --- Over the epochs of a defense ------------------------------------------------------------------------------------


def smoothness(every: int = 10, images: int = 200, draws: int = 100, variant: str = "mixed") -> Curves:
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
        """Return ``epoch`` [k], and [k] of each field of `Smoothness`, of ACC and of ASR after so many epochs."""
        rows = {}

        def row(epoch: int, variables: Callable[[], Variables]) -> None:
            if epoch % self.every and epoch != subject.epochs:
                return
            of = (subject.model, jax.device_get(variables()), subject.test, subject.triggered)
            rates = evaluate.evaluate(*of)
            surface = measure(subject.key, *of, variant=self.variant, settings=self.settings)
            rows[epoch] = {**surface._asdict(), **{name: getattr(rates, name) for name, *_ in _RATES}}

        subject.replay(row)
        names = next(iter(rows.values()))
        return {
            "epoch": np.asarray(list(rows)),
            **{name: np.asarray([np.asarray(found[name]) for found in rows.values()]) for name in names},
        }

    def draw(self, found: Mapping[str, Findings]) -> Figure:
        """Draw two panels for each run, all with the same axes: the sharpness, logarithmic, and the rates."""
        from matplotlib.lines import Line2D
        from matplotlib.ticker import MaxNLocator

        titles = [title for run in found for title in (run, "")]
        page, panels = layout.panels(titles, f"Sharpness of the loss on {self.variant} test images during the defense")
        last = max(1, *(int(findings["epoch"][-1]) for findings in found.values()))
        limits = _limits([_positive(findings[name]) for findings in found.values() for name, *_ in _SHARPNESS])
        for findings, left, right in zip(found.values(), panels[::2], panels[1::2], strict=True):
            _draw_sharpness(left, findings)
            left.set_ylim(*limits)
            left.tick_params(which="both", length=0)
            for name, _, color, _ in _RATES:
                right.plot(findings["epoch"], 100 * findings[name], color=color, marker=".", lw=1.4)
            right.set_ylim(-3, 103)
            right.set_yticks(range(0, 101, 25), ["0", "25", "50", "75", "100 %"])
            for ax in (left, right):
                ax.set_xlim(-0.02 * last, 1.02 * last)
                ax.xaxis.set_major_locator(MaxNLocator(integer=True))
                ax.set_xlabel("epochs")
        key = [
            Line2D([], [], color=color, marker=mark, ms=3, label=words)
            for _, words, color, mark in (*_SHARPNESS, *_RATES)
        ]
        layout.legend(page, key, page.get_figheight() - layout.KEY)
        return page


def _draw_sharpness(ax: Axes, findings: Findings) -> None:
    """Draw the three curves; points of a λ_max that did not settle are hollow."""
    epoch = findings["epoch"]
    for name, _, color, mark in _SHARPNESS:
        shown = _positive(findings[name])
        settled = findings["eigenvalue_converged"] if name == "largest_eigenvalue" else np.ones(len(epoch), bool)
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
