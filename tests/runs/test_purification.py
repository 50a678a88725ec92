"""A purification from a file to a folder: what comes out, what is refused, and what is said."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from bdjax import cli, data, models
from bdjax.checks import InputError
from bdjax.models.foreign import keys, reading, writing
from bdjax.report import purified as report
from bdjax.report.purified import words
from bdjax.runs import (
    chance,
    clean_images,
    distance,
    inversion,
    model_files,
    preparation,
    purification,
    purified_record,
    suspect,
)
from bdjax.runs import request as requests
from bdjax.runs.execution import Execution
from bdjax.runs.purified import PurifiedFolder, differences
from bdjax.runs.request import Request
from bdjax.runs.strongest import Network
from bdjax.train import loop
from bdjax.train.supervised import supervised

ROWS = 200
QUICK = {"defense": {"name": "ft_sam", "epochs": 2}}


@pytest.fixture(scope="module")
def trained():
    """A small network of digits, with its variables."""
    ds = data.load("digits")
    model = models.create("small_cnn", ds.spec, width=4)
    learner = supervised(epochs=8, batch_size=64, learning_rate=0.1)
    key = jax.random.key(0)
    return model, loop.run(key, learner, model, model.init(key), ds.train).variables


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """A folder with the network's file, as PyTorch has it, and images of its own."""
    folder = tmp_path_factory.mktemp("files")
    model, variables = trained
    arrays = keys.state_dict(model, variables)
    named = {f"module.{name}": array for name, array in arrays.items()}
    writing.write_torch(folder / "suspect.pt", named)
    writing.write_backdoorbench(folder / "result.pt", arrays, "small_cnn", 10, img_size=[8, 8, 1])
    ds = data.load("digits")
    image, label = np.asarray(ds.train.input), np.asarray(ds.train.label)
    np.savez(folder / "images.npz", images=image[:ROWS], labels=label[:ROWS])
    np.savez(folder / "few.npz", images=image[:25], labels=label[:25] % 10)
    np.savez(folder / "color.npz", images=image[:ROWS].repeat(3, -1), labels=label[:ROWS])
    swapped = (label[:ROWS] + 1) % 10
    np.savez(folder / "swapped.npz", images=image[:ROWS], labels=swapped)
    return folder


def asked(files, out, **more):
    modality = data.load("digits").spec.modality
    mean, std = str(modality.mean[0]), str(modality.std[0])
    usual = {"values": QUICK, "mean": mean, "std": std, "inversion": False}
    given = {"data": str(files / "images.npz"), **usual, **more}
    file = given.pop("file", files / "suspect.pt")
    return Request(file, out=out, **given)


def purify(request, tell=lambda line: None):
    return purification.purify(request, Execution(request.out, checkpoint_seconds=1e9), tell)


@pytest.fixture(scope="module")
def done(files, tmp_path_factory):
    """A finished purification: its request, its record and what was told."""
    out = tmp_path_factory.mktemp("out") / "clean"
    told = []
    request = asked(files, out, inversion=True)
    return request, purify(request, told.append), told


def test_what_comes_out_goes_back_into_the_network_under_the_names_that_came_in(done, trained):
    request, record, _ = done
    model, before = trained
    came, goes = (reading.read(path) for path in (request.file, request.out / "model.pt"))
    assert list(goes.arrays) == list(came.arrays)
    assert goes.wrappers == came.wrappers == ("module.",)
    loaded = keys.variables(goes, model)
    other = models.load(request.out / "model.safetensors", model)
    jax.tree.map(np.testing.assert_array_equal, loaded, other)
    answer = chance.answers(model, loaded, np.asarray(data.load("digits").test.input))
    assert (answer == data.load("digits").test.label).mean() > 0.8
    moved = {layer["name"]: layer for layer in distance.between(before, loaded)["layers"]}
    assert moved == {layer["name"]: layer for layer in record["weights"]["layers"]}


def test_the_record_counts_images_that_were_not_given(done):
    request, record, told = done
    parts = record["data"]
    assert (parts["given"], parts["choosing"], parts["kept"]) == (130, 30, 40)
    assert record["accuracy"]["before"]["of"] == record["accuracy"]["after"]["of"] == 40
    trials = record["selection"]["trials"]
    values = [trial["value"] for trial in trials]
    assert values == sorted(record["selection"]["values"], reverse=True)[: len(values)]
    chosen = trials[-1]
    described = json.loads((request.out / "config.json").read_text())
    assert described["purified_by"]["rho"] == chosen["value"]
    assert chosen["value"] == record["selection"]["chosen"]
    if record["selection"]["within_budget"]:
        least = record["selection"]["right_before"] - 0.02 * 30
        assert chosen["right"] >= least - 1e-6
        assert all(trial["right"] < least for trial in trials[:-1])
    assert "130 images for the defense, 30 to choose its strength, 40 kept aside" in told


def test_the_triggers_found_before_are_tried_on_both_networks(done):
    _, record, _ = done
    found, smallest = record["inversion"], []
    for one in found["carried"]:
        smallest.append(found["before"]["norm"][one["class"]])
        # Of as many images as in the search, which saw the same
        assert one["before"] / one["of"] == pytest.approx(
            found["before"]["success"][one["class"]], abs=1e-6
        )
        assert 0 <= one["after"] <= one["of"] < found["images"]
    assert smallest == sorted(smallest)
    assert smallest[0] == min(found["before"]["norm"])


def test_the_same_is_finished_already_and_another_is_refused(done):
    request, record, _ = done
    stamp = (request.out / "purified.json").stat().st_mtime_ns
    told = []
    left = request.out / ".purifying"
    left.mkdir()
    assert purify(request, told.append)["accuracy"] == record["accuracy"]
    assert not left.exists()
    assert told[-1].startswith("finished already")
    assert (request.out / "purified.json").stat().st_mtime_ns == stamp
    assert "part" not in record["identity"]
    other = dataclasses.replace(request, seed=1)
    with pytest.raises(InputError, match="holds another purification, of another seed"):
        purify(other)


def test_the_page_and_the_card_say_what_is_known_and_what_is_not(done):
    request, record, _ = done
    lines = report.write(request.out)
    page = (request.out / "report.html").read_text()
    card = (request.out / "README.md").read_text()
    right = record["accuracy"]["after"]["right"]
    for text in ("\n".join(lines), page, card):
        assert f"{right} of 40 images that the defense was not given" in text
        assert "no attack success rate can be given" in text
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert record["suspect"]["sha256"] in page
    assert record["suspect"]["sha256"] in card
    assert page.count("data:image/png") == 6  # three classes, before and after
    assert card.startswith("---\nlibrary_name: bdjax\n")
    assert "license" not in card.partition("\n---\n")[0]
    config = json.loads((request.out / "config.json").read_text())
    assert (config["network"], config["image_shape"]) == ("small_cnn", [8, 8, 1])


def test_an_interrupted_one_is_continued_and_ends_at_the_same_network(done, files, tmp_path):
    request = dataclasses.replace(done[0], out=tmp_path / "clean", inversion=False)
    seen, stop = [], iter([True])
    execution = Execution(
        request.out,
        checkpoint_seconds=0.0,
        on_epoch=lambda *epoch: seen.append(epoch),
        should_stop=lambda: next(stop, False),
    )
    with pytest.raises(loop.Stopped):
        purification.purify(request, execution)
    assert PurifiedFolder(request.out).record() is None
    record = purification.purify(request, dataclasses.replace(execution, should_stop=None))
    assert record["weights"] == done[1]["weights"]
    assert len(seen) == 2 * len(record["selection"]["trials"])  # no epoch is repeated
    assert not (request.out / ".purifying").exists()


def test_another_that_is_unfinished_is_not_deleted(done, tmp_path):
    request = dataclasses.replace(done[0], out=tmp_path / "clean", inversion=False)
    other = request.out / ".purifying" / "0123456789"
    other.mkdir(parents=True)
    (request.out / ".model.pt.4711").write_text("killed")
    PurifiedFolder(request.out).check_free()
    (other / "checkpoint").write_text("hours")
    with pytest.raises(InputError, match=r"another, unfinished: .*--out, or delete .*\.purifying"):
        purify(request)
    assert (other / "checkpoint").read_text() == "hours"


def test_a_file_of_backdoorbench_comes_out_as_one(files, tmp_path):
    request = asked(files, tmp_path / "clean", file=files / "result.pt", values={"defense": "none"})
    record = purify(request)
    state = reading.read(request.out / "model.pt")
    assert state.format.startswith("BackdoorBench")
    assert state.beside["img_size"] == (8, 8, 1)
    assert record["weights"]["whole"] == 0
    assert record["accuracy"]["changed_answers"] == 0
    assert 'weights_only=True)["model"]' in words.into_pytorch(record)


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"file": "nothing.pt"}, "cannot be read"),
        ({"file": "."}, "is a folder"),
        ({"data": "nowhere"}, "data must be a folder of <class>/ folders"),
        ({"data": "few.npz"}, "data must have 30 images or more"),
        ({"data": "color.npz"}, "data must have 1 channel, as the network takes; .* has 3"),
        ({"data": "digits_scenes"}, "data must be images with one class each"),
        ({"mean": None, "std": None}, "normalization is not known.*--mean 0.5 --std 0.5"),
        ({"mean": "1", "std": None}, "std must be given too"),
        ({"aside": 1.0}, "aside must be at least 0 and below 1"),
        ({"values": {"defense": "grad_prune"}}, "defense must be one of .* sees the trigger"),
        ({"values": {"defense": {"rhoo": 1}}}, "unknown key 'defense.rhoo'"),
        ({"values": {"attack": "badnets"}}, "unknown key 'attack'"),
        ({"values": {"model": {"width": 8}}}, "does not fit the network"),
        ({"data": "swapped.npz"}, "right on . of 40 clean images.*--class-order 1,2,3,4"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(files, tmp_path, change, wrong):
    for name in ("file", "data"):
        if name in change and (files / change[name]).exists():
            change = {**change, name: str(files / change[name])}
    if "file" in change:
        change = {**change, "file": files / change["file"]}
    with pytest.raises(InputError, match=wrong) as refused:
        purify(asked(files, tmp_path / "clean", **change))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "clean").exists()


def test_a_folder_that_is_nearly_right_is_named(tmp_path):
    of_class = tmp_path / "my_images" / "cat"
    of_class.mkdir(parents=True)
    (of_class / "1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"did you mean '.*my_images'\?"):
        clean_images.load(str(tmp_path / "my_image"))
    with pytest.raises(
        InputError, match=r"cat needs .* got \[\], and files: perhaps the folder above"
    ):
        clean_images.load(str(of_class), num_classes=2)


def test_a_folder_of_somebody_elses_is_left_alone(files, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"out must be a new folder.*thesis\.tex"):
        purify(asked(files, tmp_path))
    (tmp_path / "thesis.tex").rename(tmp_path / "README.md")
    with pytest.raises(InputError, match="out must be a new folder"):
        purify(asked(files, tmp_path))
    assert (tmp_path / "README.md").read_text() == "mine"


def test_ways_are_compared_on_the_same_images(files, tmp_path):
    prepared = preparation.prepare(asked(files, tmp_path))
    split = prepared.images.split
    parts = clean_images.Parts(split, None, split)
    wrong = (np.asarray(split.label) + 1) % 10  # as if those kept aside were all hard
    purification._check_better_than_chance(
        prepared,
        np.where(np.arange(len(wrong)) % 5 < 2, np.asarray(split.label), wrong),
        parts,
    )


# --- Parts ------------------------------------------------------------------------------------------------------------


def test_wrong_numbers_of_classes_and_channels_are_found_by_trying(trained):
    model, variables = trained
    ds = data.load("digits")
    split = ds.train._replace(label=(np.asarray(ds.train.label) + 1) % 10)
    best = chance.tried(model, variables, split)[0]
    assert best.order == (9, 0, 1, 2, 3, 4, 5, 6, 7, 8)
    assert best.share > 0.8
    assert "--class-order 1,2,3,4,5,6,7,8,9,0" in chance.words(best)


def test_chance_is_what_a_guess_gives():
    even, one_sided = np.arange(100) % 10, np.zeros(100, int)
    assert chance.is_at_chance(14, even, 10)  # 10 + 1.645 · 3 = 14.9
    assert not chance.is_at_chance(15, even, 10)
    assert chance.is_at_chance(100, one_sided, 10)  # whoever always says 0 is right as often


def test_distance_is_relative_to_where_a_layer_was():
    before = {"params": {"a": {"kernel": np.array([3.0, 4.0])}, "b": {"bias": np.zeros(2)}}}
    after = {"params": {"a": {"kernel": np.array([3.0, 3.0])}, "b": {"bias": np.array([0.0, 2.0])}}}
    found = distance.between(before, after)
    assert [layer["relative"] for layer in found["layers"]] == [0.2, 2.0]
    assert found["whole"] == pytest.approx(5**0.5 / 5)


def test_gray_images_are_given_to_a_network_of_three_channels():
    images = clean_images.load("digits")
    fitting = clean_images.fitting(images, 3, 10)
    assert fitting.spec.shape == (8, 8, 3)
    assert fitting.split.input.shape[-1] == len(fitting.spec.modality.mean) == 3
    assert fitting.notes


def test_the_parts_have_every_class_and_share_no_image():
    images = clean_images.load("digits")
    parts = clean_images.divide(jax.random.key(0), images, aside=0.2, choosing=0.2)
    counts = [len(part.label) for part in parts]
    assert counts == [877, 210, 260]  # of 1,347: ⌊0.2 n / 10⌋ of each class, twice
    for part in parts:
        assert set(np.unique(part.label)) == set(range(10))


def test_near_duplicates_are_in_one_part():
    images = clean_images.load("digits")
    assert images.of_training
    group = np.arange(len(images.split.label)) // 5 * 10 + np.asarray(images.split.label)
    label = group % 10
    marked = np.asarray(images.split.input).copy()
    marked[:, 0, 0, 0], marked[:, 0, 1, 0] = group // 256, group % 256
    split = images.split._replace(input=marked, label=label)
    images = images._replace(split=split, group=group)
    parts = clean_images.divide(jax.random.key(0), images, aside=0.2, choosing=0.2)
    seen = [
        {int(a) * 256 + int(b) for a, b in part.input[:, 0, :2, 0].astype(int)} for part in parts
    ]
    assert sum(map(len, seen)) == len(set().union(*seen)) == len(np.unique(group))
    assert sum(len(part.label) for part in parts) == len(label)


def test_images_of_one_class_are_refused():
    images = clean_images.load("digits")
    label = np.full_like(np.asarray(images.split.label), 3)
    with pytest.raises(InputError, match="images of two classes or more; all of digits are of"):
        clean_images.fitting(images._replace(split=images.split._replace(label=label)), 1, 10)


def test_names_that_are_no_text_are_readable_in_the_record(done, monkeypatch):
    request, _, _ = done
    images = clean_images.load(request.data)._replace(name="a\udc80", notes=("\udc80",))
    part = images.split
    said = purified_record._data(images, clean_images.Parts(part, None, part))
    assert (said["name"], said["notes"]) == (r"a\udc80", [r"\udc80"])
    spec = data.load("digits").spec
    task = dataclasses.replace(spec.task, class_names=("\udc80", *map(str, range(9))))
    spec = dataclasses.replace(spec, task=task)
    model = models.create("small_cnn", spec, width=2)
    assert model_files.config("small_cnn", {}, model)["class_names"][0] == r"\udc80"
    monkeypatch.setattr(inversion._inversion, "invert", lambda *_: None)
    monkeypatch.setattr(inversion._inversion_words, "sentences", lambda found, names: names[0])
    monkeypatch.setattr(inversion, "_carried", lambda *of: [])
    monkeypatch.setattr(inversion, "_plain", lambda found, names: names)
    monkeypatch.setattr(inversion, "_arrays", lambda *_: {})
    network = Network(model, model.init(jax.random.key(0)))
    config = requests.resolve(request, {"name": "small_cnn"})
    found, _ = inversion.compare(config, network, network, part)
    assert found["words"]["before"] == [r"\udc80"]


def test_a_strength_is_auto_unless_a_value_or_a_preset_is_given(tmp_path):
    def strength(**defense):
        request = Request(tmp_path, "digits", tmp_path, {"defense": defense})
        return requests.resolve(request, {"name": "small_cnn"}).strength

    assert strength(name="ft_sam").path == "defense.rho"
    assert strength(name="ft_sam", rho=2.0) is None
    assert strength(name="ft_sam", preset="reference_code") is None
    assert strength(name="ft") is None


def test_the_part_of_a_file_decides_the_outcome(files, tmp_path):
    file = files / "result.pt"
    parted = asked(files, tmp_path, file=file, part="model", values={"defense": "none"})
    one, other = (
        preparation.prepare(request).identity
        for request in (parted, dataclasses.replace(parted, part=None))
    )
    assert differences(one, other) == ["part"]


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_what_is_not_finite_is_seen_in_every_precision(tmp_path, kind):
    array = np.array([1, np.nan], np.float32).astype(jax.numpy.dtype(kind))
    state = reading.StateDict(tmp_path, "", {"a": array, "b": np.arange(2)}, {}, (), "", {}, ())
    assert suspect.not_finite(state) == ["a"]


def test_a_file_that_is_recognized_says_so(files):
    found = suspect.look(files / "suspect.pt")
    assert found.recognized.name == "small_cnn"
    assert found.image_size is None  # which no weight tells
    assert suspect.look(files / "result.pt").image_size == 8


# --- The commands -----------------------------------------------------------------------------------------------------


def test_inspect_prints_what_is_in_the_file(files, capsys):
    assert cli.main(["inspect", str(files / "suspect.pt")]) == 0
    said = capsys.readouterr().out
    lines = {line.split("  ")[0]: line.partition("  ")[2].strip() for line in said.splitlines()}
    assert lines["network"] == "small_cnn width=4"
    assert lines["taken off"] == "module."
    assert lines["classes"] == "10"
    assert lines["normalization"].startswith("not known")
    assert cli.main(["inspect", str(files / "result.pt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["network"]["image_size"] == [8, 8]
    assert found["beside"]["model_name"] == "small_cnn"


def test_inspect_prints_no_control_characters_of_a_file(files, tmp_path, capsys):
    state = reading.read(files / "suspect.pt")
    arrays = {name: np.array(array) for name, array in state.arrays.items()}
    writing.write_torch(tmp_path / "a.pt", arrays, {"x\x1b[2J": 1})
    assert cli.main(["inspect", str(tmp_path / "a.pt")]) == 0
    said = capsys.readouterr().out
    assert r"beside: x\x1b[2J" in said
    assert "\x1b" not in said


def test_inspect_refuses_what_is_no_file_of_weights_in_a_line(tmp_path, capsys):
    (tmp_path / "text.pt").write_text("no weights")
    for name in ("text.pt", "nothing.pt"):
        assert cli.main(["inspect", str(tmp_path / name)]) == cli.EXIT_MISTAKE
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1


def test_purify_says_that_it_is_finished(done, capsys):
    request, _, _ = done
    options = ["--data", request.data, "--out", str(request.out)]
    how = ["--mean", request.mean, "--std", request.std]
    wanted = ["--defense.epochs", "2"]
    assert cli.main(["purify", str(request.file), *options, *how, *wanted]) == 0
    said = capsys.readouterr()
    assert "finished already" in said.err
    assert "Not known:" in said.out
    assert cli.main(["purify", *wanted, str(request.file), *options, *how]) == cli.EXIT_MISTAKE
    assert "FILE must stand before them" in capsys.readouterr().err
