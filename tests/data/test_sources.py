"""Data sets in the layouts of their official files, at a small size: order and labels by hand, and damage.

Real ones, where `BDJAX_GTSRB_DIR` and `BDJAX_TINY_IMAGENET_DIR` name folders that hold them.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bdjax import data
from bdjax.checks import InputError
from bdjax.data.sources import _archives, _trees, gtsrb, tiny_imagenet

MISSING = "https://127.0.0.1:9/nowhere"


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    """No test writes into the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


def picture(level: int, size: tuple[int, int] = (20, 15), mode: str = "RGB", kind: str = "PPM"):
    """An image of one gray level, as a file."""
    file = io.BytesIO()
    Image.new(mode, size, level if mode == "L" else (level, level, level)).save(file, kind)
    return file.getvalue()


def write_folder(root: Path, content: dict[str, bytes]) -> None:
    for name, file in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(file)


def write_zip(path: Path, content: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, file in content.items():
            archive.writestr(name, file)


def levels(images) -> list[int]:
    return np.asarray(images)[:, 0, 0, 0].tolist()


# --- GTSRB -----------------------------------------------------------------------------------------------------------

SIGNS = {
    (0, 0, 0): 10,
    (0, 0, 1): 11,
    (0, 1, 0): 12,
    (2, 0, 0): 20,
    (10, 0, 0): 30,
    (10, 7, 29): 31,
}
TRUTH = {0: 16, 1: 1, 2: 38}


def of_training(folder: str = "{:05}", kind: str = "ppm") -> dict[str, bytes]:
    encoder = {"ppm": "PPM", "png": "PNG"}[kind]
    return {
        f"{folder.format(label)}/{track:05}_{frame:05}.{kind}": picture(level, kind=encoder)
        for (label, track, frame), level in SIGNS.items()
    }


def of_test() -> dict[str, bytes]:
    return {f"{number:05}.ppm": picture(100 + number) for number in reversed(range(3))}


def truth(columns: str = "Filename;Width;Height;ClassId") -> bytes:
    rows = [f"{number:05}.ppm;20;15;{label}" for number, label in TRUTH.items()]
    return "\r\n".join([columns, *rows]).encode()


def under(folder: str, content: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": file for name, file in content.items()}


def unpacked(root: Path) -> None:
    write_folder(root / "GTSRB/Final_Training/Images", of_training())
    write_folder(root / "GTSRB/Final_Test/Images", of_test())
    (root / "GTSRB/GT-final_test.csv").write_bytes(truth())


def zipped(root: Path) -> None:
    training = under("GTSRB/Final_Training/Images", of_training())
    write_zip(root / "GTSRB_Final_Training_Images.zip", {"GTSRB/Readme.txt": b"", **training})
    images = under("GTSRB/Final_Test/Images", of_test())
    listed = {"GTSRB/Final_Test/Images/GT-final_test.test.csv": b"Filename;Width;Height\r\n"}
    write_zip(root / "GTSRB_Final_Test_Images.zip", {**images, **listed})
    write_zip(root / "downloads/GTSRB_Final_Test_GT.zip", {"GT-final_test.csv": truth()})


def of_kaggle(root: Path) -> None:
    write_folder(root / "gtsrb/Train", of_training("{}", "png"))
    write_folder(root / "gtsrb/Test", of_test())
    rows = [f"20,15,{label},Test/{number:05}.ppm" for number, label in TRUTH.items()]
    (root / "gtsrb/Test.csv").write_text("\n".join(["Width,Height,ClassId,Path", *rows]))


@pytest.mark.parametrize("write", [unpacked, zipped, of_kaggle])
def test_gtsrb_in_each_of_its_layouts(tmp_path, write, caplog):
    write(tmp_path)
    signs = data.load("gtsrb", data_dir=tmp_path)
    assert signs.spec.shape == (32, 32, 3)
    assert signs.spec.num_classes == 43
    assert signs.train.label.tolist() == [0, 0, 0, 2, 10, 10]
    assert levels(signs.train.input) == [10, 11, 12, 20, 30, 31]
    assert signs.train_group is not None
    assert signs.train_group.tolist() == [0, 0, 1, 2, 3, 4]
    assert signs.test.label.tolist() == [16, 1, 38]
    assert levels(signs.test.input) == [100, 101, 102]
    modality = signs.spec.modality
    assert (modality.mean, modality.std) == ((0.0,) * 3, (1.0,) * 3)
    assert (modality.crop_padding, modality.flip) == (4, False)
    assert "6 training and 3 test images; the final data set has 39,209 and 12,630" in caplog.text


def test_gtsrb_is_cached_for_each_size_with_its_tracks(tmp_path, monkeypatch):
    unpacked(tmp_path)
    first = data.load("gtsrb", data_dir=tmp_path)
    assert data.load("gtsrb", data_dir=tmp_path, image_size=48).spec.shape == (48, 48, 3)
    monkeypatch.setattr(gtsrb, "_read", lambda *_: pytest.fail("it is cached"))
    again = data.load("gtsrb", data_dir=tmp_path)
    assert data.fingerprint(again) == data.fingerprint(first)
    assert np.array_equal(again.train_group, first.train_group)
    monkeypatch.undo()
    stamp = data.stamp("gtsrb", data_dir=tmp_path)
    (tmp_path / "GTSRB/Final_Training/Images/00002/00000_00000.ppm").write_bytes(picture(77))
    assert data.stamp("gtsrb", data_dir=tmp_path) != stamp
    assert 77 in levels(data.load("gtsrb", data_dir=tmp_path).train.input)


def test_gtsrb_resizes_the_whole_image_with_antialiasing(tmp_path):
    unpacked(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "GTSRB/Final_Training/Images/00000/00000_00000.ppm")
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(data.load("gtsrb", data_dir=tmp_path).train.input[0], expected)


@pytest.mark.parametrize("place", ["GTSRB-Training_fixed.zip", "gtsrb/GTSRB/Training/00000/a.ppm"])
def test_the_smaller_archive_of_gtsrb_is_named(tmp_path, place):
    write_folder(tmp_path, {place: b""})
    with pytest.raises(InputError, match="has 26,640 of GTSRB's 39,209 training images") as error:
        data.load("gtsrb", data_dir=tmp_path)
    assert "put GTSRB_Final_Training_Images.zip from https://" in str(error.value)


def without_truth(root: Path) -> None:
    (root / "GTSRB/GT-final_test.csv").write_bytes(truth("Filename;Width;Height;Class"))


def without_image(root: Path) -> None:
    (root / "GTSRB/Final_Test/Images/00001.ppm").unlink()


def of_class_43(root: Path) -> None:
    write_folder(root / "GTSRB/Final_Training/Images", {"00043/00000_00000.ppm": picture(1)})


def of_test_class_43(root: Path) -> None:
    path = root / "GTSRB/GT-final_test.csv"
    path.write_bytes(truth().replace(b";38", b";43"))


def with_damaged_list(root: Path) -> None:
    path = root / "GTSRB/GT-final_test.csv"
    path.write_bytes(truth() + b";" + b"1" * 200_000)  # more than a field may have


def with_dangling_link(root: Path) -> None:
    (root / "GTSRB/Final_Training/Images/00000/new.ppm").symlink_to(root / "none")


def with_circular_link(root: Path) -> None:
    (root / "GTSRB/Final_Training/Images/00000/again").symlink_to(root / "GTSRB")


def with_link_to_itself(root: Path) -> None:
    path = root / "GTSRB/Final_Training/Images/00000/again"
    path.symlink_to(path)


def with_cut_image(root: Path) -> None:
    path = root / "GTSRB/Final_Training/Images/00010/00007_00029.ppm"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (without_truth, r"GT-final_test\.csv has no list with the classes"),
        (without_image, r"3 test images of GTSRB are listed and 2 are in .*only listed is 00001"),
        (of_class_43, "has a class 43; those of GTSRB are 0 to 42"),
        (of_test_class_43, r"has the file '00002\.ppm' of class '43'"),
        (with_damaged_list, r"GT-final_test\.csv in .* must be a list .* cannot be read \(field"),
        (with_dangling_link, r"new\.ppm is a link that leads nowhere"),
        (with_circular_link, r"is a link to a folder that it lies in"),
        (with_link_to_itself, r"again is a link that leads nowhere"),
        (with_cut_image, r"image 00010/00007_00029\.ppm of .* cannot be read"),
    ],
)
def test_damaged_gtsrb_is_refused_in_one_line(tmp_path, harm: Callable[[Path], None], words):
    unpacked(tmp_path)
    harm(tmp_path)
    with pytest.raises(InputError, match=words) as error:
        data.load("gtsrb", data_dir=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", [0.5, 0.999])
def test_an_archive_that_was_cut_short_or_altered(tmp_path, place):
    zipped(tmp_path)
    path = tmp_path / "GTSRB_Final_Training_Images.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * place)])
    with pytest.raises(InputError, match="is damaged or cut short"):
        data.load("gtsrb", data_dir=tmp_path)
    middle = whole.index(b"P6") + 100  # within the pixels of an image, which are stored as they are
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(InputError, match=r"is damaged or cut short .*CRC"):
        data.load("gtsrb", data_dir=tmp_path)


@pytest.mark.parametrize(("place", "value"), [(6, 99), (28, 0)])
def test_a_damaged_table_of_contents_is_refused(tmp_path, place, value):
    write_zip(tmp_path / "a.zip", {"image": b"x"})
    whole = bytearray((tmp_path / "a.zip").read_bytes())
    whole[whole.index(b"PK\x01\x02") + place] = value
    (tmp_path / "a.zip").write_bytes(whole)
    with pytest.raises(InputError, match=r"a\.zip is damaged or cut short"):
        _trees.Zip(tmp_path / "a.zip")


def test_members_with_paths_that_lead_out_are_never_written(tmp_path):
    path = tmp_path / "inner" / "evil.zip"
    write_zip(path, {"../../outside.ppm": b"x", "/etc/hosts.ppm": b"y"})
    tree = _trees.Zip(path)
    assert [tree.read(name) for name in tree.names()] == [b"x", b"y"]
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "inner", path]


def test_a_member_that_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    write_zip(tmp_path / "a.zip", {"bomb": bytes(2000)})
    monkeypatch.setattr(_trees, "LARGEST", 1000)
    with pytest.raises(InputError, match=r"bomb in archive .* claims to have 2000 bytes"):
        _trees.Zip(tmp_path / "a.zip").read("bomb")


def test_a_download_is_kept_only_with_its_checksum(tmp_path, capsys):
    (tmp_path / "server.zip").write_bytes(b"content")
    url = (tmp_path / "server.zip").as_uri()
    wrong = _archives.Archive("a.zip", url, "0" * 32, 1)
    with pytest.raises(InputError, match="is not the official archive"):
        _archives.find_or_download(tmp_path / "d", wrong, "a")
    assert not list((tmp_path / "d").rglob("*.*"))
    right = wrong._replace(checksum=hashlib.sha256(b"content").hexdigest())
    assert _archives.find_or_download(tmp_path / "d", right, "a").read_bytes() == b"content"
    assert f"downloading {url} (1 MB)" in capsys.readouterr().err
    away = right._replace(name="b.zip", url=MISSING)
    with pytest.raises(InputError, match=rf"put b\.zip from {MISSING} into"):
        _archives.find_or_download(tmp_path / "d", away, "b")


@pytest.fixture(scope="module")
def real_gtsrb():
    if not (folder := os.environ.get("BDJAX_GTSRB_DIR")):
        pytest.skip("BDJAX_GTSRB_DIR names no folder with GTSRB")
    return data.load("gtsrb", data_dir=folder)


def test_real_gtsrb_has_its_counts_and_first_labels(real_gtsrb):
    counts = np.bincount(real_gtsrb.train.label)
    assert (len(real_gtsrb.train.label), len(real_gtsrb.test.label)) == (39_209, 12_630)
    assert counts[[0, 1, 2, 33, 42]].tolist() == [210, 2220, 2250, 689, 240]
    assert real_gtsrb.test.label[:5].tolist() == [16, 1, 38, 33, 11]
    assert np.bincount(real_gtsrb.train_group).tolist().count(30) == 1306  # and one of 29


# --- Tiny-ImageNet ---------------------------------------------------------------------------------------------------

WNIDS = ("n02000000", "n01000000", "n03000000")  # wnids.txt is not sorted


def tiny() -> dict[str, bytes]:
    files = {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": b""}
    for number, wnid in enumerate(WNIDS):
        for row in range(2):
            gray = {"mode": "L"} if row else {}
            name = f"train/{wnid}/images/{wnid}_{row}.JPEG"
            files[name] = picture(40 * number + 10 * row, (64, 64), kind="JPEG", **gray)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b""
    for number in (10, 9):
        files[f"val/images/val_{number}.JPEG"] = picture(100 + number, (64, 64), kind="JPEG")
    rows = ["val_9.JPEG\tn03000000\t0\t0\t1\t1", "val_10.JPEG\tn01000000\t0\t0\t1\t1"]
    return {**files, "val/val_annotations.txt": "\n".join(rows).encode()}


@pytest.mark.parametrize("archive", [True, False])
def test_tiny_imagenet_has_its_classes_in_the_order_of_their_numbers(tmp_path, archive, caplog):
    content = under("tiny-imagenet-200", tiny())
    if archive:
        write_zip(tmp_path / "tiny-imagenet-200.zip", content)
    else:
        write_folder(tmp_path, content)
    tiny_one = data.load("tiny_imagenet", data_dir=tmp_path)
    assert tiny_one.spec.class_names == ("n01000000", "n02000000", "n03000000")
    assert tiny_one.spec.shape == (64, 64, 3)
    assert tiny_one.train.label.tolist() == [0, 0, 1, 1, 2, 2]
    assert levels(tiny_one.train.input) == [40, 50, 0, 10, 80, 90]
    assert levels(tiny_one.test.input) == [109, 110]
    assert tiny_one.test.label.tolist() == [2, 0]
    assert "3 classes, 6 training and 2 test images; the whole has 200" in caplog.text


def test_tiny_imagenet_with_fewer_folders_is_what_is_there(tmp_path):
    content = {name: file for name, file in tiny().items() if "n03" not in name}
    write_folder(tmp_path / "tiny-imagenet-200", content)
    tiny_one = data.load("tiny_imagenet", data_dir=tmp_path)
    assert tiny_one.spec.num_classes == 2
    assert tiny_one.test.label.tolist() == [0]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("val/val_annotations.txt", b"", r"has the image val_10\.JPEG in val/, which"),
        ("val/val_annotations.txt", None, r"has no val/val_annotations\.txt"),
        ("train/n02000000/images/n02000000_1.JPEG", b"\xff\xd8", "cannot be read"),
    ],
)
def test_damaged_tiny_imagenet_is_refused(tmp_path, name, content, words):
    write_folder(tmp_path / "tiny-imagenet-200", tiny())
    path = tmp_path / "tiny-imagenet-200" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        data.load("tiny_imagenet", data_dir=tmp_path)


def test_real_tiny_imagenet_has_its_first_labels():
    if not (folder := os.environ.get("BDJAX_TINY_IMAGENET_DIR")):
        pytest.skip("BDJAX_TINY_IMAGENET_DIR names no folder with Tiny-ImageNet")
    found = data.load("tiny_imagenet", data_dir=folder)
    assert found.spec.shape == (64, 64, 3)
    assert list(found.spec.class_names) == sorted(found.spec.class_names)
    listed = (Path(tiny_imagenet.files(Path(folder))[0]) / "val/val_annotations.txt").read_text()
    wnids = [line.split("\t")[1] for line in listed.splitlines()]
    assert [found.spec.class_names[label] for label in found.test.label[:50]] == wnids[:50]


# --- the others ------------------------------------------------------------------------------------------------------


def test_cifar100_from_its_archive_has_the_fine_labels(tmp_path):
    records = np.random.default_rng(0).integers(0, 256, (3, 3074), dtype=np.uint8)
    records[:, 0], records[:, 1] = 7, [99, 0, 5]
    write = {"train.bin": records.tobytes(), "test.bin": records[:1].tobytes()}
    with tarfile.open(tmp_path / "cifar-100-binary.tar.gz", "w:gz") as tar:
        for name, content in write.items():
            entry = tarfile.TarInfo(f"cifar-100-binary/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    found = data.load("cifar100", data_dir=tmp_path)
    assert found.train.label.tolist() == [99, 0, 5]
    assert found.spec.class_names[99] == "worm"
    assert found.spec.class_names[0] == "apple"
    assert len(set(found.spec.class_names)) == 100
    assert (
        found.train.input[1, 0, :2].tolist()
        == records[1, [[2, 1026, 2050], [3, 1027, 2051]]].tolist()
    )
    with pytest.raises(InputError, match="cannot stay on the disk"):
        data.load("cifar100", data_dir=tmp_path, on_disk=True)


@pytest.mark.parametrize("target", ["cifar-100-binary/train.bin", "none"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_in_the_archive_of_cifar100_is_no_content(tmp_path, target, kind):
    with tarfile.open(tmp_path / "cifar-100-binary.tar.gz", "w:gz") as tar:
        entry = tarfile.TarInfo("cifar-100-binary/train.bin")
        entry.type, entry.linkname = kind, target
        tar.addfile(entry)
    with pytest.raises(InputError, match=r"has no train\.bin"):
        data.load("cifar100", data_dir=tmp_path)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path) -> np.ndarray:
    folder.mkdir(parents=True)
    image = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    label = np.arange(10, dtype=np.uint8)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(image)))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(label))
    (folder / "t10k-images.idx3-ubyte").write_bytes(idx(image[::-1].copy()))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(label[::-1].copy()))
    return image


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST/raw"), ("fashion_mnist", "fashion_mnist")]
)
def test_files_in_the_format_of_mnist(tmp_path, name, folder):
    image = write_mnist(tmp_path / folder)
    found = data.load(name, data_dir=tmp_path)
    assert np.array_equal(found.train.input[..., 0], image)
    assert found.test.label.tolist() == list(range(9, -1, -1))
    assert found.spec.modality.mean == pytest.approx([image.mean() / 255])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train-labels-idx1-ubyte", idx(np.zeros(9, np.uint8)), "has 10 images, and there are 9"),
        ("train-labels-idx1-ubyte", idx(np.zeros(10, np.uint8))[:-1], "has 17 bytes where its"),
        ("t10k-images.idx3-ubyte", idx(np.zeros((10, 28), np.uint8)), "begins with 0x802"),
        ("train-images-idx3-ubyte.gz", b"\x1f\x8b\x08", "is damaged or cut short"),
    ],
)
def test_damaged_files_in_the_format_of_mnist(tmp_path, name, content, words):
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        data.load("mnist", data_dir=tmp_path)


def test_svhn_from_its_files_has_zero_for_their_ten(tmp_path):
    sio = pytest.importorskip("scipy.io")
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 3), dtype=np.uint8)
    for split in ("train", "test"):
        label = np.array([[10], [1], [9]], np.uint8)
        sio.savemat(tmp_path / f"{split}_32x32.mat", {"X": image, "y": label})
    found = data.load("svhn", data_dir=tmp_path)
    assert found.train.label.tolist() == [0, 1, 9]
    assert np.array_equal(found.test.input[2], image[..., 2])
    (tmp_path / "test_32x32.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(InputError, match=r"test_32x32\.mat is damaged or cut short"):
        data.load("svhn", data_dir=tmp_path)


def test_imagenet_of_the_listed_classes_is_decoded_by_row(tmp_path, caplog):
    for number, wnid in enumerate(WNIDS):
        files = {
            f"{wnid}/{row}.JPEG": picture(50 * number + row, (30, 20), kind="JPEG")
            for row in range(2)
        }
        write_folder(tmp_path / "imagenet/train", files)
        write_folder(tmp_path / "imagenet/val", files)
    (tmp_path / "imagenet/wnids.txt").write_text("n03000000 shark\nn02000000\n")
    whole = data.load("imagenet", data_dir=tmp_path, image_size=8)
    assert whole.spec.class_names == ("n02000000", "n03000000")
    assert levels(whole.train.input) == [0, 1, 100, 101]
    assert whole.train.input.shape == (4, 8, 8, 3)
    by_row = data.load("imagenet", data_dir=tmp_path, image_size=8, on_disk=True)
    assert levels(by_row.train.input[np.array([3, 0])]) == [101, 0]
    assert data.fingerprint(by_row) == data.fingerprint(whole)
    assert "imagenet: 2 of its 1000 classes" in caplog.text
    assert "image folder" not in caplog.text
    (tmp_path / "imagenet/wnids.txt").write_text("n03000000\nn09000000\n")
    with pytest.raises(InputError, match="has 'n09000000', which has no folder"):
        data.load("imagenet", data_dir=tmp_path)


def test_the_middle_of_an_image_is_cut_out_of_it(tmp_path):
    from bdjax.data.sources import _images

    ramp = np.repeat(np.arange(48, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    middle = _images.read_middle(tmp_path / "ramp.png", 14)  # whose shorter side stays 16
    assert np.array_equal(middle, ramp[1:15, 17:31])


def test_a_set_that_tfds_has_not_prepared_is_said_how_to_make(tmp_path):
    with pytest.raises(InputError, match=r"no data set 'tfds:kmnist': .*download_and_prepare"):
        data.load("tfds:kmnist", data_dir=tmp_path)
    for name in ("tfds:", "tfds:../x", "tfds:/x"):
        with pytest.raises(InputError, match="must name a data set after tfds:"):
            data.load(name, data_dir=tmp_path)


def test_any_set_that_tfds_prepared(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    images = [picture(level, (8 + level, 9), kind="PNG") for level in range(4)]

    class Odd(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image, label = tfds.features.Image(), tfds.features.ClassLabel(names=["no", "yes"])
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(3), "validation": self._generate_examples(1)}

        def _generate_examples(self, count=0):
            for row in range(count):
                yield row, {"image": io.BytesIO(images[row]), "label": row % 2}

    Odd(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(InputError, match="not of one size; pass image_size"):
        data.load("tfds:odd", data_dir=tmp_path)
    found = data.load("tfds:odd", data_dir=tmp_path, image_size=8)
    assert (found.spec.name, found.spec.class_names) == ("tfds:odd", ("no", "yes"))
    rows = zip(levels(found.train.input), found.train.label.tolist(), strict=True)
    assert sorted(rows) == [(0, 0), (1, 1), (2, 0)]
    assert levels(found.test.input) == [0]
    by_row = data.load("tfds:odd", data_dir=tmp_path, image_size=8, on_disk=True)
    assert data.fingerprint(by_row) == data.fingerprint(found)
