"""How a network's images were normalized: (x − mean) / std, which no weight tells.

It is known from what stands in the file or beside it, or from the family, or it is not known; nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from bdjax.checks import InputError
from bdjax.files import atomic
from bdjax.files.printable import printable

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
# What BackdoorBench's transforms normalize each data set with, by the name in a file's ``clean_data``.
BACKDOORBENCH = {
    "cifar10": CIFAR10,
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "mnist": ((0.5,), (0.5,)),
    "gtsrb": ((0.0,) * 3, (1.0,) * 3),
}
NONE = "none"
# torchvision's published weights of these undo ImageNet's normalization before the first layer (transform_input=True).
_OF_HALF = ("googlenet", "inception_v3")
_TIMMS_VIT = "cls_token"  # an array that torchvision's has under another name
IMAGENET_SIDES = range(192, 400)  # pixels of the images that ImageNet's networks take
_IMAGENET_CLASSES = 1000
# Keys of a config beside the weights: bdjax's and timm's, and those of a Hugging Face preprocessor.
_CONFIGS = (("config.json", "mean", "std"), ("preprocessor_config.json", "image_mean", "image_std"))
_NESTED = ("pretrained_cfg",)  # where timm has them


@dataclasses.dataclass(frozen=True)
class Normalization:
    """What is taken from each channel of an image in [0, 1], and what it is then divided by.

    Attributes:
      mean, std: one number a channel.
      why: how that is known, in words.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    why: str

    @property
    def words(self) -> str:
        """The values as they are shown.

        >>> Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "").words
        'none'
        """
        if not any(self.mean) and set(self.std) == {1.0}:
            return NONE
        mean, std = (" ".join(f"{value:.4g}" for value in one) for one in (self.mean, self.std))
        return f"mean {mean}, std {std}"


def of(mean: Sequence[float], std: Sequence[float], channels: int, why: str) -> Normalization:
    """Return a normalization of so many channels; one number stands for all of them.

    Raises:
      InputError: not as many numbers as channels, a number that is not finite or is of pixels in [0, 255], or a
        standard deviation that is not above 0.
    """
    return Normalization(_of_each("mean", mean, channels), _of_each("std", std, channels), why)


def _of_each(name: str, given: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return a number for each channel, as `of` checks them."""
    values = tuple(map(float, given))
    shown = ",".join(f"{value:g}" for value in values)
    if len(values) not in (1, channels):
        wanted = f"{channels} numbers, one a channel, or one for all"
        raise InputError(f"{name} must be {wanted}; got {len(values)} ({shown}).")
    if not all(map(math.isfinite, values)):
        raise InputError(f"{name} must be finite; got {shown}.")
    if max(map(abs, values)) > 2:
        wanted = "in units of [0, 1], so divide what is of pixels in [0, 255] by 255"
        raise InputError(f"{name} must be {wanted}; got {shown}.")
    if name == "std" and min(values) <= 0:
        raise InputError(f"std must be above 0; got {shown}.")
    return values * channels if len(values) == 1 else values


def parse(mean: str | None, std: str | None, channels: int) -> Normalization | None:
    """Return what ``--mean`` and ``--std`` ask for, None where neither is given.

    Args:
      mean: numbers with commas, such as ``0.49,0.48,0.45``; or ``none``, which is mean 0 and std 1.
      std: numbers with commas; left out, or ``none`` too, with ``none``.
      channels: of the images.

    Raises:
      InputError: one without the other, what is no number, or as for `of`.
    """
    if mean is None and std is None:
        return None
    if mean == NONE and std in (None, NONE):
        return of((0.0,), (1.0,), channels, "as asked for")
    if mean is None or std is None:
        missing = "mean" if mean is None else "std"
        raise InputError(f"{missing} must be given too, or --mean none for no normalization.")
    return of(_numbers("mean", mean), _numbers("std", std), channels, "as asked for")


def known(
    beside: Mapping[str, Any],
    file: Path,
    *,
    channels: int,
    num_classes: int,
    image_size: int | None = None,
    of_torchvision: bool = False,
    network: str = "",
    names: Collection[str] = (),
) -> Normalization | None:
    """Return how a network's images were normalized, None where nothing says so.

    Args:
      beside: what stood in the file beside the weights, plain values.
      file: of the network; a config in its folder counts.
      channels: of the images.
      num_classes: of the network.
      image_size: pixels a side, where that is known.
      of_torchvision: whether the network is one of torchvision's, with its stem for ImageNet.
      network: its name, where it was recognized.
      names: of the file's arrays.
    """
    is_imagenets = (
        of_torchvision
        and num_classes == _IMAGENET_CLASSES
        and channels == len(IMAGENET[0])
        and (image_size is None or image_size in IMAGENET_SIDES)
    )
    return (
        _of_backdoorbench(beside, channels)
        or _written(beside, "mean", "std", channels, "as the file says")
        or _of_config(file, channels)
        or (_of_family(network, names) if is_imagenets else None)
    )


def files_beside(file: Path) -> list[Path]:
    """Return the configs in a network's folder that `known` looks into."""
    beside = [file.with_name(name) for name, *_ in _CONFIGS]
    return [one for one in beside if one.is_file()]


def candidates(channels: int) -> tuple[Normalization, ...]:
    """Return what networks are usually normalized with, to be tried where images are at hand."""
    found = [of((0.0,), (1.0,), channels, NONE)]
    found.append(of((0.5,), (0.5,), channels, "0.5"))
    if channels == len(IMAGENET[0]):
        found += [Normalization(*IMAGENET, "ImageNet's"), Normalization(*CIFAR10, "CIFAR-10's")]
    return tuple(found)


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        wanted = "numbers with commas, such as 0.49,0.48,0.45, or none"
        raise InputError(f"{name} must be {wanted}; got {text!r}.") from None


def _of_backdoorbench(beside: Mapping[str, Any], channels: int) -> Normalization | None:
    name = beside.get("clean_data")
    if not isinstance(name, str) or name not in BACKDOORBENCH:
        return None
    mean, std = BACKDOORBENCH[name]
    if len(mean) != channels:
        return None
    return Normalization(mean, std, f"BackdoorBench's for {printable(name)}, which the file names")


def _of_config(file: Path, channels: int) -> Normalization | None:
    for name, mean, std in _CONFIGS:
        try:
            content = atomic.read_json(file.with_name(name))
        except (InputError, OSError):
            continue  # of something else, and no part of what was asked for
        if content is None:
            continue
        nested = [content.get(key) for key in _NESTED]
        for values in (content, *nested):
            if isinstance(values, Mapping):
                found = _written(values, mean, std, channels, f"as {name} beside it says")
                if found is not None:
                    return found
    return None


def _written(
    values: Mapping[str, Any], mean: str, std: str, channels: int, why: str
) -> Normalization | None:
    """Return what two keys of a mapping say, None where they are not there or make no sense."""
    pair = (values.get(mean), values.get(std))
    if not all(isinstance(one, Sequence) and not isinstance(one, str) for one in pair):
        return None
    try:
        return of(*pair, channels, why)  # type: ignore[arg-type]
    except (InputError, TypeError, ValueError):
        return None


def _of_family(network: str, names: Collection[str]) -> Normalization | None:
    """Return how the published weights of a family with ImageNet's classes want their images."""
    if _TIMMS_VIT in names:
        return None  # some of timm's were trained with 0.5, some with ImageNet's
    if network in _OF_HALF:
        why = f"0.5, as torchvision's weights of {network} take images (transform_input)"
        return Normalization((0.5,) * 3, (0.5,) * 3, why)
    return Normalization(*IMAGENET, "ImageNet's, as the network's form and 1,000 classes say")
