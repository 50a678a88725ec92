"""Variants of the defenses that are no options of them: which statistics batch norm uses, and what is tuned.

Statistics are networks that differ from a given one in that alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Key

from bdjax import pytree, structure
from bdjax.parametrizations import SingularValues
from bdjax.types import BatchStats, Model, Spec, Variables

MOMENTUM = 0.9  # of the running statistics


@dataclasses.dataclass(frozen=True)
class Evaluating:
    """The running statistics of the victim, in the loss as well as in the Fisher terms; they stay as they are."""

    model: Model

    @property
    def spec(self) -> Spec:
        return self.model.spec

    def init(self, key: Key[Array, ""]) -> Variables:
        return self.model.init(key)

    def features(self, variables: Variables, image: Array) -> Array:
        return self.model.features(variables, image)

    def apply(
        self, variables: Variables, image: Array, *, train: bool = False, valid: Any = None
    ) -> tuple[Array, BatchStats]:
        del train, valid
        return self.model.apply(variables, image)


@dataclasses.dataclass(frozen=True)
class OfTheBatch(Evaluating):
    """The statistics of a batch, in the loss; and in the Fisher terms those of the batch before, as constants."""

    def apply(
        self, variables: Variables, image: Array, *, train: bool = False, valid: Any = None
    ) -> tuple[Array, BatchStats]:
        logits, changed = self.model.apply(variables, image, train=train, valid=valid)
        if not train:
            return logits, changed
        before = variables["batch_stats"]
        return logits, jax.tree.map(
            lambda new, old: (new - MOMENTUM * old) / (1 - MOMENTUM), changed, before
        )


MODELS = {"train": lambda model: model, "eval": Evaluating, "batch": OfTheBatch}


@pytree.dataclass
class SingularValuesAndRest(SingularValues):
    """Singular values of the kernels, and all that is no kernel: batch norms and biases."""

    def init(self, model: Model, variables: Variables) -> tuple[Any, Any]:
        shifts, frozen = SingularValues.init(self, model, variables)
        return structure.nested(
            {**structure.flat(variables["params"]), **structure.flat(shifts)}
        ), frozen

    def apply(self, tuned: Any, frozen: Any) -> Any:
        shifts, rest = _parted(tuned)
        params = SingularValues.apply(self, shifts, frozen)
        return structure.nested({**structure.flat(params), **rest})

    def factored(self, tuned: Any, frozen: Any) -> Any:
        shifts, rest = _parted(tuned)
        params = SingularValues.factored(self, shifts, frozen)
        return structure.nested({**structure.flat(params), **rest})


def _parted(tuned: Any) -> tuple[Any, dict[structure.Path, Any]]:
    leaves = structure.flat(tuned)
    shifts = {path: leaf for path, leaf in leaves.items() if path[-1] == "kernel"}
    rest = {path: leaf for path, leaf in leaves.items() if path[-1] != "kernel"}
    return structure.nested(shifts), rest
