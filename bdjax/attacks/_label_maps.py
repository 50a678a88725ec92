"""Label maps: which label the attacker wants for each true label."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from bdjax.checks import InputError, integer, one_of
from bdjax.types import LabelMap

NAMES = ("all_to_one", "all_to_all")


@dataclasses.dataclass(frozen=True)
class AllToOne:
    """Every label becomes the target label."""

    target_label: int = 0

    def __call__(self, label: Int[Array, "*n"]) -> Int[Array, "*n"]:
        return label * 0 + self.target_label


@dataclasses.dataclass(frozen=True)
class AllToAll:
    """Every label y becomes (y + shift) mod C."""

    num_classes: int
    shift: int = 1

    def __call__(self, label: Int[Array, "*n"]) -> Int[Array, "*n"]:
        return (label + self.shift) % self.num_classes


@dataclasses.dataclass(frozen=True)
class OneToOne:
    """The source label becomes the target label, and every other label stays."""

    source_label: int
    target_label: int

    def __call__(self, label: Int[Array, "*n"]) -> Int[Array, "*n"]:
        return jnp.where(label == self.source_label, self.target_label, label).astype(label.dtype)


def create(name: str = "all_to_one", target_label: int = 0, num_classes: int | None = None) -> LabelMap:
    """Return the label map of that name.

    Raises:
      InputError: unknown name, a target outside the classes, or all-to-all without the number of classes.
    """
    one_of(NAMES, label_map=name)
    integer(target_label=target_label)
    if num_classes is not None and target_label >= num_classes:
        raise InputError(f"target_label must be below {num_classes}, the number of classes; got {target_label}.")
    if name == "all_to_one":
        return AllToOne(target_label)
    if num_classes is None:
        raise InputError("label_map 'all_to_all' needs the number of classes: pass num_classes or the data set's spec.")
    return AllToAll(num_classes)


def check_clean_label(label_map: LabelMap) -> None:
    """Refuse a label map under which no image keeps its label.

    Raises:
      InputError: it is all-to-all.
    """
    if isinstance(label_map, AllToAll):
        raise InputError("label_map must be 'all_to_one' for a clean-label attack: all_to_all keeps no image's label.")
