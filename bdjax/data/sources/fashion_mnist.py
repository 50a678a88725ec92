"""Fashion-MNIST from its four files, or from a prepared TensorFlow Datasets folder."""

from __future__ import annotations

from pathlib import Path

from bdjax.data.sources import _dataset, _folders, _idx
from bdjax.data.sources._archives import Archive
from bdjax.types import Dataset

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_ARCHIVES = {
    file: Archive(f"{file}-ubyte.gz", f"{_URL}/{file}-ubyte.gz", checksum, megabytes)
    for file, checksum, megabytes in (
        ("train-images-idx3", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26),
        ("train-labels-idx1", "25c81989df183df01b3e8a0aad5dffbe", 1),
        ("t10k-images-idx3", "bef4ecab320f06d8554ea6380940ec79", 4),
        ("t10k-labels-idx1", "bb300cfdad3c16e7a12a480ee83cd310", 1),
    )
}
_FOLDERS = ("FashionMNIST",)


def fashion_mnist(data_dir: Path | None = None) -> Dataset:
    """Fashion-MNIST, 28×28 gray, 10 classes, clothes: 60,000 to train and 10,000 to test.

    Read from ``<data_dir>/fashion_mnist/`` or ``FashionMNIST/`` (and ``raw/`` in them), the files
    ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
    ``t10k-labels-idx1-ubyte``, compressed by gzip or not; or from a folder that TensorFlow Datasets prepared. What is
    missing is downloaded. The mean and standard deviation are measured on the training images; nothing is cropped or
    flipped.

    Source: H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST", 2017, https://github.com/zalandoresearch/fashion-mnist.

    Raises:
      InputError: no such folder, no network, or a damaged file, which is named.
    """
    data_dir = _folders.resolve(data_dir)
    _folders.require_folder(data_dir)
    arrays = _idx.read(data_dir, "fashion_mnist", _FOLDERS, _ARCHIVES)
    return _dataset.build("fashion_mnist", arrays, CLASS_NAMES)


def is_ready(data_dir: Path) -> bool:
    """Whether it is there."""
    return _idx.is_ready(data_dir, "fashion_mnist", _FOLDERS)


def files(data_dir: Path) -> list[Path]:
    """Return the files that it is read from, as far as they are there."""
    found = (_idx.find(data_dir, ("fashion_mnist", *_FOLDERS), file) for file in _idx.FILES)
    return [path for path in found if path is not None]
