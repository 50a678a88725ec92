"""Arrays in, ``Dataset`` out: the last line of every source."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Array

from bdjax import checks
from bdjax.data.modalities.images import image_spec
from bdjax.types import Dataset, Modality, Split, Task


class Arrays(NamedTuple):
    """What a source reads: uint8 images [n, h, w, c] and int32 labels [n] of both splits.

    ``train_group`` is that of a `bdjax.types.Dataset`, where the source knows of any.
    """

    train_image: np.ndarray
    train_label: np.ndarray
    test_image: np.ndarray
    test_label: np.ndarray
    train_group: np.ndarray | None = None


def build(
    name: str,
    arrays: Arrays,
    class_names: tuple[str, ...],
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    crop_padding: int = 0,
    flip: bool = False,
) -> Dataset:
    """Return the data set; a mean and standard deviation that are not given are measured on the training images.

    Raises:
      InputError: images that are not uint8 [n, h, w, c].
    """
    for field in ("train_image", "test_image"):
        image = getattr(arrays, field)
        if image.dtype != np.uint8 or len(image.shape) != 4:
            got = f"{image.dtype} of shape {image.shape}"
            raise checks.InputError(f"{name}: {field} must be uint8 [n, h, w, c], got {got}.")
    if mean is None or std is None:
        mean, std = channel_statistics(arrays.train_image)
    height, width, channels = arrays.train_image.shape[1:]
    spec = image_spec(
        name,
        (height, width, channels),
        len(class_names),
        mean,
        std,
        class_names,
        crop_padding,
        flip,
    )
    return Dataset(
        train=split(arrays.train_image, arrays.train_label),
        test=split(arrays.test_image, arrays.test_label),
        spec=spec,
        train_group=arrays.train_group,
    )


def check(name: str, dataset: Dataset) -> None:
    """Refuse what is no data set, or whose arrays are not what its specification says.

    Args:
      name: whose function returned it.
      dataset: what that returned.

    Raises:
      InputError: as above.
    """
    checks.is_a(Dataset, "a bdjax.types.Dataset", **{f"what {name} returns": dataset})
    shape, task = dataset.spec.shape, dataset.spec.task
    checks.is_a(Task, "a bdjax.types.Task", **{f"the task of {name}": task})
    checks.is_a(
        Modality, "a bdjax.types.Modality", **{f"the modality of {name}": dataset.spec.modality}
    )
    _check_groups(name, dataset)
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        rows = tuple(array.shape[0] for array in split)
        if len(set(rows)) > 1:
            wrong = f"as many inputs as labels and marks in its {part} split, got {rows}"
            raise checks.InputError(f"{name} must have {wrong}.")
        if split.input.shape[1:] != shape:
            wrong = f"inputs of its specification's shape {shape}, got {split.input.shape[1:]}"
            raise checks.InputError(f"{name} must have {wrong} in its {part} split.")
        label = np.asarray(split.label)
        if task.labels == "class":
            kind, fits = f"numbers from 0 to {task.num_classes - 1}", label.dtype.kind in "iu"
            fits = (
                fits
                and (label.ndim == 1)
                and bool(((label >= 0) & (label < task.num_classes)).all())
            )
        else:
            kind, fits = f"bools [n, {task.num_classes}]", label.dtype == bool
            fits = fits and label.shape[1:] == (task.num_classes,)
        if not fits:
            got = f"{label.dtype} of shape {label.shape}"
            if label.size and label.dtype != bool:
                got += f" from {label.min()} to {label.max()}"
            raise checks.InputError(f"{name} must have labels that are {kind}, got {got}.")


def _check_groups(name: str, dataset: Dataset) -> None:
    group, count = dataset.train_group, dataset.train.label.shape[0]
    if group is not None and (group.shape != (count,) or group.dtype.kind not in "iu"):
        got = f"{group.dtype} of shape {group.shape}"
        raise checks.InputError(f"{name} must have a group for each of {count} rows, got {got}.")


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of uint8 images, in units of [0, 1].

    They come from exact counts of the 256 values, so they do not depend on the order of summation. A channel that is
    constant gets the standard deviation 1/255, so that normalizing never divides by zero.
    """
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[-1]):
        counts = np.zeros(256, np.int64)
        # Bincount widens its input to eight bytes a pixel
        for start in range(0, len(images), 1024):
            block = images[start : start + 1024, ..., channel]
            counts += np.bincount(block.ravel(), minlength=256)
        share = counts / images[..., channel].size
        mean = float(share @ values)
        means.append(mean)
        stds.append(max(float(np.sqrt(share @ (values - mean) ** 2)), 1 / 255))
    return tuple(means), tuple(stds)


def split(input: np.ndarray, label: np.ndarray) -> Split:
    """Return a split whose rows all count."""
    rows = (input, label, np.ones(len(label), bool))
    return Split(*cast(tuple[Array, Array, Array], rows))  # on the host as yet
