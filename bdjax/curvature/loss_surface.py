"""The loss surface around a network: λ_max and Tr(H) of the Hessian and Tr(F), on a sample of test images."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from bdjax.checks import DRAWS, InputError, integer, one_of, positive
from bdjax.curvature import fisher
from bdjax.curvature.chunks import accumulate
from bdjax.curvature.hessian import Loss, largest_eigenvalue, trace
from bdjax.data import splits
from bdjax.devices import compilation
from bdjax.types import Model, Params, PoisonedSplit, Split, Variables

VARIANTS = ("clean", "triggered", "mixed")


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
        plain: dict[str, float | bool | None] = {}
        for name, value in self._asdict().items():
            number = np.asarray(value).item()
            plain[name] = number if math.isfinite(number) else None
        return plain


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
    key: Key[Array, ""],
    clean: Split,
    triggered: PoisonedSplit,
    *,
    variant: str = "mixed",
    images: int = 200,
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
        own_key = jax.random.fold_in(key, purpose)
        order = np.asarray(jax.random.permutation(own_key, len(split.label)))
        rows = order[np.asarray(split.valid)[order]]
        if count > rows.size:
            there = f"{count} {kind} ones of them are drawn, and the test split has {rows.size}"
            raise InputError(f"images must be fewer for {variant!r}: {there}; got {images}.")
        parts.append(splits.take(split, rows[:count]))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def mean_loss(model: Model, variables: Variables, split: Split, *, chunk: int = 100) -> Loss:
    """Return the mean negative log-likelihood over a split's valid rows as a function of the parameters.

    The network is in evaluation mode. Only one chunk's activations are alive at a time, in the derivatives too: each
    chunk is computed anew on the way back, which makes a Hessian-vector product a fifth slower than in one piece.
    """
    image, label, valid = jax.tree.map(jnp.asarray, split)

    def loss(params: Params) -> Array:
        def of_chunk(part: tuple[Array, Array], weight: Array) -> Array:
            image, label = part
            logits, _ = model.apply(
                {**variables, "params": params}, model.spec.modality.load(image)
            )
            return weight @ model.spec.task.negative_log_likelihood(logits, label)

        total = accumulate(jax.checkpoint(of_chunk), (image, label), chunk=chunk, valid=valid)
        return total / jnp.maximum(valid.sum(), 1)

    return loss


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
        input = model.spec.modality.load(example.input[None])
        logits, _ = model.apply({**variables, "params": params}, input)
        return model.spec.task.negative_log_likelihood(logits, example.label[None])[0]

    examples, chunk = jax.tree.map(jnp.asarray, split), min(32, settings.chunk)
    with jax.default_matmul_precision("highest"):
        information = fisher.trace(
            example_loss, params, examples, valid=examples.valid, chunk=chunk
        )
    return Smoothness(
        eigenvalue.value,
        eigenvalue.converged,
        hessian.mean,
        hessian.error,
        information,
        loss(params),
    )


_measure = compilation.jit(_measure_sample, static_argnames=("model", "settings"))
