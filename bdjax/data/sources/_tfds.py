"""Prepared TensorFlow Datasets folders as arrays, without TensorFlow. The only importer of ``tensorflow_datasets``.

Import it inside a function, in ``_extra.required()``: it takes about a second and is an optional dependency.
"""

from __future__ import annotations

import functools
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.proto import tf_example_pb2

from bdjax.checks import InputError
from bdjax.data.sources import _images
from bdjax.data.sources._dataset import Arrays

_Shard: TypeAlias = tuple[Any, int]  # path, and number of examples
_Feature: TypeAlias = (
    Any  # a data set's, and an example's fields as protocol buffers: they have no types
)
# Records into rows of images and labels
Decode = Callable[[Sequence[bytes], np.ndarray, np.ndarray], None]

_CHUNK = 1000  # records that are read while as many before them are decoded


class _ByRow(Protocol):
    """A data source of TensorFlow Datasets whose examples are left as bytes."""

    def __getitems__(self, rows: Sequence[int], /) -> Sequence[bytes]: ...


class _Split(NamedTuple):
    """A split of a prepared folder: its records by row, where they lie, and how they are decoded."""

    records: _ByRow
    shards: list[_Shard]
    shape: tuple[int, int, int, int]
    num_classes: int
    decode: Decode
    data_dir: Path


def read_folder(folder: Path, image_size: int | None = None, *, cropped: bool = False) -> Arrays:
    """Return the train and test splits of a prepared folder ``<name>/<version>`` in array_record format.

    The example has a field ``image``, either a ``tfds.features.Image`` (PNG or JPEG) or a uint8 ``Tensor``, and a
    ``ClassLabel`` called ``label``. Where there is no test split, ``validation`` takes its place.

    Args:
      folder: it.
      image_size: make every image of an ``Image`` square with this many pixels a side; images that differ in size need
        it.
      cropped: cut out the middle, as `_images.read_middle` does, instead of resizing the whole.

    Raises:
      InputError: the folder is of another kind; or a shard is missing, damaged, cut short or holds another number of
        examples than ``dataset_info.json`` says (the shard is named).
    """
    train, test = (_read_split(split) for split in _open(folder, image_size, cropped))
    return Arrays(*train, *test)


def read_by_row(folder: Path, image_size: int | None = None, *, cropped: bool = False) -> Arrays:
    """Return the same with the training images left on the disk: a `Records` in the place of their array.

    Raises:
      InputError: as for `read_folder`; but a damaged training image is found when it is read.
    """
    train, test = _open(folder, image_size, cropped)
    images = cast(np.ndarray, Records(train))  # which stands where an array does
    label = _read_labels(train)
    return Arrays(images, label, *_read_split(test))


class Records:
    """Images [n, h, w, c] in array_record files, read and decoded by row; a `bdjax.data.streams.ReadByRow`."""

    dtype = np.dtype(np.uint8)

    def __init__(self, split: _Split):
        self._split, self.shape = split, split.shape

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all images once they are decoded."""
        return math.prod(self.shape)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Return the images of these rows; safe to call from several threads.

        Raises:
          InputError: one of them is damaged.
        """
        image = np.empty((len(rows), *self.shape[1:]), np.uint8)
        label = np.empty(len(rows), np.int32)
        try:
            self._split.decode(self._split.records.__getitems__(rows.tolist()), image, label)
        # Of array_record and Pillow: RuntimeError, IndexError, SyntaxError, …
        except Exception as error:
            wrong = f"an image of {self._split.data_dir} is damaged ({_brief(error)})"
            raise InputError(f"{wrong}; restore its shards.") from error
        return image


def number_of_classes(folder: Path) -> int:
    """Return how many classes the labels of a prepared folder have."""
    return _open(folder, 1, False)[0].num_classes


def _open(folder: Path, image_size: int | None, cropped: bool) -> list[_Split]:
    """Return the train and test splits of a folder, nothing of them read."""
    try:
        builder: Any = tfds.builder_from_directory(folder)
        info: Any = builder.info
        image = info.features["image"]
        label = info.features["label"]
        held_out = "test" if "test" in info.splits else "validation"
        splits = {name: info.splits[name] for name in ("train", held_out)}
        size = tuple(image.shape)
        decode = _decode_encoded
        if not isinstance(image, tfds.features.Image):
            decode = _tensor_decoder(info.features)
        elif image_size is not None:
            size = (image_size, image_size, image.shape[-1])
            decode = functools.partial(_decode_resized, cropped)
        if None in size:
            remedy = "pass image_size to resize all of them"
            raise ValueError(f"the images are of shape {size}, not of one size; {remedy}")
    except Exception as error:  # JSON, protobuf, missing keys, missing files
        why = _brief(error)
        raise InputError(f"{folder} is not a data set that bdjax can read ({why}).") from error
    if info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        wrong = f"{folder} is in {info.file_format.value} format, which needs TensorFlow"
        then = "bdjax prepares the data set in array_record format"
        raise InputError(f"{wrong}; take the folder away, and {then}.")
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    opened: list[_Split] = []
    for name, split in splits.items():
        records = builder.as_data_source(name, deserialize_method=raw)
        shards = list(zip(split.filepaths, split.shard_lengths, strict=True))
        shape = (split.num_examples, *size)
        classes = label.num_classes
        opened.append(_Split(records, shards, shape, classes, decode, builder.data_dir))
    return opened


def _read_split(split: _Split) -> tuple[np.ndarray, np.ndarray]:
    image = np.empty(split.shape, np.uint8)
    return image, _read_labels(split, image)


def _read_labels(split: _Split, image: np.ndarray | None = None) -> np.ndarray:
    """Return the labels and fill the images, where an array is given for them, shard by shard."""
    label = np.empty(split.shape[0], np.int32)
    start = 0
    for path, count in split.shards:
        rows = slice(start, start + count)
        try:
            _check_count(path, count)
            if image is None:
                for chunk in _chunks(rows):
                    there = range(chunk.start, chunk.stop)
                    label[chunk] = _labels(split.records.__getitems__(there))
            else:
                _read_rows(split.records, rows, split.decode, image, label)
            if not ((label[rows] >= 0) & (label[rows] < split.num_classes)).all():
                raise ValueError(f"a label is outside 0 to {split.num_classes - 1}")
        # Of array_record and Pillow: RuntimeError, IndexError, SyntaxError, …
        except Exception as error:
            wrong = f"shard {path} is damaged or incomplete ({_brief(error)})"
            raise InputError(f"{wrong}; restore it, or take away {split.data_dir}.") from error
        start = rows.stop
    return label


def _check_count(path: os.PathLike[str], count: int) -> None:
    with ArrayRecordDataSource(str(path)) as records:
        if len(records) != count:
            raise ValueError(f"it holds {len(records)} examples and dataset_info.json says {count}")


def _read_rows(
    source: _ByRow, rows: slice, decode: Decode, image: np.ndarray, label: np.ndarray
) -> None:
    """Fill a range of rows: this thread reads records while others decode those before."""
    with ThreadPoolExecutor(_images.workers(*image.shape[1:3])) as pool:
        decoding: list[Future[None]] = []
        for chunk in _chunks(rows):
            records = source.__getitems__(range(chunk.start, chunk.stop))
            decoding.append(pool.submit(decode, records, image[chunk], label[chunk]))
        for done in decoding:
            done.result()


def _decode_encoded(records: Sequence[bytes], image: np.ndarray, label: np.ndarray) -> None:
    examples = _parse(records)
    label[:] = [example["label"].int64_list.value[0] for example in examples]
    _images.decode([example["image"].bytes_list.value[0] for example in examples], image)


def _decode_resized(
    cropped: bool, records: Sequence[bytes], image: np.ndarray, label: np.ndarray
) -> None:
    """Decode images of any size."""
    size, channels = image.shape[1], image.shape[-1]
    for row, example in enumerate(_parse(records)):
        content = io.BytesIO(example["image"].bytes_list.value[0])
        image[row] = (
            _images.read_middle(content, size)
            if cropped
            else _images.read_file(content, channels, size)
        )
        label[row] = example["label"].int64_list.value[0]


def _labels(records: Sequence[bytes]) -> list[int]:
    return [example["label"].int64_list.value[0] for example in _parse(records)]


def _parse(records: Sequence[bytes]) -> list[_Feature]:
    # From the protocol buffer: tfds takes seven times as long to take the same two fields out of it.
    # pyright does not know what is made when it is imported.
    parse = tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]
    return [parse(record).features.feature for record in records]


def _tensor_decoder(features: _Feature) -> Decode:
    def decode(records: Sequence[bytes], image: np.ndarray, label: np.ndarray) -> None:
        for row, record in enumerate(records):
            example = features.deserialize_example_np(record)
            image[row], label[row] = example["image"], example["label"]

    return decode


def _chunks(rows: slice) -> Iterator[slice]:
    for start in range(rows.start, rows.stop, _CHUNK):
        yield slice(start, min(start + _CHUNK, rows.stop))


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0].rstrip(".")[:200]
