"""A poisoned data set as files: the same bits as a run's, read back as they were, whole or not at all."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from bdjax import cli, data
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.devices import placement
from bdjax.runs import config as configs
from bdjax.runs import plans, poisoned_folder, schema, show
from bdjax.runs.run import Execution
from bdjax.train import loop

CLASSES = ("ant", "cat", "dog")


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Random color images of three classes: 10, 12 and 14 to train on, three each to test on."""
    root = tmp_path_factory.mktemp("data") / "pets"
    random = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        for split, count in (("train", 10 + 2 * number), ("test", 3)):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index:02}.png")
    return root


def resolve(*words):
    return configs.resolve(schema.overrides(words))


def config_of(pets, *words):
    small = ("--training.batch_size", "4", "--defense.batch_size", "2", "--holdout.per_class", "2")
    return resolve(
        "--data",
        str(pets),
        "--attack.target_label",
        "cat",
        "--attack.poison_rate",
        "0.25",
        *small,
        *words,
    )


def bdjax(pets, folder, *words):
    return cli.main(
        ["poison", "badnets", "--data", str(pets), "--out", str(folder), "--quiet", *words]
    )


@pytest.fixture(scope="module")
def written(pets, tmp_path_factory):
    """A set as it was made, and the folder that it was written to."""
    folder = tmp_path_factory.mktemp("out") / "poisoned"
    made = poisoned_folder.make(config_of(pets), Execution(folder.parent / "runs"))
    poisoned_folder.write(made, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["poisoned"], (
        "nothing is trained or left"
    )
    return made, folder


def rows(folder, split):
    with (folder / "labels.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["file"].startswith(f"{split}/")]


def test_the_images_are_those_that_a_run_of_the_config_trains_and_tests_on(pets, written):
    made, _ = written
    plan = plans.prepare(config_of(pets))
    poisoned, triggered = plans.poison_training(plan), plans.triggered_test(plan)
    for mine, theirs in ((made.train, poisoned), (made.test_triggered, triggered)):
        np.testing.assert_array_equal(mine.image, theirs.visible.input)
        np.testing.assert_array_equal(mine.label, theirs.visible.label)
        np.testing.assert_array_equal(mine.original_label, theirs.original_label)
        np.testing.assert_array_equal(mine.is_poisoned, theirs.is_poisoned)
    assert made.train.is_poisoned.sum() == 9
    np.testing.assert_array_equal(made.test_triggered.counts, triggered.visible.valid)
    assert made.test_triggered.counts.sum() == 6


def test_the_folder_loads_as_an_image_folder_to_the_same_bits(written):
    made, folder = written
    again = data.load(str(folder))
    assert again.spec.class_names == CLASSES
    for split, part in ((again.train, made.train), (again.test, made.test)):
        # Rows are sorted by class, and by row within it
        order = np.argsort(part.label, kind="stable")
        np.testing.assert_array_equal(split.input, part.image[order])
        np.testing.assert_array_equal(split.label, part.label[order])


def test_images_with_the_trigger_are_in_the_folders_of_their_true_labels(written, tmp_path):
    made, folder = written
    shutil.copytree(folder / "train", tmp_path / "both" / "train")
    shutil.copytree(folder / "test_triggered", tmp_path / "both" / "test")
    test = data.load(str(tmp_path / "both")).test
    np.testing.assert_array_equal(test.input, made.test_triggered.image)
    np.testing.assert_array_equal(test.label, made.test_triggered.original_label)


@pytest.mark.parametrize("split", ["train", "test", "test_triggered"])
def test_the_table_and_the_arrays_say_the_same_of_each_image(written, split):
    made, folder = written
    part = getattr(made, split)
    with np.load(folder / "poisoned.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays[f"{split}_image"], part.image)
        for number, row in enumerate(rows(folder, split)):
            assert np.array_equal(np.asarray(Image.open(folder / row["file"])), part.image[number])
            for column in ("label", "original_label", "is_poisoned", "counts"):
                assert int(row[column]) == int(getattr(part, column)[number])
                if f"{split}_{column}" in arrays:
                    assert int(row[column]) == int(arrays[f"{split}_{column}"][number])
        assert arrays["class_names"].tolist() == list(CLASSES)
        assert arrays["train_is_poisoned"].sum() == 9


def test_the_folder_says_how_it_was_made(written, pets):
    _, folder = written
    manifest = json.loads((folder / "poison.json").read_text())
    assert (manifest["attack"], manifest["target_class"]) == ("badnets", "cat")
    assert manifest["counts"] == {"train": 36, "poisoned": 9, "test": 9, "counts": 6}
    assert manifest["fingerprint"] == data.fingerprint(data.load(str(pets)))
    again = configs.resolve(schema.read(folder / "config.yaml"))
    assert again.run_id == config_of(pets).run_id
    assert again.data.data_dir is None


def test_the_command_writes_once_and_says_so(pets, tmp_path, capsys):
    folder = tmp_path / "new" / "poisoned"
    words = ("--attack.target_label", "cat")
    assert bdjax(pets, folder, *words) == 0
    assert capsys.readouterr().out == (
        f"{folder}: 36 training images, 4 of them poisoned; 9 test images, with and without the trigger, of which 6 "
        f"count for the attack success rate, target class cat\n"
    )
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert bdjax(pets, folder, *words, "--defense", "ft", "--training.epochs", "7") == 0, (
        "which do not matter to it"
    )
    assert capsys.readouterr().out == f"finished already: {folder}\n"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [path.name for path in folder.parent.iterdir()] == ["poisoned"]


def complaint(capsys):
    error = capsys.readouterr().err
    assert error.startswith("bdjax: ")
    assert error.count("\n") == 1
    return error


def test_another_folder_is_not_written_over(pets, written, tmp_path, capsys):
    _, folder = written
    assert bdjax(pets, folder) == 2
    assert "holds a poisoned data set of another config; name another folder" in complaint(capsys)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("words")
    assert bdjax(pets, tmp_path / "mine") == 2
    assert "out must be a new or an empty folder" in complaint(capsys)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "words"
    assert bdjax(pets, tmp_path / "mine" / "thesis.tex") == 2
    assert "is a file" in complaint(capsys)
    for word in (".", "/", ""):
        assert bdjax(pets, word) == 2
        assert "out must" in complaint(capsys)


def test_an_empty_folder_is_filled(pets, tmp_path):
    (tmp_path / "empty").mkdir()
    assert bdjax(pets, tmp_path / "empty") == 0
    assert (tmp_path / "empty" / "poison.json").is_file()


@pytest.mark.parametrize("harm", ["labels.csv", "poisoned.npz", "png", "bit"])
def test_a_folder_that_is_no_longer_whole_is_refused_by_name(written, pets, tmp_path, harm):
    _, whole = written
    folder = shutil.copytree(whole, tmp_path / "copy")
    assert poisoned_folder.finished(config_of(pets), folder)
    file = folder / {"png": rows(folder, "test")[3]["file"], "bit": "poisoned.npz"}.get(harm, harm)
    if harm == "bit":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    with pytest.raises(
        InputError,
        match=rf"is no longer whole: {file.relative_to(folder)} is missing or has changed",
    ):
        poisoned_folder.finished(config_of(pets), folder)


def test_data_that_changed_are_another_set(pets, written, tmp_path):
    _, folder = written
    other = shutil.copytree(pets, tmp_path / "pets")
    Image.new("RGB", (8, 8)).save(other / "train" / "ant" / "00.png")
    with pytest.raises(
        InputError, match="holds a poisoned data set of another fingerprint; name another folder"
    ):
        poisoned_folder.finished(config_of(other), folder)


def test_a_stop_leaves_nothing(written, tmp_path):
    made, _ = written
    asked = iter([False] * 5 + [True])
    with pytest.raises(loop.Stopped, match="stopped after 5 of 54 images, none of which is kept"):
        poisoned_folder.write(made, tmp_path / "a" / "poisoned", should_stop=lambda: next(asked))
    assert list((tmp_path / "a").iterdir()) == []


def test_a_full_disk_leaves_nothing_and_is_one_line(pets, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bdjax.files.atomic.write_arrays", full)
    assert bdjax(pets, tmp_path / "a" / "poisoned") == 1
    assert "there is no room left" in complaint(capsys)
    assert list((tmp_path / "a").iterdir()) == []


def test_of_two_processes_at_once_one_is_first(written, tmp_path):
    made, whole = written
    shutil.copytree(whole, tmp_path / "poisoned")
    poisoned_folder.write(made, tmp_path / "poisoned")
    assert [path.name for path in tmp_path.iterdir()] == ["poisoned"]
    (tmp_path / "poisoned" / "labels.csv").unlink()
    with pytest.raises(InputError, match=r"labels\.csv"):
        poisoned_folder.write(made, tmp_path / "poisoned")


def test_images_that_do_not_fit_on_the_device_are_poisoned_piece_by_piece(
    written, pets, tmp_path, monkeypatch
):
    made, _ = written
    monkeypatch.setattr(placement, "choose_place", lambda asked, split: "host")
    monkeypatch.setattr(poisoned_folder, "_CHUNK", 10)
    pieces = poisoned_folder.make(config_of(pets), Execution(tmp_path))
    for field in made.train._fields:
        np.testing.assert_array_equal(getattr(pieces.train, field), getattr(made.train, field))


def test_an_attack_that_poisons_each_batch_anew_has_no_set(pets, tmp_path, capsys):
    words = ["poison", "wanet", "--data", str(pets), "--out", str(tmp_path / "poisoned")]
    assert cli.main(words) == 2
    assert "attack wanet controls the training and poisons each of its batches anew" in complaint(
        capsys
    )
    assert not (tmp_path / "poisoned").exists()


@pytest.mark.parametrize("name", ["digits_scenes", "digits_clips"])
def test_what_is_no_image_of_a_class_has_no_folder(name, tmp_path, capsys):
    words = ["--data", name, "--out", str(tmp_path / "out")]
    assert cli.main(["poison", "badnets", *words]) == 2
    assert (
        f"data must be images in classes, to be folders of them; {name}" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_a_trigger_that_is_learned_is_trained_as_it_is_to_be_shown(pets, tmp_path):
    words = ["--attack", "lf", "--attack.passes", "1", "--attack.images", "4", "--model.width", "2"]
    config = config_of(pets, *words, "--training.epochs", "1")
    made = poisoned_folder.make(config, Execution(tmp_path / "runs"))
    shown = show.show(config, Execution(tmp_path / "runs"))
    found = [np.flatnonzero((made.test.image == clean).all((1, 2, 3)))[0] for clean in shown.clean]
    assert len(found) == 8
    np.testing.assert_array_equal(made.test_triggered.image[found], shown.triggered)
    assert (shown.triggered != shown.clean).any()


def test_clean_labels_stay(pets, tmp_path):
    made = poisoned_folder.make(
        config_of(pets, "--attack", "sig", "--attack.frequency", "2"), Execution(tmp_path)
    )
    np.testing.assert_array_equal(made.train.label, made.train.original_label)
    assert set(made.train.label[made.train.is_poisoned]) == {1}


def test_a_held_out_holdout_is_not_in_it(pets, tmp_path):
    made = poisoned_folder.make(config_of(pets, "--holdout.held_out", "true"), Execution(tmp_path))
    assert len(made.train.label) == 36 - 6


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (CLASSES, CLASSES),
        (tuple("0123456789"), tuple("0123456789")),
        (("0", "2", "10"), ("0_0", "1_2", "2_10")),
        (("zebra", "ant"), ("0_zebra", "1_ant")),
        (("a/b", "c"), ("0_a_b", "1_c")),
        (("A", "a"), ("0_A", "1_a")),
        (("-x", "..", "é"), ("0_-x", "1___", "2__")),
        ((), ("0", "1", "2")),
    ],
)
def test_the_names_of_the_folders_sort_as_the_labels(names, folders):
    spec = image_spec("any", (8, 8, 3), len(names) or 3, (0.5,), (0.5,), names)
    assert poisoned_folder.class_folders(spec) == list(folders) == sorted(folders)
