"""MNIST from its four files, or from a prepared TensorFlow Datasets folder."""

from __future__ import annotations

from pathlib import Path

from bdjax.data.sources import _dataset, _folders, _idx
from bdjax.data.sources._archives import Archive
from bdjax.types import Dataset

CLASS_NAMES = tuple("0123456789")
_URL = "https://ossci-datasets.s3.amazonaws.com/mnist"
_ARCHIVES = {
    file: Archive(f"{file}-ubyte.gz", f"{_URL}/{file}-ubyte.gz", checksum, megabytes)
    for file, checksum, megabytes in (
        ("train-images-idx3", "f68b3c2dcbeaaa9fbdd348bbdeb94873", 10),
        ("train-labels-idx1", "d53e105ee54ea40749a09fcbcd1e9432", 1),
        ("t10k-images-idx3", "9fb629c4189551a2d022fa330f9573f3", 2),
        ("t10k-labels-idx1", "ec29112dd5afa0611ce80d1b7f02629c", 1),
    )
}
_FOLDERS = ("MNIST",)


def mnist(data_dir: Path | None = None) -> Dataset:
    """MNIST, 28×28 gray, 10 classes, handwritten digits: 60,000 to train and 10,000 to test.

    Read from ``<data_dir>/mnist/`` or ``MNIST/`` (and ``raw/`` in them), the files ``train-images-idx3-ubyte``,
    ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, compressed by gzip or not;
    or from a folder that TensorFlow Datasets prepared. What is missing is downloaded. The mean and standard deviation
    are measured on the training images; nothing is cropped or flipped.

    Source: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document recognition",
    1998.

    Raises:
      InputError: no such folder, no network, or a damaged file, which is named.
    """
    data_dir = _folders.resolve(data_dir)
    _folders.require_folder(data_dir)
    arrays = _idx.read(data_dir, "mnist", _FOLDERS, _ARCHIVES)
    return _dataset.build("mnist", arrays, CLASS_NAMES)


def is_ready(data_dir: Path) -> bool:
    """Whether it is there."""
    return _idx.is_ready(data_dir, "mnist", _FOLDERS)


def files(data_dir: Path) -> list[Path]:
    """Return the files that it is read from, as far as they are there."""
    found = (_idx.find(data_dir, ("mnist", *_FOLDERS), file) for file in _idx.FILES)
    return [path for path in found if path is not None]
