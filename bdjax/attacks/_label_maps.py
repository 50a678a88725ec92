"""Label maps: which label the attacker wants for each true label."""

from __future__ import annotations

import dataclasses
import unicodedata
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from bdjax.checks import InputError, did_you_mean, integer, one_of
from bdjax.types import ClassLabel, LabelMap, Spec

NAMES = ("all_to_one", "all_to_all", "add_label")
_MADE_FOR = {
    "class": "a class to a class, as 'all_to_one' and 'all_to_all' do",
    "set": "a set of classes to another, as 'add_label' does",
}
CANDIDATES = ("all", "changed")  # who may be poisoned
_LISTED = 10  # class names in a message


def rate_counts(candidates: str) -> str:
    """Return of what the poison rate is the share, `bdjax.types.Attack.rate_of`, for these candidates.

    Raises:
      InputError: they are none of `CANDIDATES`.
    """
    one_of(CANDIDATES, candidates=candidates)
    return "candidates" if candidates == "changed" else "all"


@dataclasses.dataclass(frozen=True)
class AllToOne:
    """Every label becomes the target label."""

    target_label: int = 0
    labels: ClassVar[str] = "class"

    def __call__(self, label: Int[Array, "*n"]) -> Int[Array, "*n"]:
        return label * 0 + self.target_label


@dataclasses.dataclass(frozen=True)
class AllToAll:
    """Every label y becomes (y + shift) mod C."""

    num_classes: int
    shift: int = 1
    labels: ClassVar[str] = "class"

    def __call__(self, label: Int[Array, "*n"]) -> Int[Array, "*n"]:
        return (label + self.shift) % self.num_classes


@dataclasses.dataclass(frozen=True)
class OneToOne:
    """The source label becomes the target label, and every other label stays."""

    source_label: int
    target_label: int
    labels: ClassVar[str] = "class"

    def __call__(self, label: Int[Array, "*n"]) -> Int[Array, "*n"]:
        return jnp.where(label == self.source_label, self.target_label, label).astype(label.dtype)


@dataclasses.dataclass(frozen=True)
class AddLabel:
    """The target class joins every set of classes; a set that has it stays."""

    target_label: int = 0
    labels: ClassVar[str] = "set"

    def __call__(self, label: Bool[Array, "*n k"]) -> Bool[Array, "*n k"]:
        return label.at[..., self.target_label].set(True)


def create(
    name: str = "all_to_one",
    target_label: ClassLabel = 0,
    spec: Spec | None = None,
) -> LabelMap:
    """Return the label map of that name; what is not known without the data is checked where there is a ``spec``.

    Raises:
      InputError: unknown name, a target that is no class, or all-to-all or a target's name without the specification.
    """
    one_of(NAMES, label_map=name)
    target = class_number(target_label, spec, "target_label")
    if name != "all_to_all":
        return AllToOne(target) if name == "all_to_one" else AddLabel(target)
    if spec is None:
        raise InputError(
            "label_map 'all_to_all' needs the number of classes: pass the data set's spec."
        )
    return AllToAll(spec.num_classes)


def class_number(label: ClassLabel, spec: Spec | None, option: str) -> int:
    """Return the number of a class that an option names by number or by name.

    Raises:
      InputError: there is no such class; or a name is given and the classes are not known.
    """
    if isinstance(label, str):
        return _by_name(label, spec, option)
    integer(**{option: label})
    if spec is not None and label >= spec.num_classes:
        raise InputError(
            f"{option} must be below {spec.num_classes}, the number of classes; got {label}{namesake(label, spec)}."
        )
    return label


def _by_name(label: str, spec: Spec | None, option: str) -> int:
    if spec is None:
        raise InputError(
            f"{option} {label!r} is the name of a class, which needs the names: pass the data set's spec."
        )
    name = unicodedata.normalize("NFC", label)
    if name not in spec.class_names:
        listed = ", ".join(spec.class_names[:_LISTED]) or "none has a name"
        more = ", …" if len(spec.class_names) > _LISTED else ""
        near = did_you_mean(label, spec.class_names)
        raise InputError(
            f"{option} must be a class of {spec.name}, by number or by name ({listed}{more}); got {label!r}{near}."
        )
    return spec.class_names.index(name)


def namesake(number: int, spec: Spec) -> str:
    """Return a remark where a class of another number has this number for its name, else nothing.

    Classes 1 to 10 have the numbers 0 to 9, and 1 may mean either to who counts from one.
    """
    if str(number) not in spec.class_names or spec.class_names.index(str(number)) == number:
        return ""
    return (
        f" (the class named {str(number)!r} has the number {spec.class_names.index(str(number))})"
    )


def target_class(label_map: LabelMap, spec: Spec) -> str | None:
    """Return the name (else the number) of the class that a label map aims at; None where it aims at many."""
    if not isinstance(label_map, AllToOne | OneToOne | AddLabel):
        return None
    number = label_map.target_label
    return spec.class_names[number] if number < len(spec.class_names) else str(number)


def check_labels(label_map: LabelMap, spec: Spec) -> None:
    """Refuse a label map that is made for other labels than those of the data set's task.

    Raises:
      InputError: it maps classes, say, where each input has a set of them.
    """
    labels = spec.task.labels
    if getattr(label_map, "labels", labels) != labels:
        wanted = _MADE_FOR.get(labels, f"what is called a {labels} to another")
        raise InputError(
            f"label_map must map {wanted}, for the labels of {spec.name}; got {label_map!r}."
        )


def check_clean_label(label_map: LabelMap) -> None:
    """Refuse a label map under which no image keeps its label.

    Raises:
      InputError: it is all-to-all.
    """
    if isinstance(label_map, AllToAll):
        raise InputError(
            "label_map must be 'all_to_one' for a clean-label attack: all_to_all keeps no image's label."
        )
