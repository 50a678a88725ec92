"""Prepared TensorFlow Datasets folders as arrays, without TensorFlow. The only importer of ``tensorflow_datasets``.

Import it inside a function, in ``_extra.required()``: it takes about a second and is an optional dependency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.proto import tf_example_pb2

from bdjax.checks import InputError
from bdjax.data.sources import _images
from bdjax.data.sources._dataset import Arrays

Decode = Callable[[Sequence[bytes], np.ndarray, np.ndarray], None]  # records into rows of images and labels

_CHUNK = 1000  # records that are read while as many before them are decoded


def read(folder: Path) -> Arrays:
    """Return the train and test splits of a prepared folder ``<name>/<version>`` in array_record format.

    The example has a field ``image``, either a ``tfds.features.Image`` (PNG or JPEG) or a uint8 ``Tensor``, and a
    ``ClassLabel`` called ``label``.

    Raises:
      InputError: the folder is of another kind; or a shard is missing, damaged, cut short or holds another number of
        examples than ``dataset_info.json`` says (the shard is named).
    """
    try:
        builder: Any = tfds.builder_from_directory(folder)
        info: Any = builder.info
        image, label = info.features["image"], info.features["label"]
        splits = [(name, info.splits[name]) for name in ("train", "test")]
        if None in image.shape:
            raise ValueError(f"the images are of shape {image.shape}, not of one size")
    except Exception as error:  # JSON, protobuf, missing keys, missing files
        raise InputError(f"{folder} is not a data set that bdjax can read ({_brief(error)}).") from error
    if info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise InputError(
            f"{folder} is in {info.file_format.value} format, which needs TensorFlow; take the folder away, "
            f"and bdjax prepares the data set in array_record format."
        )
    train, test = (_read_split(builder, name, split, image, label.num_classes) for name, split in splits)
    return Arrays(*train, *test)


def _read_split(builder: Any, name: str, info: Any, feature: Any, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    image = np.empty((info.num_examples, *feature.shape), np.uint8)
    label = np.empty(info.num_examples, np.int32)
    source = builder.as_data_source(name, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    decode = _decode_encoded if isinstance(feature, tfds.features.Image) else _tensor_decoder(builder.info.features)
    start = 0
    for path, count in zip(info.filepaths, info.shard_lengths, strict=True):
        rows = slice(start, start + count)
        try:
            _check_count(path, count)
            _read_rows(source, rows, decode, image, label)
            if not ((label[rows] >= 0) & (label[rows] < num_classes)).all():
                raise ValueError(f"a label is outside 0 to {num_classes - 1}")
        except Exception as error:  # array_record and Pillow raise RuntimeError, IndexError, SyntaxError, …
            raise InputError(
                f"shard {path} is damaged or incomplete ({_brief(error)}); restore it, or take away {builder.data_dir}."
            ) from error
        start = rows.stop
    return image, label


def _check_count(path: Any, count: int) -> None:
    with ArrayRecordDataSource(str(path)) as records:
        if len(records) != count:
            raise ValueError(f"it holds {len(records)} examples and dataset_info.json says {count}")


def _read_rows(source: Any, rows: slice, decode: Decode, image: np.ndarray, label: np.ndarray) -> None:
    """Fill a range of rows: this thread reads records while others decode those before."""
    with ThreadPoolExecutor(_images.workers(*image.shape[1:3])) as pool:
        decoding = [
            pool.submit(decode, source.__getitems__(range(chunk.start, chunk.stop)), image[chunk], label[chunk])
            for chunk in _chunks(rows)
        ]
        for done in decoding:
            done.result()


def _decode_encoded(records: Sequence[bytes], image: np.ndarray, label: np.ndarray) -> None:
    # Straight from the protocol buffer: tfds takes seven times as long to take the same two fields out of it.
    parse = tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]: made when it is imported
    examples = [parse(record).features.feature for record in records]
    label[:] = [example["label"].int64_list.value[0] for example in examples]
    _images.decode([example["image"].bytes_list.value[0] for example in examples], image)


def _tensor_decoder(features: Any) -> Decode:
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
