"""Any data set with an image and a label that TensorFlow Datasets prepared, by its name after ``tfds:``."""

from __future__ import annotations

import functools
from pathlib import Path

from bdjax.checks import InputError
from bdjax.data.sources import _cache, _dataset, _extra, _folders
from bdjax.types import Dataset

PREFIX = _folders.PREPARED


def load(name: str, data_dir: Path, image_size: int | None, *, on_disk: bool) -> Dataset:
    """Return the newest version of ``<data_dir>/<name>/`` that was prepared in array_record format.

    Its examples have an image and a ``ClassLabel`` called ``label``; its test split is ``test``, else ``validation``.
    The mean and standard deviation are measured on the training images, or those of [0, 1] itself (0 and 1) where they
    stay on the disk; nothing is cropped or flipped.

    Args:
      name: ``tfds:`` and the data set's name, with its config: ``tfds:svhn_cropped``, ``tfds:imagenet_resized/32x32``.
      data_dir: where prepared data lie.
      image_size: pixels a side.
      on_disk: leave the training images there.

    Raises:
      InputError: there is none, or it is damaged or of another kind.
    """
    own = name.removeprefix(PREFIX)
    if not own or own.startswith("/") or ".." in Path(own).parts:
        raise InputError(f"data must name a data set after {PREFIX}, got {name!r}.")
    folder = _folders.newest_version(data_dir, own)
    if folder is None:
        how = f"tensorflow_datasets.builder({own!r}, file_format='array_record')"
        where = f"there is no prepared {data_dir}/{own}/<version>/"
        raise InputError(f"no data set {name!r}: {where}; {how}.download_and_prepare() makes it.")
    with _extra.required():
        from bdjax.data.sources import _tfds

    none = {}
    if on_disk:
        arrays, none = _tfds.read_by_row(folder, image_size), {"mean": (0.0,), "std": (1.0,)}
    else:
        read = functools.partial(_tfds.read_folder, folder, image_size)
        arrays = _cache.cached(folder, read, part=str(image_size or ""))
    names = _folders.class_names(folder, _tfds.number_of_classes(folder))
    channels = arrays.train_image.shape[-1]
    known = {key: value * channels for key, value in none.items()}
    return _dataset.build(name, arrays, names, **known)
