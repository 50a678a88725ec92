"""Images and labels: data sets by name, image folders by path, splits by key.

A data set is a file in ``sources/``; a folder of images needs no file at all. Images are uint8 on the host until a
training loop puts them on the device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import inspect
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array

from bdjax import checks, registry
from bdjax.data import splits as splits
from bdjax.data.clean import Indexed as Indexed
from bdjax.data.clean import load_clean as load_clean
from bdjax.data.clean import load_indexed as load_indexed
from bdjax.data.modalities.images import Images
from bdjax.data.sources import _array_files, _cache, _dataset, _folders, _prepared
from bdjax.data.streams import ReadByRow
from bdjax.devices import footprint
from bdjax.types import Dataset, Split

_SOURCES = "bdjax.data.sources"
_PART = 1000  # images that are read at once

_log = logging.getLogger(__name__)


def names() -> list[str]:
    """Return the names of the data sets that bdjax knows; an image folder may be loaded by its own name."""
    return registry.names(_SOURCES)


def load(
    name: str = "digits",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    on_disk: bool = False,
) -> Dataset:
    """Return a data set: uint8 images [n, h, w, c], int32 labels [n], every row valid, and its ``Spec``.

    Args:
      name: one of ``names()``; or the name of a folder of images ``<data_dir>/<name>/{train,test}/<class>/``, or its
        path, such as ``./shapes``. A name of ``names()`` means that data set; ``./digits`` is a folder. Likewise a
        ``.npz`` file, or a folder of ``.npy`` files: ``./mine.npz``. ``tfds:NAME`` is any set of images and labels that
        TensorFlow Datasets prepared.
      data_dir: where data sets lie; a relative path starts here too, or else where the process is. For names, without
        it the environment variable ``BDJAX_DATA_DIR`` counts, and without that the default of TensorFlow Datasets,
        ``~/tensorflow_datasets``.
      image_size: make every image square with this many pixels a side (bilinear, with antialiasing where it shrinks;
        the aspect ratio is not kept). The mean and standard deviation in the specification stay those of the images
        as they were stored.
      on_disk: leave the training images where they are: in the place of their array is a
        `bdjax.data.streams.ReadByRow`. For data sets that TensorFlow Datasets prepared.

    Raises:
      InputError: unknown name, missing or damaged files; one sentence that says what to do.

    Guarantees: the same files give the same arrays in the same order on every machine. Damaged files and damaged
    caches are never returned as data.

    >>> from bdjax import data
    >>> digits = data.load("digits")
    >>> digits.train.input.shape, digits.train.input.dtype, digits.spec.num_classes
    ((1347, 8, 8, 1), dtype('uint8'), 10)
    >>> data.load("digits", image_size=16).spec.shape
    (16, 16, 1)
    """
    if image_size is not None:
        checks.integer(1, image_size=image_size)
    name, data_dir = locate(name, data_dir)
    folder = _folders.resolve(data_dir)
    if isinstance(name, str) and name.startswith(_folders.PREPARED):
        found = _prepared.load(name, folder, image_size, on_disk=on_disk)
        if on_disk:
            return found
        _dataset.check(name, found)
        return _resized(found, image_size)
    if name in names():
        _tell_namesake(name, folder)
        return _own(name, folder, image_size, on_disk)
    root = _people_root(name, folder)
    if on_disk:
        reason = "it is not in records of one size"
        raise checks.InputError(f"{root} cannot stay on the disk: {reason}.")
    if _array_files.is_one(root):
        return _resized(_array_files.load(root), image_size)
    # Pillow is imported only where there are images to read
    from bdjax.data.sources import _image_folder

    return _image_folder.image_folder(root, image_size)


def _own(name: str, folder: Path, image_size: int | None, on_disk: bool) -> Dataset:
    """Return a data set of ``names()``."""
    factory = registry.factory(_SOURCES, name)
    checks.takes(inspect.signature(_source), **{f"data set {name}": factory})
    takes, options = inspect.signature(factory).parameters, {}
    if (
        "image_size" in takes and image_size is not None
    ):  # it resizes what may be larger as it is stored
        options, image_size = {"image_size": image_size}, None
    if not on_disk:
        dataset = factory(folder, **options)
        _dataset.check(name, dataset)
        return _resized(dataset, image_size)
    if "on_disk" in takes and image_size is None:
        return factory(folder, on_disk=True, **options)
    reason = "it is to be resized"
    if image_size is None:
        reason = "it is not in records that can be read by row"
    raise checks.InputError(f"data set {name} cannot stay on the disk: {reason}.")


def defaults(name: str) -> Mapping[str, Mapping[str, object]]:
    """Return what suits a data set, as sections of a config: ``DEFAULTS`` in its file; nothing for folders."""
    if name not in names():
        return {}
    return getattr(importlib.import_module(f"{_SOURCES}.{name}"), "DEFAULTS", {})


def defense_defaults(name: str, defense: str) -> Mapping[str, object]:
    """Return what suits a data set of one defense's options alone: ``DEFENSES`` in its file, by the defense's name."""
    if name not in names():
        return {}
    return getattr(importlib.import_module(f"{_SOURCES}.{name}"), "DEFENSES", {}).get(defense, {})


def locate(name: str, data_dir: str | os.PathLike[str] | None = None) -> tuple[str, str | None]:
    """Return a data set's own name and its ``data_dir`` where it is named by the path of a folder; others as they are.

    Raises:
      InputError: a path without a name.

    >>> from bdjax import data
    >>> data.locate("/data/shapes/"), data.locate("digits"), data.locate("./digits", "/data")
    (('shapes', '/data'), ('digits', None), ('./digits', '/data'))
    """
    return _folders.locate(name, data_dir, names())


def is_ready(name: str, data_dir: str | os.PathLike[str] | None = None) -> bool:
    """Whether `load` would have to download or prepare nothing; an unknown name is ready to be refused.

    Raises:
      InputError: the folder that is named is not there.
    """
    if name not in names():
        return True
    module = importlib.import_module(f"{_SOURCES}.{name}")
    return not hasattr(module, "is_ready") or module.is_ready(_folders.resolve(data_dir))


def fingerprint(dataset: Dataset) -> dict[str, str]:
    """Return the SHA-256 of each split's images and labels (shapes and types included), as hexadecimal words.

    Two data sets with equal fingerprints hold the same rows in the same order. 60,000 CIFAR-10 images take about a
    tenth of a second where the processor has SHA instructions.
    """
    return {"train": _digest(dataset.train), "test": _digest(dataset.test)}


def fingerprint_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, as a hexadecimal word.

    Raises:
      InputError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise checks.InputError(f"file {os.fspath(path)} cannot be read ({reason}).") from error


def is_known(name: str) -> bool:
    """Return whether this is the name of a data set that bdjax reads itself, and no path."""
    return name in names() or name.startswith(_folders.PREPARED)


def folder_of(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return where an image folder, or a file of arrays, of that name lies, whether or not it is there."""
    return _folders.resolve(data_dir) / name.removeprefix("./")


def stamp(name: str = "digits", *, data_dir: str | os.PathLike[str] | None = None) -> str:
    """Return a hexadecimal word for the names, sizes and times of change of a data set's files; none of them is read.

    While it stays the same, so does `fingerprint`; where it has changed, the fingerprint may have, too. Arguments as
    for `load`; a data set that is not there has a stamp as well.
    """
    folder = _folders.resolve(data_dir)
    own = name.removeprefix(_folders.PREPARED)
    return stamp_of([folder / own, *_files_elsewhere(name, folder)])


def _files_elsewhere(name: str, folder: Path) -> list[Path]:
    """Return what a data set of ``names()`` is read from beside the folder of its name: ``files`` in its file."""
    if name not in names():
        return []
    module = importlib.import_module(f"{_SOURCES}.{name}")
    return module.files(folder) if hasattr(module, "files") else []


def stamp_of(paths: Iterable[Path]) -> str:
    """Return the same for files, and for all that is in folders, caches and hidden files aside."""
    digest = hashlib.sha256()
    for root in paths:
        for file in sorted(_files_of(root)):
            with contextlib.suppress(OSError):  # it has gone, which changes the stamp as well
                seen = file.stat()
                # The time of change of the entry too: a copy can bring its own time of change of the content.
                known = f"{file}\0{seen.st_size}\0{seen.st_mtime_ns}\0{seen.st_ctime_ns}\0"
                digest.update(known.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _files_of(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root.resolve()
    seen = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back
            inner.clear()
            continue
        seen.add(real)
        inner[:] = [one for one in inner if not (one.startswith(".") or one == _cache.BESIDE)]
        yield from (Path(real, one) for one in names if not one.startswith("."))


def _source(data_dir: Path) -> Dataset:
    """Return a data set: what each file in ``sources/`` has a function for."""
    raise NotImplementedError


def _digest(split: Split) -> str:
    digest = hashlib.sha256()
    for array in split[:2]:
        # Little-endian, so that a fingerprint means the same on every machine.
        dtype = np.dtype(array.dtype).newbyteorder("<")
        digest.update(f"{dtype.str}{tuple(array.shape)}".encode())
        for part in _parts(array):
            digest.update(np.ascontiguousarray(part, dtype).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _parts(array: Array | np.ndarray | ReadByRow) -> Iterator[np.ndarray]:
    """Yield an array whole, and images that are read by row some at a time."""
    if isinstance(array, (np.ndarray, jax.Array)):
        yield np.asarray(array)
        return
    rows = np.arange(array.shape[0])
    for start in range(0, len(rows), _PART):
        yield array[rows[start : start + _PART]]


def _people_root(name: str, folder: Path) -> Path:
    """Return ``<folder>/<name>`` if it is a folder or a file of arrays, else explain what was looked for."""
    plain = name.removeprefix("./") if isinstance(name, str) else ""
    is_name = plain and Path(plain).name == plain
    if is_name and ((folder / plain).is_dir() or _array_files.is_one(folder / plain)):
        return folder / plain
    near = checks.did_you_mean(name, names())
    here = ""
    if plain and Path(plain).is_dir():
        here = f"; the folder ./{plain} is named by --data ./{plain}"
    raise checks.InputError(
        f"no data set {name!r}{near}; known: {', '.join(names())}, and there is no image folder "
        f"{folder}/{plain or name}/train/<class>/ (name another data_dir, or set BDJAX_DATA_DIR{here})."
    )


def _tell_namesake(name: str, folder: Path) -> None:
    """Say so where a folder of images has the name of a data set that bdjax knows, which is the one that is meant."""
    if (folder / name / "train").is_dir() and folder / name not in _files_elsewhere(name, folder):
        _log.warning(
            "data %s is bdjax's own; the image folder %s is named by ./%s.",
            name,
            folder / name,
            name,
        )


def _resized(dataset: Dataset, image_size: int | None) -> Dataset:
    if image_size is None:
        return dataset
    if not isinstance(dataset.spec.modality, Images):
        unit = dataset.spec.modality.unit
        left_out = f"left out for {dataset.spec.name}, of {unit}s"
        raise checks.InputError(f"image_size must be {left_out}; got {image_size}.")
    height, width, channels = dataset.spec.shape
    if height == width == image_size:
        return dataset
    from bdjax.data.sources import _images

    count = sum(split.label.shape[0] for split in (dataset.train, dataset.test))
    footprint.check_images(count, (image_size, image_size, channels))
    spec = dataclasses.replace(dataset.spec, shape=(image_size, image_size, channels))

    def resized(split: Split) -> Split:
        return split._replace(input=_images.resize(np.asarray(split.input), image_size))

    return dataset._replace(train=resized(dataset.train), test=resized(dataset.test), spec=spec)
