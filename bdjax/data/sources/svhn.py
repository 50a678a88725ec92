"""Street view house numbers from the official files, or from a prepared TensorFlow Datasets folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bdjax.checks import InputError
from bdjax.data.sources import _archives, _cache, _dataset, _extra, _folders, _trees
from bdjax.data.sources._archives import Archive
from bdjax.data.sources._dataset import Arrays
from bdjax.types import Dataset

_URL = "http://ufldl.stanford.edu/housenumbers"
_TRAIN = Archive(
    "train_32x32.mat", f"{_URL}/train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", 182
)
_TEST = Archive("test_32x32.mat", f"{_URL}/test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", 64)


def svhn(data_dir: Path | None = None) -> Dataset:
    """SVHN, 32×32 color, digits of house numbers: 73,257 to train and 26,032 to test. Needs the extra ``data`` once.

    Read from ``train_32x32.mat`` and ``test_32x32.mat``, found in ``data_dir`` or ``<data_dir>/svhn`` or downloaded, or
    from ``<data_dir>/svhn_cropped/`` that TensorFlow Datasets prepared. The decoded arrays are cached. The files' label
    10 is the digit 0, and class 0 here. The 531,131 extra images are not read. The mean and standard deviation are
    measured on the training images; they are cropped with a padding of 4 and never flipped.

    Source: Y. Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", 2011,
    http://ufldl.stanford.edu/housenumbers.

    Raises:
      InputError: no such folder, no network, or a damaged file, which is named.
    """
    data_dir = _folders.resolve(data_dir)
    _folders.require_folder(data_dir)
    return _dataset.build("svhn", _arrays(data_dir), tuple("0123456789"), crop_padding=4)


def is_ready(data_dir: Path) -> bool:
    """Whether it is there."""
    if data_dir != _folders.default():
        _folders.require_folder(data_dir)
    prepared = _folders.newest_version(data_dir, "svhn_cropped") is not None
    return prepared or len(files(data_dir)) == 2


def files(data_dir: Path) -> list[Path]:
    """Return the files that it is read from, as far as they are there."""
    found = (_archives.find(data_dir, one.name, "svhn") for one in (_TRAIN, _TEST))
    return [path for path in found if path is not None]


def _arrays(data_dir: Path) -> Arrays:
    if (folder := _folders.newest_version(data_dir, "svhn_cropped")) is not None:
        with _extra.required():
            from bdjax.data.sources import _tfds

        return _cache.cached(folder, lambda: _tfds.read_folder(folder))
    paths = [_archives.find_or_download(data_dir, one, "svhn") for one in (_TRAIN, _TEST)]
    known = _trees.identity(map(_trees.File, paths))
    return _cache.cached(data_dir / "svhn", lambda: _read(*paths), identity=known)


def _read(train: Path, test: Path) -> Arrays:
    return Arrays(*_split(train), *_split(test))


def _split(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from scipy import io  # which takes a while

    try:
        content = io.loadmat(path, variable_names=("X", "y"))
        image, label = content["X"], content["y"].reshape(-1)
    # SciPy answers a damaged file with ValueError, TypeError, zlib.error, KeyError, …
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"{path} is damaged or cut short ({reason}); replace it.") from error
    if image.dtype != np.uint8 or image.shape != (32, 32, 3, len(label)) or not len(label):
        got = f"{image.dtype} of shape {image.shape} and {len(label)} labels"
        raise InputError(f"{path} must have uint8 images X [32, 32, 3, n] and y [n], got {got}.")
    if label.min() < 1 or label.max() > 10:
        got = f"{label.min()} to {label.max()}"
        raise InputError(f"{path} must have labels from 1 to 10, got {got}.")
    return np.ascontiguousarray(image.transpose(3, 0, 1, 2)), (label % 10).astype(np.int32)
