"""CIFAR-10 prepared by ourselves: a TensorFlow Datasets builder that needs no TensorFlow."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bdjax.checks import InputError
from bdjax.data.sources import _cifar_archive, _folders
from bdjax.data.sources._dataset import Arrays
from bdjax.data.sources._tfds import tfds

_Example: TypeAlias = dict[str, str | int | np.ndarray]


# The stock builder of this name encodes its images with TensorFlow; ours is not registered, so both can be there.
class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore
    """CIFAR-10 with ``Tensor`` features. Its version is below the stock builder's, so neither reads the other's."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, arrays: Arrays, class_names: tuple[str, ...], **options: Any):
        self._arrays, self._class_names = arrays, class_names
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="CIFAR-10: 32x32 colour images in 10 classes.",
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            citation='A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.',
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Tensor(
                        shape=(32, 32, 3), dtype=np.uint8, encoding="bytes"
                    ),
                    "label": tfds.features.ClassLabel(names=list(self._class_names)),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, _Example]]]:
        del dl_manager  # the archive is read and checked before the builder is made
        arrays = self._arrays
        return {
            "train": self._generate_examples("train", arrays.train_image, arrays.train_label),
            "test": self._generate_examples("test", arrays.test_image, arrays.test_label),
        }

    def _generate_examples(
        self, split: str, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[str, _Example]]:
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            key = f"{split}_{row:05}"
            yield key, {"id": key, "image": image, "label": int(label)}


def prepare(data_dir: Path, class_names: tuple[str, ...]) -> Path:
    """Prepare ``<data_dir>/cifar10/1.0.0`` from the official binary archive and return it.

    The archive is taken from ``data_dir`` or ``data_dir/downloads``, else downloaded. The folder appears by a rename
    when it is complete.

    Raises:
      InputError: no archive, a damaged one, or a folder that cannot be written.
    """
    if not _folders.is_writable(data_dir):
        wrong = f"cifar10 is not in {data_dir}, and that folder is read-only"
        remedy = (
            "name another data_dir to prepare it there, or the one that holds cifar10/<version>/"
        )
        raise InputError(f"{wrong}; {remedy}.")
    arrays = _cifar_archive.read_archive(_cifar_archive.find_or_download(data_dir))
    builder = Cifar10(
        arrays=arrays, class_names=class_names, data_dir=data_dir, file_format="array_record"
    )
    try:
        with contextlib.redirect_stdout(sys.stderr):  # tfds announces itself with print
            # Not from Google's bucket: the copy there has other features.
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
    except OSError as error:
        # Another process may have been faster: the folder that it renamed into place is as good.
        if not (folder := _folders.newest_version(data_dir, "cifar10")):
            raise InputError(f"cifar10 could not be prepared in {data_dir} ({error}).") from error
        return folder
    return Path(builder.data_dir)
