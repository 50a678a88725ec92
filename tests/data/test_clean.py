"""Clean images of one's own: which class a folder is, arrays by their names, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bdjax import data
from bdjax.checks import InputError


def write(root: Path, classes: dict[str, list[str]], mode: str = "RGB") -> Path:
    """Images of the level that is their place in the list, class by class."""
    level = 0
    for name, files in classes.items():
        (root / name).mkdir(parents=True)
        for file in files:
            Image.new(mode, (4, 4), level if mode == "L" else (level,) * 3).save(root / name / file)
            level += 1
    return root


def levels(images) -> list[int]:
    return np.asarray(images)[:, 0, 0, 0].tolist()


def test_a_folder_of_classes_is_all_training_rows(tmp_path):
    pets = data.load_clean(write(tmp_path / "pets", {"cat": ["a.png", "b.png"], "ant": ["c.png"]}))
    assert pets.spec.class_names == ("ant", "cat")
    assert pets.train.label.tolist() == [0, 1, 1]
    assert levels(pets.train.input) == [2, 0, 1]
    assert pets.test.input.shape == (0, 4, 4, 3)
    assert pets.test.label.shape == pets.test.valid.shape == (0,)


def test_the_usual_layout_gives_its_training_images(tmp_path, caplog):
    for split in ("train", "test"):
        write(tmp_path / "pets" / split, {"cat": ["a.png"], "ant": ["b.png"]})
    pets = data.load_clean(tmp_path / "pets")
    assert pets.train.label.tolist() == [0, 1]
    assert "its train/ is read" in caplog.text


def test_a_class_may_be_called_train(tmp_path):
    vehicles = data.load_clean(write(tmp_path / "v", {"train": ["a.png"], "car": ["b.png"]}))
    assert vehicles.spec.class_names == ("car", "train")


def test_folders_are_named_by_the_numbers_of_a_networks_classes(tmp_path):
    root = write(tmp_path / "some", {"10": ["a.png"], "2": ["b.png"]})
    found = data.load_clean(root, num_classes=43)
    assert found.train.label.tolist() == [2, 10]
    assert found.spec.num_classes == 43
    assert data.load_clean(root).train.label.tolist() == [0, 1]


def test_folders_are_named_as_a_networks_classes_are(tmp_path):
    root = write(tmp_path / "some", {"cat": ["a.png"], "ant": ["b.png"]})
    found = data.load_clean(root, class_names=("dog", "cat", "ant"))
    assert found.train.label.tolist() == [1, 2]
    assert levels(found.train.input) == [0, 1]
    assert found.spec.class_names == ("dog", "cat", "ant")


def test_as_many_folders_of_other_names_are_taken_in_order_and_a_line_says_so(tmp_path, caplog):
    root = write(tmp_path / "some", {"b": ["a.png"], "a": ["b.png"]})
    assert data.load_clean(root, num_classes=2).train.label.tolist() == [0, 1]
    assert "a is class 0, b class 1" in caplog.text


def test_gray_images_become_what_the_network_takes(tmp_path):
    root = write(tmp_path / "gray", {"a": ["a.png"], "b": ["b.png"]}, mode="L")
    assert data.load_clean(root).spec.shape == (4, 4, 1)
    assert data.load_clean(root, channels=3, image_size=6).spec.shape == (6, 6, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": 3}, "has 2 class folders and the network has 3 classes; name each"),
        (
            {"class_names": ("cat", "dog")},
            r"class folder .*/ant is none of the network's 2 classes",
        ),
        ({"num_classes": 0}, "num_classes must be 1 or more"),
        ({"image_size": 0}, "image_size must be 1 or more"),
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"num_classes": 3, "class_names": ("a",)}, "got 1 names for 3 classes"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, options, words):
    root = write(tmp_path / "pets", {"cat": ["a.png"], "ant": ["b.png"]})
    with pytest.raises(InputError, match=words):
        data.load_clean(root, **options)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no", "is not there"),
        ("a.txt", "is a file of another kind"),
        ("empty", "needs two class folders"),
    ],
)
def test_a_path_that_is_nothing_is_refused(tmp_path, name, words):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=words):
        data.load_clean(tmp_path / name)


def test_images_of_backdoorbench_are_told_by_their_rows(tmp_path):
    root = write(tmp_path / "bd", {"0": ["70.png", "8.png"], "10": ["9.png"]})
    found = data.load_indexed(root, num_classes=43)
    assert found.index.tolist() == [8, 9, 70]
    assert found.split.label.tolist() == [0, 10, 0]
    assert levels(found.split.input) == [1, 2, 0]
    assert data.load_indexed(root).split.label.tolist() == [0, 10, 0]


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({"0": ["a.png"], "1": ["1.png"]}, "must be called <label>/<row>.png"),
        ({"0": ["1.png"], "1": ["01.png"]}, "row 01 is there twice"),
        ({"cat": ["1.png"], "dog": ["2.png"]}, "must be called"),
    ],
)
def test_images_that_do_not_say_their_row_are_refused(tmp_path, classes, words):
    with pytest.raises(InputError, match=words):
        data.load_indexed(write(tmp_path / "bd", classes))


@pytest.mark.parametrize("names", [("00000", "00001"), ("a", "b")])
def test_folders_that_are_not_called_by_the_numbers_of_their_classes_are_refused(tmp_path, names):
    root = write(tmp_path / "bd", {name: [f"{row}.png"] for row, name in enumerate(names)})
    with pytest.raises(InputError, match="must be called by the numbers of their classes, 0 to 1,"):
        data.load_indexed(root, num_classes=2)


# --- arrays ----------------------------------------------------------------------------------------------------------

X = np.arange(4 * 2 * 2, dtype=np.uint8).reshape(4, 2, 2)
Y = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("x_{}", "y_{}"),
        ("{}_images", "{}_labels"),
        ("{}_image", "{}_label"),
        ("X_{}", "targets_{}"),
    ],
)
def test_arrays_by_their_usual_names(tmp_path, image, label):
    named = {
        form.format(split): array
        for form, array in ((image, X), (label, Y))
        for split in ("train", "test")
    }
    np.savez_compressed(tmp_path / "mine.npz", **named)
    mine = data.load("mine.npz", data_dir=tmp_path)
    assert (mine.spec.name, mine.spec.shape, mine.spec.num_classes) == ("mine.npz", (2, 2, 1), 2)
    assert np.array_equal(mine.train.input[..., 0], X)
    assert mine.test.label.tolist() == Y.tolist()
    for name, array in named.items():
        (tmp_path / "pairs").mkdir(exist_ok=True)
        np.save(tmp_path / "pairs" / f"{name}.npy", array)
    assert data.fingerprint(data.load("pairs", data_dir=tmp_path)) == data.fingerprint(mine)


def test_arrays_without_a_split_are_clean_images(tmp_path):
    np.savez(tmp_path / "a.npz", images=X, labels=Y[:, None], class_names=np.array(["a", "b"]))
    found = data.load_clean(tmp_path / "a.npz")
    assert (found.train.label.tolist(), found.spec.class_names) == (Y.tolist(), ("a", "b"))
    assert data.load_clean(tmp_path / "a.npz", num_classes=5, channels=3).spec.num_classes == 5
    with pytest.raises(InputError, match="has no training images"):
        data.load(str(tmp_path / "a.npz"))


def test_labels_of_arrays_get_the_numbers_that_a_network_has_for_their_names(tmp_path):
    np.savez(tmp_path / "a.npz", images=X, labels=Y, class_names=np.array(["cat", "ant"]))
    found = data.load_clean(tmp_path / "a.npz", class_names=("ant", "bee", "cat"))
    assert found.train.label.tolist() == [2, 0, 2, 0]
    assert found.spec.class_names == ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (["ant", "cats"], "must be the network's; 'cats' is none of the network's 2 classes"),
        (["ant", "ant"], "must differ from one another; 'ant' is there twice"),
        (["ant"], "has the label 1; there are 1 classes"),
    ],
)
def test_names_of_arrays_that_are_no_classes_of_a_network_are_refused(tmp_path, own, words):
    np.savez(tmp_path / "a.npz", images=X, labels=Y, class_names=np.array(own))
    with pytest.raises(InputError, match=words):
        data.load_clean(tmp_path / "a.npz", class_names=("ant", "cat"))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_train": X / 255, "y_train": Y}, "must be uint8 from 0 to 255, got float64"),
        ({"x_train": X, "y_train": Y[:3]}, "must have as many rows, got 4 and 3"),
        ({"x_train": X, "y_train": Y + 1}, "class 0 has none; labels are 0, 1"),
        ({"x_train": X, "y_train": Y - 1}, "must be classes from 0, got -1 to 0"),
        ({"x_train": X, "y_train": Y / 2}, "must be whole numbers"),
        ({"x_train": X}, "has x_train and no labels for it"),
        ({"x_train": X, "train_x": X, "y_train": Y}, "one array of each, got x_train and train_x"),
        ({"x_train": np.zeros((4, 3, 8, 8), np.uint8), "y_train": Y}, "put the channels last"),
        (
            {"x_train": np.array([object()] * 4), "y_train": Y},
            "must be numbers, got Python objects",
        ),
        ({"pixels": X}, r"needs image and label"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=words):
        data.load_clean(tmp_path / "a.npz")


def test_a_header_is_believed_only_where_the_file_is_as_long(tmp_path):
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "labels.npy", Y)
    np.save(tmp_path / "a" / "images.npy", X)
    whole = (tmp_path / "a" / "images.npy").read_bytes()
    (tmp_path / "a" / "images.npy").write_bytes(
        whole.replace(b"(4, 2, 2)", b"(9999999,2,2)".ljust(13))
    )
    with pytest.raises(InputError, match=r"images in .* is damaged"):
        data.load_clean(tmp_path / "a")


def damaged_table(place: int, value: int, **arrays: np.ndarray) -> bytes:
    """Return an archive with one byte changed in the first entry of its table of contents."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    whole = bytearray(file.getvalue())
    whole[whole.index(b"PK\x01\x02") + place] = value
    return bytes(whole)


# The version that it takes to read it; an empty name, and so a wrong extra field
@pytest.mark.parametrize(("place", "value"), [(6, 99), (28, 0)])
def test_a_damaged_table_of_contents_is_refused_in_a_line(tmp_path, place, value):
    (tmp_path / "a.npz").write_bytes(damaged_table(place, value, images=X, labels=Y))
    with pytest.raises(InputError, match=r"a\.npz is damaged or no \.npz file") as error:
        data.load_clean(tmp_path / "a.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", range(40, 440, 25))
def test_a_flipped_bit_in_a_file_of_arrays_is_found_or_harmless(tmp_path, place):
    np.savez(tmp_path / "a.npz", images=X, labels=Y)
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    whole[place] ^= 4
    (tmp_path / "a.npz").write_bytes(whole)
    try:
        found = data.load_clean(tmp_path / "a.npz")
    except InputError:
        pass
    else:
        assert np.array_equal(found.train.input[..., 0], X)
        assert found.train.label.tolist() == Y.tolist()
