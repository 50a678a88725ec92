"""Why a network may be right on no more clean images than a guess: how it was not given them as in its training.

Normalization, the order of the color channels and the numbers of the classes stand in no weight. What is likely is
found by trying: the same network on the same images, each time read in another way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from scipy.optimize import linear_sum_assignment

from bdjax import evaluate
from bdjax.models.foreign import normalization
from bdjax.models.foreign.normalization import Normalization
from bdjax.runs.soundness import DEVIATIONS
from bdjax.types import Model, Split, Variables

TRIED = 200  # images, at most, that each way is tried on
GAIN = 0.2  # of the share of right answers, by which another way must be better to be called likely
_ENOUGH = 0.5  # right answers, below which an order of the classes is as likely found by chance
_AT_ONCE, _PIXELS = 100, 100 * 64 * 64  # images and pixels in the network

Ask = Callable[[np.ndarray], Int[np.ndarray, " n"]]


class Way(NamedTuple):
    """A way to give images to a network, and how often it is right then.

    Attributes:
      normalization: of the images.
      reversed: whether the color channels stand in the order blue, green, red.
      order: the network's number of each class; None for the numbers as they are.
      right, of: answers.
    """

    normalization: Normalization
    reversed: bool
    order: tuple[int, ...] | None
    right: int
    of: int

    @property
    def share(self) -> float:
        """The share of right answers."""
        return self.right / self.of


def batch_size(shape: tuple[int, ...]) -> int:
    """Return how many images of a shape are evaluated at once, so that memory is bounded."""
    return max(1, min(_AT_ONCE, _PIXELS // (shape[0] * shape[1])))


def answers(model: Model, variables: Variables, images: np.ndarray) -> Int[np.ndarray, " n"]:
    """Return the class that a network names for each image.

    All calls for images of one shape and type share a program, however many images there are.
    """
    size, found = batch_size(images.shape[1:]), []
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        rows = len(batch)
        padded = np.concatenate([batch, np.repeat(batch[-1:], size - rows, axis=0)])
        found.append(np.asarray(evaluate.predict(model, variables, padded, batch_size=size))[:rows])
    return np.concatenate(found)


def is_at_chance(right: int, label: Int[np.ndarray, " n"], num_classes: int) -> bool:
    """Say whether so many right answers are no more than a guess gives, as `bdjax.runs.soundness` tests it.

    A guess is the most frequent class, or any.
    """
    of = len(label)
    guess = max(1 / num_classes, int(np.bincount(label).max()) / of)
    return right - of * guess <= DEVIATIONS * math.sqrt(of * guess * (1 - guess))


def tried(
    model: Model, variables: Variables, split: Split, current: Normalization | None = None
) -> list[Way]:
    """Return the ways that were tried, the best first; of equal ones, the more usual.

    Args:
      model: the network.
      variables: its weights.
      split: clean images, of which at most `TRIED` are looked at.
      current: the normalization that is taken to be the network's, if any.
    """
    plain, channels = _plain(model), model.spec.shape[-1]
    # Some of all classes, in whatever order the images lie
    rows = np.random.default_rng(0).permutation(len(split.label))[:TRIED]
    image, label = np.asarray(split.input)[rows], np.asarray(split.label)[rows]
    image = image.astype(np.float32) / 255 if image.dtype == np.uint8 else image
    found: list[Way] = []
    for one in _normalizations(channels, current):
        mean, std = (np.asarray(values, np.float32) for values in (one.mean, one.std))
        for is_reversed in (False, True)[: 2 if channels == 3 else 1]:
            seen = image[..., ::-1] if is_reversed else image
            answer = answers(plain, variables, (seen - mean) / std)
            found += _ways(one, is_reversed, answer, label, model.spec.num_classes)
    return sorted(found, key=_rank)


def likely(ways: list[Way], share: float) -> Way | None:
    """Return the best way, if it is right so much more often that it is likely the network's own."""
    best = ways[0]
    return best if best.share - share >= GAIN else None


def words(way: Way, current: Normalization | None = None, class_names: tuple[str, ...] = ()) -> str:
    """Say what a way is, what is to be done for it, and how often the network is right then."""
    said = list(_differences(way, current, class_names)) or ["images as they are given"]
    return f"{', '.join(said)}: right on {way.share:.1%} of {way.of}"


def flags(one: Normalization) -> str:
    """Return what a normalization is asked for with."""
    if one.words == normalization.NONE:
        return "--mean none"
    mean, std = (",".join(f"{value:g}" for value in values) for values in (one.mean, one.std))
    return f"--mean {mean} --std {std}"


def _plain(model: Model) -> Model:
    """Return the network without a normalization of its own, so that one program does for all."""
    spec = model.spec
    channels = spec.shape[-1]
    modality = dataclasses.replace(spec.modality, mean=(0.0,) * channels, std=(1.0,) * channels)  # type: ignore[type-var]
    spec = dataclasses.replace(spec, modality=modality)
    return dataclasses.replace(model, spec=spec)  # type: ignore[type-var]


def _normalizations(channels: int, current: Normalization | None) -> list[Normalization]:
    usual = normalization.candidates(channels)
    if current is None:
        return list(usual)
    others = [one for one in usual if one.words != current.words]
    return [current, *others]


def _ways(
    one: Normalization,
    is_reversed: bool,
    answer: Int[np.ndarray, " n"],
    label: Int[np.ndarray, " n"],
    num_classes: int,
) -> Iterator[Way]:
    """Yield the way with the numbers of the classes as they are, and with those that fit best, if they fit well."""
    of, right = len(label), int((answer == label).sum())
    yield Way(one, is_reversed, None, right, of)
    confusion = np.zeros((num_classes, num_classes), int)
    np.add.at(confusion, (label, answer), 1)
    _, order = linear_sum_assignment(confusion, maximize=True)
    fitting = int(confusion[np.arange(num_classes), order].sum())
    if fitting - right >= GAIN * of and fitting >= _ENOUGH * of:
        yield Way(one, is_reversed, tuple(map(int, order)), fitting, of)


def _rank(way: Way) -> tuple[int, bool, bool]:
    return -way.right, way.order is not None, way.reversed


def _differences(
    way: Way, current: Normalization | None, class_names: tuple[str, ...]
) -> Iterator[str]:
    if current is None or way.normalization.words != current.words:
        yield f"normalization {way.normalization.why} ({flags(way.normalization)})"
    if way.reversed:
        yield "channels in the order blue, green, red"
    if way.order is not None:
        names = class_names or tuple(map(str, range(len(way.order))))
        ordered = [names[way.order.index(number)] for number in range(len(names))]
        shown = ",".join(ordered[:12]) + (",…" if len(ordered) > 12 else "")
        yield f"other numbers of the classes (--class-order {shown})"
