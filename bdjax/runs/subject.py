"""What an analysis sees of a finished run, and what it is: one file per analysis, found by its name."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Array, Key

from bdjax import structure
from bdjax.checks import InputError, did_you_mean
from bdjax.structure import Path
from bdjax.tasks.metrics import SINGLE_LABEL, Metric, from_text
from bdjax.types import Model, PoisonedSplit, ProbedModel, Spec, Split, Variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Arrays by name, without objects, so that a file of them is only data
Findings: TypeAlias = dict[str, np.ndarray]
METRICS = "metrics"  # the finding that describes the others which are metrics, as text
OnVariables: TypeAlias = Callable[[int, Callable[[], Variables]], None]


class Subject(NamedTuple):
    """A finished run, loaded again.

    Attributes:
      config: its resolved config, plain values.
      model: the network.
      victim, defended: its variables before and after the defense; the same ones where the defense is ``none``.
      test: clean test images (uint8) with their labels.
      triggered: the same images with the trigger; ``visible.valid`` are those that count for the attack success rate.
      holdout: the defender's clean images.
      epochs: of the defense.
      key: decides what the analysis draws; one for all runs of a seed.
      replay: carries out the defense again, bit for bit, and calls a function with each number of epochs done, 0 first,
        and what returns the variables after them.
      once: given an analysis and a function that finds something of the victim alone, calls it; for further runs of
        the same victim and the same analysis it returns what was found then.
    """

    config: Mapping[str, Any]
    model: ProbedModel
    victim: Variables
    defended: Variables
    test: Split
    triggered: PoisonedSplit
    holdout: Split
    epochs: int
    key: Key[Array, ""]
    replay: Callable[[OnVariables], None]
    once: Callable[[Hashable, Callable[[], Any]], Any] = lambda analysis, find: find()


@runtime_checkable
class Analysis(Protocol):
    """Measures one run at a time and draws several together.

    A frozen dataclass of plain options, made by the function that its file is named after. It may say
    in ``works_on`` of which inputs (`bdjax.types.Modality.unit`), and in ``labels`` of which labels
    (`bdjax.types.Task.labels`) it is alone.
    """

    def measure(self, subject: Subject) -> Findings:
        """Return the arrays that are to be kept of a run, and drawn."""
        ...

    def draw(self, found: Mapping[str, Findings]) -> Figure:
        """Draw the findings of runs, by their titles, on one page."""
        ...


@runtime_checkable
class NeedsLibrary(Protocol):
    """An analysis that measures with a library which may not be installed."""

    def require(self) -> None:
        """Raise InputError where it is not."""
        ...


def check_fits(name: str, analysis: Analysis, spec: Spec) -> None:
    """Refuse an analysis that is of other inputs or labels than a run's.

    Args:
      name: of the analysis.
      analysis: that is to measure.
      spec: of the run's data.

    Raises:
      InputError: what it needs and what there is.
    """
    unit, labels = spec.modality.unit, spec.task.labels
    if (wanted := getattr(analysis, "works_on", unit)) != unit:
        raise InputError(f"analysis {name!r} needs {wanted}s; {spec.name} has {unit}s.")
    if (wanted := getattr(analysis, "labels", labels)) != labels:
        what = f"whose label is a {wanted}; those of {spec.name} have a {labels}"
        raise InputError(f"analysis {name!r} needs inputs {what}.")


def metrics_of(findings: Findings) -> tuple[Metric, ...]:
    """Return the metrics that findings describe, or those of single-label classes among findings that describe none."""
    if METRICS in findings:
        return from_text(str(findings[METRICS]))
    return tuple(metric for metric in SINGLE_LABEL if metric.name in findings)


def convolution(model: Model, variables: Variables, layer: str | None = None) -> Path:
    """Return the path of a convolution's kernel: the last one that the network computes, or that of a layer's name.

    Where the classifier is a convolution too, its outputs are the logits, so the last one is that before it.

    Args:
      model: the network.
      variables: any of its variables.
      layer: such as ``layer4_1/conv2``; None for the last.

    Raises:
      InputError: no such convolution, or none at all.
    """
    found = structure.convolutions(variables["params"])
    order = [path for path in structure.execution_order(model, variables) if path in found]
    if not order:
        raise InputError("the network must have a convolution for this analysis.")
    names = {"/".join(path[:-1]): path for path in order}
    if layer is None:
        hidden = [path for path in order if path != structure.classifier(model, variables)]
        return (hidden or order)[-1]
    if layer not in names:
        raise InputError(
            f"no convolution {layer!r}{did_you_mean(layer, list(names))}; known: {', '.join(names)}."
        )
    return names[layer]
