"""Clean images of one's own for a network that came from elsewhere: one split, and no test images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from bdjax import checks
from bdjax.data import splits
from bdjax.data.sources import _array_files
from bdjax.types import Dataset, Split


def load_clean(
    path: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    channels: int | None = None,
    image_size: int | None = None,
) -> Dataset:
    """Return images and labels for a network: all of them are training rows, and there are no test rows.

    Args:
      path: a folder ``<path>/<class>/`` of images; one with ``train/<class>/`` in it, which is then read; a ``.npz``
        file, or a folder of ``.npy`` files, with arrays such as ``images`` and ``labels``, or ``x_train`` and
        ``y_train``. Images are read as `bdjax.data.load` does.
      num_classes: of the network. Folders may then be named by the numbers of their classes, 0 to ``num_classes`` − 1,
        and need not be all of them.
      class_names: of the network, in its order, if they are known: folders that are named so get its numbers, and so do
        the labels of arrays with ``class_names`` of their own.
      channels: 1 or 3: what the images become; as they are stored unless it is given.
      image_size: make every image square with this many pixels a side.

    Folders that are named neither way must be as many as the network has classes; their order by name is then that of
    the classes, and a line says so.

    Raises:
      InputError: there is no such path, or an image or a label is not what it should be; what to do.
    """
    names = tuple(class_names)
    _check(num_classes, names, channels, image_size)
    root = Path(os.path.expanduser(path)).absolute()
    if _array_files.is_one(root):
        return _array_files.load_clean(root, num_classes, names, channels, image_size)
    if not root.is_dir():
        what = "is a file of another kind" if root.exists() else "is not there"
        remedy = "name a folder with a folder of images for each class, or a .npz file"
        raise checks.InputError(f"path {os.fspath(path)} {what}; {remedy}.")
    # Pillow is imported only where there are images to read
    from bdjax.data.sources import _class_folder

    wanted = _class_folder.Wanted(num_classes, names, channels, image_size)
    return _class_folder.clean_folder(root, wanted)


class Indexed(NamedTuple):
    """Some images of a data set, and their row numbers there [n], which rise."""

    split: Split
    index: Int[np.ndarray, " n"]


def load_indexed(
    path: str | os.PathLike[str], *, num_classes: int | None = None, image_size: int | None = None
) -> Indexed:
    """Return the poisoned images that BackdoorBench saves as ``<path>/<original label>/<row>.png``, by their rows.

    ``path`` is its ``bd_train_dataset`` or ``bd_test_dataset``; a file's name is the image's row in the clean data set,
    and its folder's name its true label. Images that were not poisoned are not there.

    Args:
      path: the folder.
      num_classes, image_size: as for `load_clean`.

    Raises:
      InputError: as for `load_clean`; or a folder or a file is called otherwise, or a row is there twice.
    """
    from bdjax.data.sources import _class_folder

    names = None if num_classes is None else tuple(map(str, range(num_classes)))
    dataset = load_clean(path, class_names=names or (), image_size=image_size)
    root = Path(os.path.expanduser(path)).absolute()
    index = _class_folder.indices(root, dataset.spec.class_names)
    if len(index) != len(dataset.train.label):
        # Folders that were taken in their order, or as numbers with zeros before them, have not the classes' names
        count = dataset.spec.num_classes
        wanted = f"the numbers of their classes, 0 to {count - 1}, without zeros before them"
        raise checks.InputError(f"class folders in {root} must be called by {wanted}.")
    order = np.argsort(index, kind="stable")
    number = np.array([int(name) for name in dataset.spec.class_names], np.int32)
    label = number[np.asarray(dataset.train.label)]
    split = dataset.train._replace(label=label)  # type: ignore[arg-type]
    return Indexed(splits.take(split, order), index[order])


def _check(
    num_classes: int | None, names: tuple[str, ...], channels: int | None, image_size: int | None
) -> None:
    numbers = {"num_classes": num_classes, "image_size": image_size}
    for name, value in numbers.items():
        if value is not None:
            checks.integer(1, **{name: value})
    if channels not in (None, 1, 3):
        raise checks.InputError(f"channels must be 1 or 3, got {channels!r}.")
    if names and num_classes not in (None, len(names)):
        given = f"{len(names)} names for {num_classes} classes"
        raise checks.InputError(f"class_names must have one for each class, got {given}.")
