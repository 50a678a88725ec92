"""The clean images of somebody who has one suspicious network: which there are, and what each of them is used for."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import jax
import numpy as np
from jaxtyping import Array, Key

from bdjax import data
from bdjax.checks import InputError, did_you_mean
from bdjax.data import splits, validation
from bdjax.data.modalities.images import Images
from bdjax.tasks.single_label import SingleLabel
from bdjax.types import Spec, Split

LEAST = 20  # images, below which a share of right answers says next to nothing
_LOOKED_AT = 1000  # names beside a folder that is not there, for one that was meant


class CleanImages(NamedTuple):
    """The images that somebody trusts.

    Attributes:
      name: what they are called.
      split: all of them, uint8 [n, h, w, c], with the network's numbers for classes.
      spec: their specification; its normalization is measured on them, and is not the network's.
      fingerprint: of them, whatever the order of the classes is said to be.
      notes: what was done to them, in words.
      group: of each, what it is a near duplicate in; None where nothing is known of that.
      of_training: whether they are the training split of a known data set, which the network may have been trained on.
    """

    name: str
    split: Split
    spec: Spec
    fingerprint: str
    notes: tuple[str, ...] = ()
    group: np.ndarray | None = None
    of_training: bool = False


class Parts(NamedTuple):
    """The images by what they are used for; nothing is in two of them."""

    given: Split  # to the defense
    choosing: Split | None  # a strength, where one is to be chosen
    kept: Split  # aside, to count right answers before and after


def load(
    place: str,
    *,
    num_classes: int | None = None,
    data_dir: str | None = None,
    image_size: int | None = None,
    class_order: Sequence[str] = (),
) -> CleanImages:
    """Return the images of a folder ``<place>/<class>/``, of a file ``.npz``, or those to train of a known data set.

    Args:
      place: the path, or a name of `bdjax.data.names`.
      num_classes: of the network, where that is known; folders may then be named by the numbers of their classes.
      data_dir: where known data sets lie.
      image_size: pixels a side that all are resized to; None leaves them.
      class_order: the names of all classes as the network numbers them; empty for the order that they have.

    Raises:
      InputError: there are none, they cannot be read, have no single class each, or the classes are others.
    """
    path = Path(os.path.expanduser(place))
    if path.exists():
        names = class_order if _has_folders(path, class_order) else ()
        dataset = data.load_clean(
            path, num_classes=num_classes, class_names=names, image_size=image_size
        )
    else:
        _check_known(place)
        dataset = data.load(place, data_dir=data_dir, image_size=image_size)
    spec, split = dataset.spec, dataset.train
    if not isinstance(spec.modality, Images) or not isinstance(spec.task, SingleLabel):
        what = f"{spec.modality.unit}s with a {spec.task.labels} each"
        raise InputError(f"data must be images with one class each; {place} holds {what}.")
    found = CleanImages(
        spec.name,
        split,
        spec,
        data.fingerprint(dataset)["train"],
        group=dataset.train_group,
        of_training=not path.exists(),
    )
    is_ordered = _has_folders(path, class_order)
    return _ordered(found, class_order) if class_order and not is_ordered else found


def fitting(images: CleanImages, channels: int, num_classes: int) -> CleanImages:
    """Return the images as a network takes them: gray ones three times over, where it takes three channels.

    Raises:
      InputError: they have other channels otherwise, or other classes, or are all of one class.
    """
    spec = images.spec
    if len(of_one := np.unique(np.asarray(images.split.label))) < 2:
        got = f"all of {images.name} are of class {', '.join(map(str, of_one)) or 'none'}"
        raise InputError(f"data must have images of two classes or more; {got}.")
    if spec.num_classes != num_classes:
        wanted = f"{num_classes} classes, as the network has"
        got = f"{images.name} has {spec.num_classes} ({_named(spec)})"
        raise InputError(f"data must have {wanted}; {got}.")
    have = spec.shape[-1]
    if (have, channels) == (1, 3):
        image = cast(Array, np.repeat(np.asarray(images.split.input), 3, axis=-1))
        split, spec = images.split._replace(input=image), _repeated(spec)
        notes = (*images.notes, "gray images stand three times over, in three channels")
        images = images._replace(split=split, spec=spec, notes=notes)
    elif have != channels:
        wanted = f"{channels} channel{'s' * (channels > 1)}, as the network takes"
        raise InputError(f"data must have {wanted}; {images.name} has {have}.")
    return images


def divide(
    key: Key[Array, ""], images: CleanImages, *, aside: float, choosing: float | None
) -> Parts:
    """Divide the images by what they are used for, as many of each class as can be.

    Near duplicates are never in two parts, where it is known which they are; the parts are as whole groups make them.

    Args:
      key: decides which.
      images: all of them.
      aside: share of all that is kept aside, in (0, 1).
      choosing: share of the rest by which a strength is chosen; None where none is.

    Raises:
      InputError: there are too few.
    """
    count, classes = len(images.split.label), images.spec.num_classes
    uses = (
        "the defense, the accuracy"
        if choosing is None
        else "the defense, its strength, the accuracy"
    )
    least = max(LEAST, (2 if choosing is None else 3) * classes)
    if count < least:
        why = f"at least one of each of {classes} classes for each use ({uses}), and {LEAST} in all"
        raise InputError(
            f"data must have {least} images or more, {why}; {images.name} has {count}."
        )
    order = np.asarray(jax.random.permutation(key, count))
    group = None if images.group is None else np.asarray(images.group)[order]
    rest, kept = _part(_Grouped(splits.take(images.split, order), group), aside, classes)
    if choosing is None:
        return Parts(rest.split, None, kept.split)
    given, chosen_by = _part(rest, choosing, classes)
    return Parts(given.split, chosen_by.split, kept.split)


class _Grouped(NamedTuple):
    """Images with the group of near duplicates that each is in, where that is known."""

    split: Split
    group: np.ndarray | None


def _part(images: _Grouped, share: float, classes: int) -> tuple[_Grouped, _Grouped]:
    """Return the rest, and a share that is taken out."""
    split, group = images
    if group is None:
        parts = validation.validation_split(split, split.label, share, classes)
        rest, taken = jax.tree.map(np.asarray, parts)
        return _Grouped(rest, None), _Grouped(taken, None)
    rows = validation.grouped_rows(np.asarray(split.label), group, share, classes)
    others = np.setdiff1d(np.arange(len(group)), rows)
    return (
        _Grouped(splits.take(split, others), group[others]),
        _Grouped(splits.take(split, rows), group[rows]),
    )


def _has_folders(path: Path, names: Sequence[str]) -> bool:
    """Say whether classes are folders of these names, which are then numbered as they are read."""
    return any((root / name).is_dir() for name in names for root in (path, path / "train"))


def _check_known(name: str) -> None:
    if name not in data.names():
        near = did_you_mean(name, [*_beside(Path(os.path.expanduser(name))), *data.names()])
        known = ", ".join(data.names())
        wanted = f"a folder of <class>/ folders with images, an .npz file, or one of {known}{near}"
        raise InputError(f"data must be {wanted}; there is no {name}.")


def _beside(path: Path) -> list[str]:
    """Return the paths of what lies beside one that is not there, as far as that can be seen."""
    try:
        entries = itertools.islice(path.parent.iterdir(), _LOOKED_AT)
        return [str(path.with_name(entry.name)) for entry in entries]
    except (OSError, ValueError):
        return []


def _ordered(images: CleanImages, order: Sequence[str]) -> CleanImages:
    """Return the images with the numbers that the classes have in an order of their names."""
    names = images.spec.class_names
    if sorted(order) != sorted(names):
        missing = sorted(set(names) - set(order)) or sorted(set(order) - set(names))
        shown = ", ".join(missing[:3]) or "one stands twice"
        wanted = f"each of the {len(names)} classes of {images.name} once"
        raise InputError(f"class_order must name {wanted}; look at {shown}.")
    number = np.array([list(order).index(name) for name in names], np.int32)
    label = cast(Array, number[np.asarray(images.split.label)])  # on the host as yet
    split = images.split._replace(label=label)
    task = SingleLabel(len(names), tuple(order))
    spec = dataclasses.replace(images.spec, task=task)
    note = "classes are numbered in the order that was asked for"
    return images._replace(split=split, spec=spec, notes=(*images.notes, note))


def _repeated(spec: Spec) -> Spec:
    """Return the specification of gray images that stand three times over."""
    modality = spec.modality
    assert isinstance(modality, Images), "as it was loaded"
    modality = dataclasses.replace(modality, mean=modality.mean * 3, std=modality.std * 3)
    return dataclasses.replace(spec, shape=(*spec.shape[:2], 3), modality=modality)


def _named(spec: Spec, most: int = 4) -> str:
    names = [*spec.class_names[:most], *(["…"] if len(spec.class_names) > most else [])]
    return ", ".join(names) or "without names"
