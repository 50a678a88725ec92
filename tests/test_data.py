"""Data: known answers, files in every state of repair, caches that must never be believed blindly."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bdjax import data
from bdjax.checks import InputError
from bdjax.data import splits, streams
from bdjax.data.sources import _cache, _cifar_archive, _dataset, _folders, cifar10

ARCHIVE = "cifar-10-binary.tar.gz"
TRAIN = [f"data_batch_{number}.bin" for number in range(1, 6)]


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    """No test writes into the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    return tmp_path / "user-cache"


# --- digits ----------------------------------------------------------------------------------------------------------


def test_digits_known_answers():
    digits = data.load("digits")
    assert digits.train.image.shape == (1347, 8, 8, 1)
    assert digits.test.image.shape == (450, 8, 8, 1)
    assert np.bincount(digits.train.label).tolist() == [133, 137, 132, 138, 135, 137, 136, 134, 130, 135]
    assert np.bincount(digits.test.label).tolist() == [45, 45, 45, 45, 46, 45, 45, 45, 44, 45]
    assert int(digits.train.image.sum(dtype=int)) == 6719223
    assert int(digits.test.image.sum(dtype=int)) == 2234578
    for split in (digits.train, digits.test):
        assert (split.image.dtype, split.label.dtype, split.valid.dtype) == (np.uint8, np.int32, np.bool_)
        assert split.valid.all()
    assert (digits.train.image.min(), digits.train.image.max()) == (0, 255)


def test_digits_specification_is_measured_on_the_training_images():
    digits = data.load("digits")
    pixels = np.asarray(digits.train.image) / 255
    assert digits.spec.mean == pytest.approx((pixels.mean(),), rel=1e-12)
    assert digits.spec.std == pytest.approx((pixels.std(),), rel=1e-12)
    assert (digits.spec.name, digits.spec.shape, digits.spec.num_classes) == ("digits", (8, 8, 1), 10)
    hash(digits.spec)  # a static argument


def test_digits_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.datasets").load_digits()
    images = np.round(sklearn.images * 255 / 16).astype(np.uint8)[..., None]
    by_class = sorted(range(len(sklearn.target)), key=lambda row: (sklearn.target[row], row))
    test = sorted(by_class[::4])
    train = sorted(set(range(1797)) - set(test))
    digits = data.load("digits")
    for split, rows in ((digits.train, train), (digits.test, test)):
        np.testing.assert_array_equal(split.image, images[rows])
        np.testing.assert_array_equal(split.label, sklearn.target[rows])


def test_fingerprint_is_fixed_and_sees_every_change():
    digits = data.load("digits")
    assert data.fingerprint(digits) == data.fingerprint(data.load("digits"))
    assert data.fingerprint(digits) == {
        "train": "162744fb7031148fb3376abf3f778e4bc57ac4d1a646396290154da97d751e55",
        "test": "9a50d90c0149e0cf1cba80e86f7133a4f7d86ebedd23ba5967f91b0e28221f71",
    }
    image, label = np.array(digits.test.image), np.array(digits.test.label)
    image[17, 3, 3, 0] ^= 1
    label[17] = (label[17] + 1) % 10
    for field, array in {"image": image, "label": label}.items():
        changed = digits._replace(test=digits.test._replace(**{field: array}))
        assert data.fingerprint(changed)["test"] != data.fingerprint(digits)["test"]
        assert data.fingerprint(changed)["train"] == data.fingerprint(digits)["train"]
    flat = digits._replace(test=digits.test._replace(image=np.asarray(digits.test.image).reshape(450, 4, 16, 1)))
    assert data.fingerprint(flat)["test"] != data.fingerprint(digits)["test"]


def test_image_size_enlarges_digits():
    small, large = data.load("digits"), data.load("digits", image_size=16)
    assert large.spec.shape == (16, 16, 1)
    assert large.train.image.shape == (1347, 16, 16, 1)
    assert large.train.image.dtype == np.uint8
    np.testing.assert_array_equal(large.train.label, small.train.label)
    # Bilinear by hand: pixel i lies at (i + ½)/2 − ½ of the small image, between its neighbors ¾ and ¼; rims repeat.
    weight = np.zeros((16, 8))
    for i in range(16):
        near, far = i // 2, i // 2 + (1 if i % 2 else -1)
        weight[i, near] += 0.75
        weight[i, min(max(far, 0), 7)] += 0.25
    expected = np.einsum("ih,nhw,jw->nij", weight, small.train.image[..., 0], weight)
    assert abs(large.train.image[..., 0] - expected).max() <= 1
    assert data.load("digits", image_size=8).train.image.tobytes() == small.train.image.tobytes()


@pytest.mark.parametrize("size", [0, -4, True])
def test_image_size_is_a_whole_number(size):
    with pytest.raises(InputError, match="image_size must be"):
        data.load("digits", image_size=size)


def test_the_default_needs_no_optional_library():
    script = (
        "import sys; from bdjax import data; data.load('digits'); "
        "print([m for m in ('PIL', 'tensorflow_datasets', 'array_record', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- names and folders -----------------------------------------------------------------------------------------------


def test_names():
    assert {"digits", "cifar10"} <= set(data.names())


@pytest.mark.parametrize("name", ["cifar01", "", "../digits"])
def test_unknown_name(name, tmp_path):
    with pytest.raises(InputError) as error:
        data.load(name, data_dir=tmp_path)
    assert "known: cifar10, digits" in str(error.value)
    assert f"{tmp_path}/{name}/train/<class>/" in str(error.value)
    if name == "cifar01":
        assert "did you mean 'cifar10'?" in str(error.value)


def test_data_dir_argument_beats_environment_beats_default(tmp_path, monkeypatch):
    for variable in ("BDJAX_DATA_DIR", "TFDS_DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)
    assert _folders.resolve(None) == Path.home() / "tensorflow_datasets"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    assert _folders.resolve(None) == tmp_path / "tfds"
    monkeypatch.setenv("BDJAX_DATA_DIR", str(tmp_path / "environment"))
    assert _folders.resolve(None) == tmp_path / "environment"
    assert _folders.resolve("~/argument") == Path.home() / "argument"
    for place, size in (("environment", 3), ("argument", 5)):
        write_images(tmp_path / place / "mine", size=size)
    assert data.load("mine").spec.shape == (3, 3, 3)
    assert data.load("mine", data_dir=tmp_path / "argument").spec.shape == (5, 5, 3)


def test_cifar10_in_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"data_dir .*/no/such is not a folder"):
        data.load("cifar10", data_dir=tmp_path / "no" / "such")
    assert not (tmp_path / "no").exists()


# --- image folders ---------------------------------------------------------------------------------------------------


def write_images(root: Path, size: int = 4, mode: str = "RGB", suffix: str = ".png") -> None:
    """Two classes, two training images and one test image each; every image has a gray level of its own."""
    for number, name in enumerate(["cat", "ant"]):
        for split, count in (("train", 2), ("test", 1)):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                level = 100 * number + 40 * index + (20 if split == "test" else 0)
                pixels = np.full((size, size, len(mode)), level, np.uint8).squeeze()
                Image.fromarray(pixels, mode).save(folder / f"{index}{suffix}")


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "pets")
    return tmp_path


def test_image_folder(folder):
    pets = data.load("pets", data_dir=folder)
    assert pets.spec.class_names == ("ant", "cat")
    assert pets.spec.shape == (4, 4, 3)
    assert pets.train.label.tolist() == [0, 0, 1, 1]
    assert pets.train.image[:, 0, 0, 0].tolist() == [100, 140, 0, 40]
    assert pets.test.image[:, 0, 0, 0].tolist() == [120, 20]
    assert pets.spec.mean == pytest.approx([70 / 255] * 3)
    assert pets.spec.std == pytest.approx([np.std([100, 140, 0, 40]) / 255] * 3)


@pytest.mark.parametrize(("mode", "suffix", "channels"), [("L", ".png", 1), ("RGB", ".bmp", 3), ("RGBA", ".PNG", 3)])
def test_image_folder_channels(tmp_path, mode, suffix, channels):
    write_images(tmp_path / "pets", mode=mode, suffix=suffix)
    pets = data.load("pets", data_dir=tmp_path)
    assert pets.spec.shape == (4, 4, channels)
    assert pets.train.image[:, 1, 1, 0].tolist() == [100, 140, 0, 40]


def test_one_color_image_makes_all_of_them_color(tmp_path):
    write_images(tmp_path / "pets", mode="L")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "pets" / "test" / "ant" / "0.png")
    pets = data.load("pets", data_dir=tmp_path)
    assert pets.train.image.shape == (4, 4, 4, 3)
    assert pets.test.image[0, 0, 0].tolist() == [1, 2, 3]


def test_images_of_different_sizes(folder):
    Image.new("RGB", (64, 60), (9, 9, 9)).save(folder / "pets" / "train" / "cat" / "2.jpg")
    with pytest.raises(InputError, match=r"2\.jpg is 60×64 \(height×width\); pass image_size"):
        data.load("pets", data_dir=folder)
    pets = data.load("pets", data_dir=folder, image_size=6)
    assert pets.spec.shape == (6, 6, 3)
    assert pets.train.image[:, 5, 5, 0].tolist() == [100, 140, 0, 40, 9]


def test_threads_keep_the_order(tmp_path):
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / "big" / split / name).mkdir(parents=True)
            for index in range(20):
                path = tmp_path / "big" / split / name / f"{index:02}.png"
                Image.new("L", (64, 64), 10 * index + (name == "b")).save(path)
    big = data.load("big", data_dir=tmp_path)
    assert big.test.image[:, 9, 9, 0].tolist() == [10 * i for i in range(20)] + [10 * i + 1 for i in range(20)]


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda root: remove(root / "test"), "pets has no test split; put its images into .*/pets/test/<class>/"),
        (lambda root: remove(root / "train"), "pets has no train split"),
        (lambda root: remove(root / "test" / "cat"), "class 'cat' is only in train"),
        (lambda root: (root / "test" / "dog").mkdir(), "class 'dog' is only in test"),
        (lambda root: remove(root / "test" / "cat" / "0.png"), r"class folder .*/test/cat has no image \(.png, .jpg"),
        (lambda root: (root / "train" / "ant" / "1.png").write_bytes(b"no image"), r"image .*/ant/1\.png cannot be"),
        (lambda root: cut(root / "train" / "ant" / "1.png"), r"image .*/train/ant/1\.png cannot be read"),
        (lambda root: [remove(root / split / "cat") for split in ("train", "test")], "needs two classes or more"),
        (
            lambda root: Image.fromarray(np.zeros((4, 4), np.uint16)).save(root / "test" / "ant" / "0.png"),
            r"image .*/test/ant/0\.png has more than 8 bits",
        ),
    ],
)
def test_image_folder_refuses(folder, harm, words):
    harm(folder / "pets")
    with pytest.raises(InputError, match=words) as error:
        data.load("pets", data_dir=folder)
    assert "\n" not in str(error.value)


def test_files_that_are_no_images_are_left_alone(folder):
    (folder / "pets" / "train" / "cat" / "notes.txt").write_text("meow")
    (folder / "pets" / "train" / "cat" / "._0.png").write_bytes(b"what a Mac leaves behind")
    (folder / "pets" / "train" / ".thumbnails").mkdir()
    assert len(data.load("pets", data_dir=folder).train.label) == 4


def test_a_constant_channel_has_no_zero_standard_deviation():
    assert _dataset.channel_statistics(np.full((3, 2, 2, 1), 255, np.uint8)) == ((1.0,), (1 / 255,))


# --- CIFAR-10 from the binary archive --------------------------------------------------------------------------------


def records(seed: int, count: int) -> bytes:
    random = np.random.default_rng(seed)
    content = random.integers(0, 256, (count, 3073), dtype=np.uint8)
    content[:, 0] = np.arange(count) % 10
    return content.tobytes()


def write_archive(path: Path, members: dict[str, bytes] | None = None, per_batch: int = 10) -> dict[str, bytes]:
    """The official format at a small size: every batch has ``per_batch`` images."""
    names = [*TRAIN, "test_batch.bin"]
    members = {**{name: records(seed, per_batch) for seed, name in enumerate(names)}, **(members or {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in {"readme.html": b"<html>", **members}.items():
            if content:
                entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return members


def rows_of(split) -> set[tuple[int, bytes]]:
    return {(int(label), image.tobytes()) for label, image in zip(split.label, split.image, strict=True)}


def rows_in(*batches: bytes) -> set[tuple[int, bytes]]:
    """Decode the format once more, pixel by pixel and differently from the library."""
    rows = set()
    for batch in batches:
        for start in range(0, len(batch), 3073):
            red, green, blue = (batch[start + 1 + 1024 * plane : start + 1 + 1024 * (plane + 1)] for plane in range(3))
            rows.add((batch[start], bytes(value for pixel in zip(red, green, blue, strict=True) for value in pixel)))
    return rows


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(_cifar_archive, "URL", (tmp_path / "nowhere" / ARCHIVE).as_uri())


@pytest.mark.parametrize("place", [".", "downloads"])
def test_cifar10_from_the_archive(tmp_path, no_network, place):
    pytest.importorskip("tensorflow_datasets")
    members = write_archive(tmp_path / "data" / place / ARCHIVE)
    cifar = data.load("cifar10", data_dir=tmp_path / "data")
    assert cifar.train.image.shape == (50, 32, 32, 3)
    assert rows_of(cifar.train) == rows_in(*(members[name] for name in TRAIN))
    assert rows_of(cifar.test) == rows_in(members["test_batch.bin"])
    assert "tensorflow" not in sys.modules
    assert cifar.spec.mean == (0.4914, 0.4822, 0.4465)
    assert cifar.spec.std == (0.247, 0.243, 0.261)
    assert (cifar.spec.crop_padding, cifar.spec.flip) == (4, True)
    assert cifar.spec.class_names[6] == "frog"
    # A whole folder under its final name, nothing half-written beside it.
    assert [path.name for path in (tmp_path / "data" / "cifar10").iterdir()] == ["1.0.0"]
    assert data.fingerprint(cifar) == data.fingerprint(data.load("cifar10", data_dir=tmp_path / "data"))


def test_stock_and_own_builder_can_both_be_there(tmp_path, no_network):
    tfds = pytest.importorskip("tensorflow_datasets")
    write_archive(tmp_path / ARCHIVE)
    data.load("cifar10", data_dir=tmp_path)
    assert tfds.builder_cls("cifar10").__module__.startswith("tensorflow_datasets")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"data_batch_3.bin": b""}, r"has no data_batch_3\.bin; it is not the binary version"),
        ({"test_batch.bin": b""}, r"has no test_batch\.bin"),
        ({"data_batch_2.bin": records(0, 3)[:-1]}, r"data_batch_2\.bin in archive .* 9218 bytes, which are not whole"),
        ({"test_batch.bin": b"\x0b" + records(0, 3)[1:]}, r"test_batch\.bin in archive .* the label 11; labels are 0"),
    ],
)
def test_archive_of_another_structure(tmp_path, members, words):
    write_archive(tmp_path / ARCHIVE, members)
    with pytest.raises(InputError, match=words):
        data.load("cifar10", data_dir=tmp_path)
    assert not (tmp_path / "cifar10").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_archive_that_was_cut_short(tmp_path, share):
    write_archive(tmp_path / ARCHIVE)
    cut(tmp_path / ARCHIVE, share)
    with pytest.raises(InputError, match=f"archive .*{ARCHIVE} is damaged or cut short"):
        data.load("cifar10", data_dir=tmp_path)
    assert not (tmp_path / "cifar10").exists()


def test_archive_with_a_flipped_bit(tmp_path):
    write_archive(tmp_path / ARCHIVE)
    flip(tmp_path / ARCHIVE, (tmp_path / ARCHIVE).stat().st_size // 2)
    with pytest.raises(InputError, match=ARCHIVE):
        data.load("cifar10", data_dir=tmp_path)


def test_download_that_fails(tmp_path, no_network, capsys):
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError) as error:
        data.load("cifar10", data_dir=tmp_path / "data")
    assert "could not be downloaded" in str(error.value)
    assert f"put {ARCHIVE} from file://" in str(error.value)
    assert "BDJAX_DATA_DIR" in str(error.value)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_download_must_be_the_official_archive(tmp_path, monkeypatch):
    write_archive(tmp_path / "server" / ARCHIVE)
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(_cifar_archive, "URL", (tmp_path / "server" / ARCHIVE).as_uri())
    with pytest.raises(InputError, match="is not the official archive"):
        data.load("cifar10", data_dir=tmp_path / "data")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    checksum = _cifar_archive._fetch(tmp_path / "copy")
    monkeypatch.setattr(_cifar_archive, "MD5", checksum)
    assert len(data.load("cifar10", data_dir=tmp_path / "data").train.label) == 50
    assert [path.name for path in (tmp_path / "data" / "downloads").iterdir() if path.is_file()] == [ARCHIVE]


def test_read_only_folder_without_cifar10(tmp_path):
    (tmp_path / "data").mkdir(mode=0o555)
    with pytest.raises(InputError, match="that folder is read-only; name another data_dir"):
        data.load("cifar10", data_dir=tmp_path / "data")


def test_missing_extra(tmp_path, monkeypatch):
    write_archive(tmp_path / ARCHIVE)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    for module in ("_tfds", "_cifar_builder"):
        monkeypatch.delitem(sys.modules, f"bdjax.data.sources.{module}", raising=False)
        monkeypatch.delattr(f"bdjax.data.sources.{module}", raising=False)
    with pytest.raises(InputError, match=r"run: pip install 'bdjax\[data\]'"):
        data.load("cifar10", data_dir=tmp_path)


# --- prepared folders ------------------------------------------------------------------------------------------------


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def edit_json(path: Path, edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def write_prepared(root: Path, version: str = "3.0.2", seed: int = 0, label: int | None = None) -> _dataset.Arrays:
    """A folder like that of the stock builder: PNG images, two training shards of 30 and one test shard of 20."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (80, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(0, 10, 80).astype(np.int32)
    if label is not None:
        labels[40] = label
    folder = root / "cifar10" / version
    folder.mkdir(parents=True)
    shards = {"train.array_record-00000-of-00002": 0, "train.array_record-00001-of-00002": 30}
    shards["test.array_record-00000-of-00001"] = 60
    for name, start in shards.items():
        writer = ArrayRecordWriter(str(folder / f"cifar10-{name}"), "group_size:1")
        for row in range(start, start + (20 if start == 60 else 30)):
            record = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
            record.features.feature["id"].bytes_list.value.append(f"row {row}".encode())
            record.features.feature["image"].bytes_list.value.append(png(image[row]))
            record.features.feature["label"].int64_list.value.append(int(labels[row]))
            writer.write(record.SerializeToString())
        writer.close()
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {
        "fileFormat": "array_record",
        "name": "cifar10",
        "version": version,
        "splits": [
            {"name": "train", "filepathTemplate": template, "numBytes": "1", "shardLengths": ["30", "30"]},
            {"name": "test", "filepathTemplate": template, "numBytes": "1", "shardLengths": ["20"]},
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    (folder / "features.json").write_text(json.dumps(features.to_json()))
    return _dataset.Arrays(image[:60], labels[:60], image[60:], labels[60:])


def same(dataset, arrays: _dataset.Arrays) -> bool:
    got = (dataset.train.image, dataset.train.label, dataset.test.image, dataset.test.label)
    return all(np.array_equal(one, other) for one, other in zip(got, arrays, strict=True))


def cut(path: Path, share: float = 0.7) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(bytes(content))


@pytest.fixture
def prepared(tmp_path):
    return write_prepared(tmp_path)


def shard(root: Path, name: str = "train.array_record-00001-of-00002") -> Path:
    return root / "cifar10" / "3.0.2" / f"cifar10-{name}"


def test_prepared_folder_is_read_in_its_order(tmp_path, prepared):
    cifar = data.load("cifar10", data_dir=tmp_path)
    assert same(cifar, prepared)
    assert (cifar.train.image.dtype, cifar.train.label.dtype) == (np.uint8, np.int32)
    assert cifar.train.valid.all()


def test_training_images_can_stay_on_the_disk(tmp_path, prepared):
    cifar = data.load("cifar10", data_dir=tmp_path, on_disk=True)
    images: Any = cifar.train.image
    assert not isinstance(images, np.ndarray)
    assert (images.shape, images.dtype, images.nbytes) == ((60, 32, 32, 3), np.uint8, prepared.train_image.nbytes)
    rows = np.array([59, 0, 31, 31])  # of both shards
    np.testing.assert_array_equal(images[rows], prepared.train_image[rows])
    np.testing.assert_array_equal(cifar.train.label, prepared.train_label)
    np.testing.assert_array_equal(cifar.test.image, prepared.test_image)
    assert not cache_of(tmp_path).exists()
    resident = data.load("cifar10", data_dir=tmp_path)
    assert data.fingerprint(cifar) == data.fingerprint(resident)
    assert cifar.spec == resident.spec


def test_rows_of_images_on_the_disk(tmp_path, prepared):
    train = data.load("cifar10", data_dir=tmp_path, on_disk=True).train
    holdout, rest = np.array([3, 40]), np.delete(np.arange(60), [3, 40])
    taken, left = splits.take(train, holdout), splits.exclude(train, holdout)
    np.testing.assert_array_equal(taken.image, prepared.train_image[holdout])
    np.testing.assert_array_equal(left.label, prepared.train_label[rest])
    assert not isinstance(left.image, np.ndarray)
    np.testing.assert_array_equal(left.image[np.array([57, 3])], prepared.train_image[[59, 4]])


def test_own_builder_can_stay_on_the_disk(tmp_path, no_network):
    write_archive(tmp_path / ARCHIVE)
    resident = data.load("cifar10", data_dir=tmp_path)
    cifar = data.load("cifar10", data_dir=tmp_path, on_disk=True)
    assert data.fingerprint(cifar) == data.fingerprint(resident)


def test_images_on_the_disk_are_streamed_by_grain_as_they_are(tmp_path, prepared):
    pytest.importorskip("grain")
    images: Any = data.load("cifar10", data_dir=tmp_path, on_disk=True).train.image
    order = np.random.default_rng(0).permutation(60).reshape(6, 10)
    for chunk, rows in zip(streams.ReadAhead(images, order), order, strict=True):
        np.testing.assert_array_equal(chunk, prepared.train_image[rows])


def test_a_damaged_image_on_the_disk_is_named_when_it_is_read(tmp_path, prepared):
    images: Any = data.load("cifar10", data_dir=tmp_path, on_disk=True).train.image
    content = shard(tmp_path).read_bytes()
    start = content.index(b"IDAT")  # of the second shard's first image
    shard(tmp_path).write_bytes(content[:start] + b"XXXX" + content[start + 4 :])  # after its labels were read
    with pytest.raises(InputError, match=rf"^an image of {tmp_path}/cifar10/3.0.2 is damaged"):
        images[np.array([30])]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("digits", {}, "^data set digits cannot stay on the disk: it is not in records that can be read by row"),
        ("cifar10", {"image_size": 16}, "^data set cifar10 cannot stay on the disk: it is to be resized"),
        ("cifar", {}, "no data set 'cifar'"),
    ],
)
def test_what_cannot_stay_on_the_disk(tmp_path, name, options, words):
    with pytest.raises(InputError, match=words):
        data.load(name, data_dir=tmp_path, on_disk=True, **options)


def test_the_newest_version_counts(tmp_path, prepared):
    newest = write_prepared(tmp_path, "3.0.10", seed=1)
    (tmp_path / "cifar10" / "incomplete.ABC_9.9.9").mkdir()
    (tmp_path / "cifar10" / "9.9.9").mkdir()  # prepared by nobody: no dataset_info.json
    assert same(data.load("cifar10", data_dir=tmp_path), newest)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("name", ["train.array_record-00001-of-00002", "test.array_record-00000-of-00001"])
def test_shard_that_was_cut_short(tmp_path, prepared, name, share):
    cut(shard(tmp_path, name), share)
    with pytest.raises(InputError, match=f"shard .*{name} is damaged or incomplete"):
        data.load("cifar10", data_dir=tmp_path)


def test_shard_cut_at_its_first_block(tmp_path, prepared):
    content = shard(tmp_path).read_bytes()
    shard(tmp_path).write_bytes(content[: 1 << 16])  # the smallest file that array_record agrees to open
    with pytest.raises(InputError, match=r"train\.array_record-00001-of-00002 is damaged"):
        data.load("cifar10", data_dir=tmp_path)


def test_shard_with_a_flipped_bit_is_named_or_harmless(tmp_path, prepared):
    content = np.frombuffer(shard(tmp_path).read_bytes(), np.uint8)
    used = np.flatnonzero(content)
    named = harmless = 0
    for position in np.random.default_rng(0).choice(used, 25, replace=False):
        flip(shard(tmp_path), position)
        try:
            cifar = data.load("cifar10", data_dir=tmp_path)
        except InputError as error:
            named += str(shard(tmp_path)) in str(error)
        else:
            assert same(cifar, prepared), f"the bit in byte {position} went unnoticed"
            harmless += 1
        flip(shard(tmp_path), position)
    assert named >= 20
    assert named + harmless == 25


def test_shard_that_is_missing(tmp_path, prepared):
    shard(tmp_path).unlink()
    with pytest.raises(InputError, match=r"train\.array_record-00001-of-00002"):
        data.load("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("count", ["29", "31"])
def test_count_that_differs_from_the_announced_one(tmp_path, prepared, count):
    info = shard(tmp_path).with_name("dataset_info.json")
    edit_json(info, lambda content: content["splits"][0].update(shardLengths=["30", count]))
    with pytest.raises(InputError, match=rf"00001-of-00002 .*it holds 30 examples and dataset_info\.json says {count}"):
        data.load("cifar10", data_dir=tmp_path)


def test_label_out_of_range(tmp_path):
    write_prepared(tmp_path, label=10)
    with pytest.raises(InputError, match=r"00001-of-00002 .*a label is outside 0 to 9"):
        data.load("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda content: content["splits"].pop(), "is not a data set that bdjax can read"),
        (lambda content: content.update(fileFormat="tfrecord"), "is in tfrecord format, which needs TensorFlow"),
        (lambda content: content.clear(), "is not a data set that bdjax can read"),
    ],
)
def test_prepared_folder_of_another_kind(tmp_path, prepared, edit, words):
    edit_json(shard(tmp_path).with_name("dataset_info.json"), edit)
    with pytest.raises(InputError, match=words) as error:
        data.load("cifar10", data_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_features_that_are_not_json(tmp_path, prepared):
    shard(tmp_path).with_name("features.json").write_text("{")
    with pytest.raises(InputError, match="is not a data set that bdjax can read"):
        data.load("cifar10", data_dir=tmp_path)


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch):
    """Count how often the source itself is decoded."""
    calls = []
    decode = cifar10._read
    monkeypatch.setattr(cifar10, "_read", lambda folder: calls.append(folder) or decode(folder))
    return calls


def cache_of(root: Path) -> Path:
    return root / "cifar10" / "3.0.2" / "bdjax-cache"


def test_second_load_decodes_nothing(tmp_path, prepared, reads):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            assert same(data.load("cifar10", data_dir=tmp_path), prepared)
    assert len(reads) == 1
    assert sorted(path.suffix for path in cache_of(tmp_path).iterdir()) == [".json"] + [".npy"] * 4
    for path in cache_of(tmp_path).glob("train_image*.npy"):
        np.testing.assert_array_equal(np.load(path), prepared.train_image)


def test_cached_arrays_may_be_written_to(tmp_path, prepared):
    for _ in range(2):
        cifar = data.load("cifar10", data_dir=tmp_path)
        cifar.train.image[0] = 0
    assert same(data.load("cifar10", data_dir=tmp_path), prepared)


@pytest.mark.parametrize("field", _dataset.Arrays._fields)
@pytest.mark.parametrize("harm", ["cut", "flip", "flip header", "remove"])
def test_altered_cache_is_named_and_made_anew(tmp_path, prepared, reads, field, harm):
    data.load("cifar10", data_dir=tmp_path)
    (path,) = cache_of(tmp_path).glob(f"{field}-*.npy")
    actions = {
        "cut": lambda: cut(path),
        "flip": lambda: flip(path, path.stat().st_size - 3),
        "flip header": lambda: flip(path, 40),
        "remove": path.unlink,
    }
    actions[harm]()
    with pytest.warns(UserWarning, match=f"cache file .*{path.name}"):
        assert same(data.load("cifar10", data_dir=tmp_path), prepared)
    assert len(reads) == 2
    assert same(data.load("cifar10", data_dir=tmp_path), prepared)
    assert len(reads) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_damaged_manifest_is_named_and_made_anew(tmp_path, prepared, reads, content):
    data.load("cifar10", data_dir=tmp_path)
    manifest = cache_of(tmp_path) / "manifest.json"
    whole = json.loads(manifest.read_text())
    manifest.write_text(content)
    with pytest.warns(UserWarning, match=r"cache manifest .*manifest\.json is damaged"):
        assert same(data.load("cifar10", data_dir=tmp_path), prepared)
    assert len(reads) == 2
    assert json.loads(manifest.read_text()) == whole


@pytest.mark.parametrize("arrays", [None, {}, {"train_image": 3}, {"train_image": {"sha256": 5}}])
def test_manifest_with_other_arrays_is_named(tmp_path, prepared, reads, arrays):
    data.load("cifar10", data_dir=tmp_path)
    edit_json(cache_of(tmp_path) / "manifest.json", lambda content: content.update(arrays=arrays))
    with pytest.warns(UserWarning, match=r"cache manifest .*manifest\.json is damaged"):
        assert same(data.load("cifar10", data_dir=tmp_path), prepared)
    assert len(reads) == 2


def test_changed_source_makes_the_cache_anew(tmp_path, prepared, reads):
    data.load("cifar10", data_dir=tmp_path)
    shutil.move(tmp_path / "cifar10", tmp_path / "old")
    other = write_prepared(tmp_path, seed=1)
    shutil.move(tmp_path / "old" / "3.0.2" / "bdjax-cache", cache_of(tmp_path))
    assert same(data.load("cifar10", data_dir=tmp_path), other)
    assert len(reads) == 2
    assert len(list(cache_of(tmp_path).glob("*.npy"))) == 4  # those of the former source are gone


def test_what_a_killed_process_left_is_swept_away(tmp_path, prepared):
    left, busy = (cache_of(tmp_path) / f".train_image.{name}.tmp" for name in ("left", "busy"))
    left.parent.mkdir()
    left.write_bytes(b"half an array")
    os.utime(left, (0, 0))
    busy.write_bytes(b"being written by another process")
    assert same(data.load("cifar10", data_dir=tmp_path), prepared)
    assert (left.exists(), busy.exists()) == (False, True)


def test_damaged_shard_is_not_hidden_by_the_cache(tmp_path, prepared):
    data.load("cifar10", data_dir=tmp_path)
    cut(shard(tmp_path))
    with pytest.raises(InputError, match=r"train\.array_record-00001-of-00002 is damaged"):
        data.load("cifar10", data_dir=tmp_path)


def test_read_only_source_is_cached_for_the_user(tmp_path, prepared, reads, user_cache):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.chmod(0o555)
    try:
        for _ in range(2):
            assert same(data.load("cifar10", data_dir=tmp_path), prepared)
    finally:
        folder.chmod(0o755)
    assert len(reads) == 1
    assert not cache_of(tmp_path).exists()
    assert len(list(user_cache.rglob("*.npy"))) == 4


def test_cache_that_cannot_be_written_costs_only_time(tmp_path, prepared, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.chmod(0o555)
    try:
        with pytest.warns(UserWarning, match="could not be cached"):
            assert same(data.load("cifar10", data_dir=tmp_path), prepared)
    finally:
        folder.chmod(0o755)


def test_processes_that_load_at_once(tmp_path):
    """Many writers of one source, some of whose caches are damaged meanwhile: each gets whole arrays."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "shard").write_text("")
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    arrays = _dataset.Arrays(image, np.arange(40, dtype=np.int32), image[:7], np.arange(7, dtype=np.int32))

    def load(turn: int) -> bool:
        if turn % 5 == 0:
            for path in (source / "bdjax-cache").glob("*.npy"):
                path.unlink(missing_ok=True)
        got = _cache.cached(source, lambda: arrays)
        return all(np.array_equal(one, other) for one, other in zip(got, arrays, strict=True))

    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("ignore")
        assert all(pool.map(load, range(80)))
    assert not list((source / "bdjax-cache").glob(".*"))  # no temporary file is left


# --- the real CIFAR-10 -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    root = os.environ.get("BDJAX_DATA_DIR")
    if not root or not _folders.newest_version(Path(root), "cifar10"):
        pytest.skip("set BDJAX_DATA_DIR to a folder with cifar10/<version>/ to test on the real images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
        yield data.load("cifar10")


def test_cifar10_known_answers(real):
    assert real.train.image.shape == (50_000, 32, 32, 3)
    assert real.test.image.shape == (10_000, 32, 32, 3)
    assert np.bincount(real.train.label).tolist() == [5000] * 10
    assert np.bincount(real.test.label).tolist() == [1000] * 10
    mean, std = _dataset.channel_statistics(np.asarray(real.train.image))
    assert mean == pytest.approx((0.49139968, 0.48215841, 0.44653091), abs=1e-8)
    assert std == pytest.approx((0.24703223, 0.24348513, 0.26158784), abs=1e-8)
