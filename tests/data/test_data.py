"""Data: known answers, files in every state of repair, caches that must never be believed blindly."""

from __future__ import annotations

import hashlib
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
from bdjax.data.sources import _cache, _cifar_archive, _dataset, _folders, _images, cifar10

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
    assert digits.train.input.shape == (1347, 8, 8, 1)
    assert digits.test.input.shape == (450, 8, 8, 1)
    assert np.bincount(digits.train.label).tolist() == [
        133,
        137,
        132,
        138,
        135,
        137,
        136,
        134,
        130,
        135,
    ]
    assert np.bincount(digits.test.label).tolist() == [45, 45, 45, 45, 46, 45, 45, 45, 44, 45]
    assert int(digits.train.input.sum(dtype=int)) == 6719223
    assert int(digits.test.input.sum(dtype=int)) == 2234578
    for split in (digits.train, digits.test):
        assert (split.input.dtype, split.label.dtype, split.valid.dtype) == (
            np.uint8,
            np.int32,
            np.bool_,
        )
        assert split.valid.all()
    assert (digits.train.input.min(), digits.train.input.max()) == (0, 255)


def test_digits_specification_is_measured_on_the_training_images():
    digits = data.load("digits")
    pixels = np.asarray(digits.train.input) / 255
    assert digits.spec.modality.mean == pytest.approx((pixels.mean(),), rel=1e-12)
    assert digits.spec.modality.std == pytest.approx((pixels.std(),), rel=1e-12)
    assert (digits.spec.name, digits.spec.shape, digits.spec.num_classes) == (
        "digits",
        (8, 8, 1),
        10,
    )
    hash(digits.spec)  # a static argument


def test_digits_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.datasets").load_digits()
    images = np.round(sklearn.images * 255 / 16).astype(np.uint8)[..., None]
    by_class = sorted(range(len(sklearn.target)), key=lambda row: (sklearn.target[row], row))
    test = sorted(by_class[::4])
    train = sorted(set(range(1797)) - set(test))
    digits = data.load("digits")
    for split, rows in ((digits.train, train), (digits.test, test)):
        np.testing.assert_array_equal(split.input, images[rows])
        np.testing.assert_array_equal(split.label, sklearn.target[rows])


def test_fingerprint_is_fixed_and_sees_every_change():
    digits = data.load("digits")
    assert data.fingerprint(digits) == data.fingerprint(data.load("digits"))
    assert data.fingerprint(digits) == {
        "train": "162744fb7031148fb3376abf3f778e4bc57ac4d1a646396290154da97d751e55",
        "test": "9a50d90c0149e0cf1cba80e86f7133a4f7d86ebedd23ba5967f91b0e28221f71",
    }
    image, label = np.array(digits.test.input), np.array(digits.test.label)
    image[17, 3, 3, 0] ^= 1
    label[17] = (label[17] + 1) % 10
    for field, array in {"input": image, "label": label}.items():
        changed = digits._replace(test=digits.test._replace(**{field: array}))
        assert data.fingerprint(changed)["test"] != data.fingerprint(digits)["test"]
        assert data.fingerprint(changed)["train"] == data.fingerprint(digits)["train"]
    flat = digits._replace(
        test=digits.test._replace(input=np.asarray(digits.test.input).reshape(450, 4, 16, 1))
    )
    assert data.fingerprint(flat)["test"] != data.fingerprint(digits)["test"]


def test_image_size_enlarges_digits():
    small, large = data.load("digits"), data.load("digits", image_size=16)
    assert large.spec.shape == (16, 16, 1)
    assert large.train.input.shape == (1347, 16, 16, 1)
    assert large.train.input.dtype == np.uint8
    np.testing.assert_array_equal(large.train.label, small.train.label)
    # Bilinear by hand: pixel i lies at (i + ½)/2 − ½ of the small image, between its neighbors ¾ and ¼; rims repeat.
    weight = np.zeros((16, 8))
    for i in range(16):
        near, far = i // 2, i // 2 + (1 if i % 2 else -1)
        weight[i, near] += 0.75
        weight[i, min(max(far, 0), 7)] += 0.25
    expected = np.einsum("ih,nhw,jw->nij", weight, small.train.input[..., 0], weight)
    assert abs(large.train.input[..., 0] - expected).max() <= 1
    assert data.load("digits", image_size=8).train.input.tobytes() == small.train.input.tobytes()


@pytest.mark.parametrize("size", [0, -4, True])
def test_image_size_is_a_whole_number(size):
    with pytest.raises(InputError, match="image_size must be"):
        data.load("digits", image_size=size)


def test_the_default_needs_no_optional_library():
    script = (
        "import sys; from bdjax import data; data.load('digits'); "
        "print([m for m in ('PIL', 'tensorflow_datasets', 'array_record', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- names and folders -----------------------------------------------------------------------------------------------


def test_names():
    assert {"digits", "cifar10"} <= set(data.names())


@pytest.mark.parametrize(
    ("name", "looked_for"),
    [("cifar01", "here/cifar01"), ("", "here/"), ("../digits", "digits"), ("/no/shapes/", None)],
)
def test_unknown_name(name, looked_for, tmp_path):
    with pytest.raises(InputError) as error:
        data.load(name, data_dir=tmp_path / "here")
    assert "known: cifar10, cifar100, digits" in str(error.value)
    place = "/no/shapes" if looked_for is None else f"{tmp_path}/{looked_for}"
    assert f"{place}/train/<class>/" in str(error.value)
    if name == "cifar01":
        assert "did you mean 'cifar10'?" in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["./shapes", "./shapes/", "shapes/", "{}/shapes", "{}/shapes/", "../x/shapes", "~/shapes"],
)
def test_a_folder_may_be_named_by_its_path(name, tmp_path, monkeypatch):
    write_images(tmp_path / "x" / "shapes")
    monkeypatch.chdir(tmp_path / "x")
    monkeypatch.setenv("HOME", str(tmp_path / "x"))
    monkeypatch.setenv("BDJAX_DATA_DIR", str(tmp_path / "elsewhere"))
    name = name.format(tmp_path / "x")
    assert data.locate(name) == ("shapes", str(tmp_path / "x"))
    assert data.load(name).spec.name == "shapes"


def test_the_folder_that_the_process_is_in_has_a_name_too(tmp_path, monkeypatch):
    write_images(tmp_path / "shapes")
    monkeypatch.chdir(tmp_path / "shapes")
    assert data.load(".").spec.name == data.load("train/..").spec.name == "shapes"


def test_a_relative_path_starts_at_the_data_dir_where_there_is_one(tmp_path, monkeypatch):
    write_images(tmp_path / "sets" / "mine" / "shapes")
    monkeypatch.chdir(tmp_path)
    assert data.load("mine/shapes", data_dir=tmp_path / "sets").spec.name == "shapes"
    assert data.locate("./mine/shapes", "sets") == ("shapes", str(tmp_path / "sets" / "mine"))


def test_a_folder_called_like_a_data_set_is_named_by_its_path(tmp_path, monkeypatch, caplog):
    write_images(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert data.load("digits").spec.shape == (8, 8, 1)
    assert not caplog.records, "it is not in the data_dir"
    assert data.load("digits", data_dir=tmp_path).spec.shape == (8, 8, 1)
    assert (
        f"data digits is bdjax's own; the image folder {tmp_path}/digits is named by ./digits."
        in caplog.messages
    )
    for name in ("./digits", "digits/", str(tmp_path / "digits")):
        assert data.load(name).spec.shape == (4, 4, 3)
        assert data.locate(name) == ("./digits", str(tmp_path))
    assert data.locate(*data.locate("./digits")) == data.locate("./digits")


def test_a_folder_that_is_here_and_not_in_the_data_dir_is_pointed_at(tmp_path, monkeypatch):
    write_images(tmp_path / "shapes")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"; the folder \./shapes is named by --data \./shapes\)\.$"
    ):
        data.load("shapes", data_dir=tmp_path / "elsewhere")


def test_the_root_of_all_folders_has_no_name():
    with pytest.raises(InputError, match=r"data\.name must name a folder, got '/'"):
        data.load("/")


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
    assert pets.train.input[:, 0, 0, 0].tolist() == [100, 140, 0, 40]
    assert pets.test.input[:, 0, 0, 0].tolist() == [120, 20]
    assert pets.spec.modality.mean == pytest.approx([70 / 255] * 3)
    assert pets.spec.modality.std == pytest.approx([np.std([100, 140, 0, 40]) / 255] * 3)


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"), [("L", ".png", 1), ("RGB", ".bmp", 3), ("RGBA", ".PNG", 3)]
)
def test_image_folder_channels(tmp_path, mode, suffix, channels):
    write_images(tmp_path / "pets", mode=mode, suffix=suffix)
    pets = data.load("pets", data_dir=tmp_path)
    assert pets.spec.shape == (4, 4, channels)
    assert pets.train.input[:, 1, 1, 0].tolist() == [100, 140, 0, 40]


def test_one_color_image_makes_all_of_them_color(tmp_path):
    write_images(tmp_path / "pets", mode="L")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "pets" / "test" / "ant" / "0.png")
    pets = data.load("pets", data_dir=tmp_path)
    assert pets.train.input.shape == (4, 4, 4, 3)
    assert pets.test.input[0, 0, 0].tolist() == [1, 2, 3]


def test_images_of_different_sizes(folder):
    Image.new("RGB", (64, 60), (9, 9, 9)).save(folder / "pets" / "train" / "cat" / "2.jpg")
    with pytest.raises(InputError, match=r"2\.jpg is 60×64 \(height×width\); pass image_size"):
        data.load("pets", data_dir=folder)
    pets = data.load("pets", data_dir=folder, image_size=6)
    assert pets.spec.shape == (6, 6, 3)
    assert pets.train.input[:, 5, 5, 0].tolist() == [100, 140, 0, 40, 9]


def test_threads_keep_the_order(tmp_path):
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / "big" / split / name).mkdir(parents=True)
            for index in range(20):
                path = tmp_path / "big" / split / name / f"{index:02}.png"
                Image.new("L", (64, 64), 10 * index + (name == "b")).save(path)
    big = data.load("big", data_dir=tmp_path)
    assert big.test.input[:, 9, 9, 0].tolist() == [10 * i for i in range(20)] + [
        10 * i + 1 for i in range(20)
    ]


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (
            lambda root: remove(root / "test"),
            r"pets has no test split \(or val/\); put its images into .*/pets/test/<class>/",
        ),
        (lambda root: remove(root / "train"), "pets has no train split"),
        (lambda root: remove(root / "test" / "cat"), "class 'cat' is only in train"),
        (lambda root: (root / "test" / "dog").mkdir(), "class 'dog' is only in test"),
        (
            lambda root: remove(root / "test" / "cat" / "0.png"),
            r"class folder .*/test/cat has no image \(PNG, .* or PGM\), but nothing\.",
        ),
        (
            lambda root: (root / "train" / "ant" / "1.png").write_bytes(b"no image"),
            r"image .*/ant/1\.png cannot be",
        ),
        (
            lambda root: cut(root / "train" / "ant" / "1.png"),
            r"image .*/train/ant/1\.png cannot be read",
        ),
        (
            lambda root: [remove(root / split / "cat") for split in ("train", "test")],
            "needs two classes or more",
        ),
        (
            lambda root: Image.fromarray(np.zeros((4, 4), np.uint16)).save(
                root / "test" / "ant" / "0.png"
            ),
            r"image .*/test/ant/0\.png has more than 8 bits",
        ),
    ],
)
def test_image_folder_refuses(folder, harm, words):
    harm(folder / "pets")
    with pytest.raises(InputError, match=words) as error:
        data.load("pets", data_dir=folder)
    assert "\n" not in str(error.value)


def test_files_that_are_no_images_are_left_out_and_one_line_says_so(folder, caplog):
    before = data.load("pets", data_dir=folder)
    assert not caplog.records
    cat = folder / "pets" / "train" / "cat"
    (cat / "GT-00000.csv").write_text("Filename;Width")
    (cat / "._0.png").write_bytes(b"what a Mac leaves behind")
    (cat / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (cat / "BMW.txt").write_text("BMW is how a bitmap begins, too")
    (cat / "empty").write_bytes(b"")
    (folder / "pets" / "train" / ".thumbnails").mkdir()
    (folder / "pets" / "test" / "README.md").write_text("beside the classes")
    os.mkfifo(cat / "pipe")
    pets = data.load("pets", data_dir=folder)
    assert data.fingerprint(pets) == data.fingerprint(before)
    (line,) = caplog.messages
    assert line.startswith(
        f"image folder {folder}/pets: left out 8 files that are no images (PNG, JPEG, "
    )
    assert line.endswith(" or hidden: train/.thumbnails, test/README.md, train/cat/._0.png, ….")
    assert "\n" not in line


def test_one_file_that_is_no_image_is_named(folder, caplog):
    (folder / "pets" / "train" / "ant" / "notes.txt").write_text("hm")
    data.load("pets", data_dir=folder)
    assert "left out 1 file that is no image" in caplog.text
    assert "train/ant/notes.txt." in caplog.text


@pytest.mark.parametrize(
    "name", ["new.jpg", "new.png", "new.tiff", "new.webp", "new.ppm", "NEW.JPEG"]
)
@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_file_that_is_called_an_image_and_is_none_is_an_error(folder, name, content):
    (folder / "pets" / "test" / "cat" / name).write_bytes(content)
    with pytest.raises(
        InputError,
        match=rf"image .*/test/cat/{name} cannot be read \(.*\); replace it or take it away",
    ):
        data.load("pets", data_dir=folder)


# Of each format: its suffix, and what the pixels of one gray level become.
FORMATS = {
    "PNG": ".png",
    "BMP": ".bmp",
    "PPM": ".ppm",
    "TIFF": ".tif",
    "GIF": ".gif",
    "WEBP": ".webp",
    "JPEG": ".jpg",
}


@pytest.mark.parametrize("called", ["as it is", ".jpg", ".png", ""])
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_read_by_its_content_whatever_the_file_is_called(tmp_path, format, called):
    write_images(tmp_path / "pets")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    if format == "GIF":  # a palette
        pixels = np.repeat(pixels[:1, :1], 4, 0).repeat(4, 1)
    if format == "JPEG":
        pixels = np.full((4, 4, 3), 77, np.uint8)
    suffix = FORMATS[format] if called == "as it is" else called
    options = {"lossless": True} if format == "WEBP" else {}
    Image.fromarray(pixels).save(
        tmp_path / "pets" / "test" / "ant" / f"new{suffix}", format, **options
    )
    pets = data.load("pets", data_dir=tmp_path)
    np.testing.assert_array_equal(pets.test.input[1], pixels)


def test_the_formats_are_a_list_of_their_own():
    """What hands a file to another program, or is read by few, is not opened, whatever it is called."""
    assert set(_images.FORMATS) == {*FORMATS}
    assert not {"EPS", "PSD", "WMF", "PDF", "SVG"} & set(_images.FORMATS)


def test_a_file_of_another_format_is_not_opened(folder):
    Image.new("RGB", (4, 4)).save(folder / "pets" / "train" / "cat" / "new.png", "PCX")
    with pytest.raises(InputError, match=r"new\.png cannot be read"):
        data.load("pets", data_dir=folder)


def test_of_several_pictures_the_first_is_read(folder):
    frames = [Image.new("RGB", (4, 4), color) for color in ((1, 2, 3), (200, 200, 200))]
    for name in ("new.gif", "new.tif", "new.webp"):
        file = folder / "pets" / "train" / "cat" / name
        frames[0].save(
            file,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if "webp" in name else {}),
        )
    pets = data.load("pets", data_dir=folder)
    assert (pets.train.input[-3:] == (1, 2, 3)).all()


def test_portable_gray_images_have_one_channel(tmp_path):
    write_images(tmp_path / "signs", mode="L", suffix=".pgm")
    assert data.load("signs", data_dir=tmp_path).spec.shape == (4, 4, 1)


def test_images_are_read_at_any_depth_below_their_class(tmp_path, caplog):
    write_images(tmp_path / "deep")
    cat = tmp_path / "deep" / "train" / "cat"
    (cat / "images" / "more").mkdir(parents=True)
    for place, level in (("images/1.JPEG", 11), ("images/more/2.png", 22), ("images/10.png", 33)):
        Image.new("RGB", (4, 4), (level,) * 3).save(cat / place, "PNG")
    deep = data.load("deep", data_dir=tmp_path)
    of_cat = deep.train.input[deep.train.label == 1][:, 0, 0, 0]
    assert of_cat.tolist() == [0, 40, 11, 33, 22], (
        "sorted by path: 0.png 1.png images/1 images/10 images/more/2"
    )
    assert not caplog.records


def test_a_folder_that_holds_itself_is_refused(folder):
    (folder / "pets" / "train" / "cat" / "again").symlink_to(folder / "pets" / "train" / "cat")
    with pytest.raises(InputError, match=r"cat/again is a link to a folder that it lies in"):
        data.load("pets", data_dir=folder)


def test_an_image_too_large_to_be_believed_is_refused_in_one_line(folder, monkeypatch):
    # Which Pillow warns of, and takes for an attack from twice on
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            InputError, match=r"image .*/train/ant/0\.png cannot be read \(Image size \(16 pixels\)"
        ) as error:
            data.load("pets", data_dir=folder)
    assert "\n" not in str(error.value)


ORIENTED = ["JPEG", "PNG", "TIFF", "WEBP"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ORIENTED)
def test_images_are_turned_as_exif_says(tmp_path, format, orientation):
    """Dark upper left quarter of an upright 16×24 image, stored turned or mirrored in each of the eight ways."""
    upright = np.full((16, 24), 200, np.uint8)
    upright[:8, :8] = 20
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright, 1), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    file = tmp_path / f"stored.{format.lower()}"
    Image.fromarray(np.ascontiguousarray(stored)).convert("RGB").save(
        file, format, exif=exif, **options
    )
    assert _images.read_header(file) == ("RGB", (16, 24))
    image = _images.read_file(file, 1, None)
    assert image.shape == (16, 24, 1)
    assert abs(image[..., 0].astype(int) - upright).max() <= (12 if format == "JPEG" else 0)


def test_exif_that_is_damaged_leaves_the_image_as_it_is(tmp_path):
    Image.new("RGB", (4, 6), (9, 9, 9)).save(
        tmp_path / "odd.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff"
    )
    assert _images.read_header(tmp_path / "odd.jpg")[1] == (6, 4)
    assert _images.read_file(tmp_path / "odd.jpg", 3, None).shape == (6, 4, 3)


def test_sizes_are_compared_upright(tmp_path):
    write_images(tmp_path / "pets")
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.new("RGB", (6, 4), (5, 5, 5))
    for split in ("train", "test"):
        for name in ("ant", "cat"):
            for path in (tmp_path / "pets" / split / name).iterdir():
                Image.new("RGB", (4, 6), (7, 7, 7)).save(path)
    lying.save(tmp_path / "pets" / "train" / "cat" / "lying.png", exif=exif)
    assert data.load("pets", data_dir=tmp_path).spec.shape == (6, 4, 3)


def converted(tmp_path, image, **options):
    """Return what a stored image becomes beside color ones."""
    write_images(tmp_path / "pets")
    image.save(
        tmp_path / "pets" / "test" / "ant" / "new.tif"
        if image.mode == "CMYK"
        else new_png(tmp_path),
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return data.load("pets", data_dir=tmp_path).test.input[1]


def new_png(tmp_path):
    return tmp_path / "pets" / "test" / "ant" / "new.png"


def test_images_of_every_mode_become_color(tmp_path):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    for number, (image, options, wanted) in enumerate(
        [
            (palette, {}, (10, 20, 30)),
            (palette, {"transparency": bytes([0, 128])}, (10, 20, 30)),
            (Image.new("RGBA", (4, 4), (10, 20, 30, 0)), {}, (10, 20, 30)),
            (Image.new("LA", (4, 4), (50, 7)), {}, (50, 50, 50)),
            (Image.new("L", (4, 4), 60), {}, (60, 60, 60)),
            (Image.new("1", (4, 4), 1), {}, (255, 255, 255)),
            (Image.new("CMYK", (4, 4), (255, 0, 0, 0)), {}, (0, 255, 255)),
        ]
    ):
        got = converted(tmp_path / str(number), image, **options)
        assert (got == wanted).all(), (image.mode, options, got[0, 0])


@pytest.mark.parametrize(
    ("suffix", "array"), [(".png", np.uint16), (".tif", np.uint16), (".tif", np.float32)]
)
def test_more_than_eight_bits_are_refused(folder, suffix, array):
    Image.fromarray(np.zeros((4, 4), array)).save(folder / "pets" / "test" / "ant" / f"new{suffix}")
    with pytest.raises(
        InputError,
        match=rf"new\{suffix} has more than 8 bits a channel \(mode .*\); convert it to 8",
    ):
        data.load("pets", data_dir=folder)


def write_classes(root: Path, *names: str, splits: tuple[str, ...] = ("train", "test")) -> None:
    """A gray image of a level of its own for each class and split."""
    for split in splits:
        for level, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            Image.new("L", (4, 4), level).save(root / split / name / "0.png")


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["10", "9", "0", "11", "2"], "0 2 9 10 11"),
        (["00010", "9", "00002"], "00002 9 00010"),
        (["10", "9", "b", "2"], "10 2 9 b"),
        (["10", "9.5", "2"], "10 2 9.5"),
        (["10", "²", "2"], "10 2 ²"),
        (["ZZ", "a", "Ä"], "ZZ a Ä"),
    ],
)
def test_names_that_are_all_whole_numbers_are_in_the_order_of_the_numbers(tmp_path, names, ordered):
    write_classes(tmp_path / "signs", *names)
    signs = data.load("signs", data_dir=tmp_path)
    assert " ".join(signs.spec.class_names) == ordered
    assert signs.train.input[:, 0, 0, 0].tolist() == [names.index(name) for name in ordered.split()]


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_names_match_in_either_spelling_of_unicode(tmp_path):
    write_classes(tmp_path / "places", COMPOSED, "bar", splits=("train",))
    write_classes(tmp_path / "places", DECOMPOSED, "bar", splits=("test",))
    places = data.load("places", data_dir=tmp_path)
    assert places.spec.class_names == ("bar", COMPOSED)
    assert places.test.input[:, 0, 0, 0].tolist() == [1, 0]


def test_two_spellings_of_one_name_in_a_split_are_refused(tmp_path):
    write_classes(tmp_path / "places", COMPOSED, DECOMPOSED)
    with pytest.raises(
        InputError, match=f"train has two class folders '{COMPOSED}', in two spellings of Unicode"
    ):
        data.load("places", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_another_name_of_the_test_split(folder, name, caplog):
    tested = data.load("pets", data_dir=folder)
    (folder / "pets" / "test").rename(folder / "pets" / name)
    assert data.fingerprint(data.load("pets", data_dir=folder)) == data.fingerprint(tested)
    assert f"has no test/; its {name}/ is the test split." in caplog.text


def test_beside_a_test_split_another_is_left_alone(folder):
    write_classes(folder / "pets", "cat", "ant", "cow", splits=("val",))
    assert data.load("pets", data_dir=folder).spec.num_classes == 2


def test_classes_of_one_split_alone_are_named_and_counted(folder):
    for name in ("dog", "cow", "eel"):
        (folder / "pets" / "test" / name).mkdir()
    with pytest.raises(
        InputError,
        match=r"class 'cow' is only in test \(and 2 more are in one split alone\); both need",
    ):
        data.load("pets", data_dir=folder)


def test_a_class_without_images_says_what_is_there(folder):
    for path in (folder / "pets" / "train" / "ant").iterdir():
        path.rename(path.with_suffix(".heic"))
        path.with_suffix(".heic").write_bytes(b"\x00\x00\x00\x18ftypheic")
    with pytest.raises(
        InputError, match=r"train/ant has no image \(PNG, .*\), but 0\.heic, 1\.heic\."
    ):
        data.load("pets", data_dir=folder)


def test_the_fingerprint_of_a_file_is_that_of_its_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert data.fingerprint_file(tmp_path / "a") == known
    with pytest.raises(InputError, match=r"file .*/none cannot be read \(No such file"):
        data.fingerprint_file(tmp_path / "none")


def test_a_constant_channel_has_no_zero_standard_deviation():
    assert _dataset.channel_statistics(np.full((3, 2, 2, 1), 255, np.uint8)) == ((1.0,), (1 / 255,))


# --- CIFAR-10 from the binary archive --------------------------------------------------------------------------------


def records(seed: int, count: int) -> bytes:
    random = np.random.default_rng(seed)
    content = random.integers(0, 256, (count, 3073), dtype=np.uint8)
    content[:, 0] = np.arange(count) % 10
    return content.tobytes()


def write_archive(
    path: Path, members: dict[str, bytes] | None = None, per_batch: int = 10
) -> dict[str, bytes]:
    """The official format at a small size: every batch has ``per_batch`` images."""
    names = [*TRAIN, "test_batch.bin"]
    members = {
        **{name: records(seed, per_batch) for seed, name in enumerate(names)},
        **(members or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in {"readme.html": b"<html>", **members}.items():
            if content:
                entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return members


def rows_of(split) -> set[tuple[int, bytes]]:
    return {
        (int(label), image.tobytes()) for label, image in zip(split.label, split.input, strict=True)
    }


def rows_in(*batches: bytes) -> set[tuple[int, bytes]]:
    """Decode the format once more, pixel by pixel and differently from the library."""
    rows = set()
    for batch in batches:
        for start in range(0, len(batch), 3073):
            red, green, blue = (
                batch[start + 1 + 1024 * plane : start + 1 + 1024 * (plane + 1)]
                for plane in range(3)
            )
            rows.add(
                (
                    batch[start],
                    bytes(value for pixel in zip(red, green, blue, strict=True) for value in pixel),
                )
            )
    return rows


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(_cifar_archive, "URL", (tmp_path / "nowhere" / ARCHIVE).as_uri())


@pytest.mark.parametrize("place", [".", "downloads"])
def test_cifar10_from_the_archive(tmp_path, no_network, place):
    pytest.importorskip("tensorflow_datasets")
    members = write_archive(tmp_path / "data" / place / ARCHIVE)
    cifar = data.load("cifar10", data_dir=tmp_path / "data")
    assert cifar.train.input.shape == (50, 32, 32, 3)
    assert rows_of(cifar.train) == rows_in(*(members[name] for name in TRAIN))
    assert rows_of(cifar.test) == rows_in(members["test_batch.bin"])
    assert "tensorflow" not in sys.modules
    assert cifar.spec.modality.mean == (0.4914, 0.4822, 0.4465)
    assert cifar.spec.modality.std == (0.247, 0.243, 0.261)
    assert (cifar.spec.modality.crop_padding, cifar.spec.modality.flip) == (4, True)
    assert cifar.spec.class_names[6] == "frog"
    # A whole folder under its final name, nothing half-written beside it.
    assert [path.name for path in (tmp_path / "data" / "cifar10").iterdir()] == ["1.0.0"]
    assert data.fingerprint(cifar) == data.fingerprint(
        data.load("cifar10", data_dir=tmp_path / "data")
    )


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
        (
            {"data_batch_2.bin": records(0, 3)[:-1]},
            r"data_batch_2\.bin in archive .* 9218 bytes, which are not whole",
        ),
        (
            {"test_batch.bin": b"\x0b" + records(0, 3)[1:]},
            r"test_batch\.bin in archive .* the label 11; labels are 0",
        ),
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
    checksum = hashlib.md5((tmp_path / "server" / ARCHIVE).read_bytes()).hexdigest()
    monkeypatch.setattr(_cifar_archive, "MD5", checksum)
    assert len(data.load("cifar10", data_dir=tmp_path / "data").train.label) == 50
    assert [
        path.name for path in (tmp_path / "data" / "downloads").iterdir() if path.is_file()
    ] == [ARCHIVE]


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


def write_prepared(
    root: Path, version: str = "3.0.2", seed: int = 0, label: int | None = None
) -> _dataset.Arrays:
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
            {
                "name": "train",
                "filepathTemplate": template,
                "numBytes": "1",
                "shardLengths": ["30", "30"],
            },
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
    got = (dataset.train.input, dataset.train.label, dataset.test.input, dataset.test.label)
    return all(np.array_equal(one, other) for one, other in zip(got, arrays[:4], strict=True))


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
    assert (cifar.train.input.dtype, cifar.train.label.dtype) == (np.uint8, np.int32)
    assert cifar.train.valid.all()


def test_training_images_can_stay_on_the_disk(tmp_path, prepared):
    cifar = data.load("cifar10", data_dir=tmp_path, on_disk=True)
    images: Any = cifar.train.input
    assert not isinstance(images, np.ndarray)
    assert (images.shape, images.dtype, images.nbytes) == (
        (60, 32, 32, 3),
        np.uint8,
        prepared.train_image.nbytes,
    )
    rows = np.array([59, 0, 31, 31])  # of both shards
    np.testing.assert_array_equal(images[rows], prepared.train_image[rows])
    np.testing.assert_array_equal(cifar.train.label, prepared.train_label)
    np.testing.assert_array_equal(cifar.test.input, prepared.test_image)
    assert not cache_of(tmp_path).exists()
    resident = data.load("cifar10", data_dir=tmp_path)
    assert data.fingerprint(cifar) == data.fingerprint(resident)
    assert cifar.spec == resident.spec


def test_rows_of_images_on_the_disk(tmp_path, prepared):
    train = data.load("cifar10", data_dir=tmp_path, on_disk=True).train
    holdout, rest = np.array([3, 40]), np.delete(np.arange(60), [3, 40])
    taken, left = splits.take(train, holdout), splits.exclude(train, holdout)
    np.testing.assert_array_equal(taken.input, prepared.train_image[holdout])
    np.testing.assert_array_equal(left.label, prepared.train_label[rest])
    assert not isinstance(left.input, np.ndarray)
    np.testing.assert_array_equal(left.input[np.array([57, 3])], prepared.train_image[[59, 4]])


def test_own_builder_can_stay_on_the_disk(tmp_path, no_network):
    write_archive(tmp_path / ARCHIVE)
    resident = data.load("cifar10", data_dir=tmp_path)
    cifar = data.load("cifar10", data_dir=tmp_path, on_disk=True)
    assert data.fingerprint(cifar) == data.fingerprint(resident)


def test_images_on_the_disk_are_streamed_by_grain_as_they_are(tmp_path, prepared):
    pytest.importorskip("grain")
    images: Any = data.load("cifar10", data_dir=tmp_path, on_disk=True).train.input
    order = np.random.default_rng(0).permutation(60).reshape(6, 10)
    for chunk, rows in zip(streams.ReadAhead(images, order), order, strict=True):
        np.testing.assert_array_equal(chunk, prepared.train_image[rows])


def test_a_damaged_image_on_the_disk_is_named_when_it_is_read(tmp_path, prepared):
    images: Any = data.load("cifar10", data_dir=tmp_path, on_disk=True).train.input
    content = shard(tmp_path).read_bytes()
    start = content.index(b"IDAT")  # of the second shard's first image
    # After its labels were read
    shard(tmp_path).write_bytes(content[:start] + b"XXXX" + content[start + 4 :])
    with pytest.raises(InputError, match=rf"^an image of {tmp_path}/cifar10/3.0.2 is damaged"):
        images[np.array([30])]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "digits",
            {},
            "^data set digits cannot stay on the disk: it is not in records that can be read by row",
        ),
        (
            "cifar10",
            {"image_size": 16},
            "^data set cifar10 cannot stay on the disk: it is to be resized",
        ),
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
@pytest.mark.parametrize(
    "name", ["train.array_record-00001-of-00002", "test.array_record-00000-of-00001"]
)
def test_shard_that_was_cut_short(tmp_path, prepared, name, share):
    cut(shard(tmp_path, name), share)
    with pytest.raises(InputError, match=f"shard .*{name} is damaged or incomplete"):
        data.load("cifar10", data_dir=tmp_path)


def test_shard_cut_at_its_first_block(tmp_path, prepared):
    content = shard(tmp_path).read_bytes()
    # The smallest file that array_record agrees to open
    shard(tmp_path).write_bytes(content[: 1 << 16])
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
    with pytest.raises(
        InputError,
        match=rf"00001-of-00002 .*it holds 30 examples and dataset_info\.json says {count}",
    ):
        data.load("cifar10", data_dir=tmp_path)


def test_label_out_of_range(tmp_path):
    write_prepared(tmp_path, label=10)
    with pytest.raises(InputError, match=r"00001-of-00002 .*a label is outside 0 to 9"):
        data.load("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda content: content["splits"].pop(), "is not a data set that bdjax can read"),
        (
            lambda content: content.update(fileFormat="tfrecord"),
            "is in tfrecord format, which needs TensorFlow",
        ),
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
        cifar.train.input[0] = 0
    assert same(data.load("cifar10", data_dir=tmp_path), prepared)


@pytest.mark.parametrize("field", _dataset.Arrays._fields[:4])
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


def write_cache_by_hand(folder, arrays):
    """Write what the docstring of `_cache` says, without its code, and return the manifest's path."""
    place = folder / "bdjax-cache"
    place.mkdir(parents=True)
    source = folder / "dataset_info.json"
    source.write_text('{"name": "cifar10", "version": "3.0.2"}')
    entries = {}
    for field, array in arrays.items():
        content = io.BytesIO()
        np.save(content, array)
        digest = hashlib.sha256(content.getvalue()).hexdigest()
        (place / f"{field}-{digest[:16]}.npy").write_bytes(content.getvalue())
        entries[field] = {"dtype": array.dtype.str, "shape": list(array.shape), "sha256": digest}
    seen = {source.name: [source.stat().st_size, source.stat().st_mtime_ns]}
    manifest = {"format": 1, "source": seen, "arrays": entries}
    (place / "manifest.json").write_text(json.dumps(manifest))
    return place / "manifest.json"


def test_a_cache_alone_stands_for_its_source(tmp_path, monkeypatch):
    for library in ("tensorflow_datasets", "array_record", "grain"):
        monkeypatch.setitem(sys.modules, library, None)
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (6, 32, 32, 3), np.uint8), np.arange(6, dtype=np.int32)
    arrays = {
        "train_image": image[:4],
        "train_label": label[:4],
        "test_image": image[4:],
        "test_label": label[4:],
    }
    manifest = write_cache_by_hand(tmp_path / "cifar10" / "3.0.2", arrays)
    assert data.is_ready("cifar10", tmp_path)
    for _ in range(2):  # loading leaves it as it is
        read = data.load("cifar10", data_dir=tmp_path)
        np.testing.assert_array_equal(read.train.input, image[:4])
        np.testing.assert_array_equal(read.test.label, label[4:])
    manifest.unlink()
    with pytest.raises(InputError, match=r"needs the extra|not a data set that bdjax can read"):
        data.load("cifar10", data_dir=tmp_path)


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
    arrays = _dataset.Arrays(
        image, np.arange(40, dtype=np.int32), image[:7], np.arange(7, dtype=np.int32)
    )

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
        pytest.skip(
            "set BDJAX_DATA_DIR to a folder with cifar10/<version>/ to test on the real images"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
        yield data.load("cifar10")


def test_cifar10_known_answers(real):
    assert real.train.input.shape == (50_000, 32, 32, 3)
    assert real.test.input.shape == (10_000, 32, 32, 3)
    assert np.bincount(real.train.label).tolist() == [5000] * 10
    assert np.bincount(real.test.label).tolist() == [1000] * 10
    mean, std = _dataset.channel_statistics(np.asarray(real.train.input))
    assert mean == pytest.approx((0.49139968, 0.48215841, 0.44653091), abs=1e-8)
    assert std == pytest.approx((0.24703223, 0.24348513, 0.26158784), abs=1e-8)
