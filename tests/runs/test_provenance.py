"""Of which data a run is: whatever changes on the disk afterwards is seen, named, and never reported as the old run."""

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from bdjax import cli, data, report, saved
from bdjax.analysis import _findings
from bdjax.checks import InputError
from bdjax.files import atomic
from bdjax.runs import config as configs
from bdjax.runs import inputs, plans, provenance, schema
from bdjax.runs.folder import SMOOTHNESS, RunFolder

pytestmark = pytest.mark.usefixtures("no_cache_of_the_user")

CLASSES = ("bar", "left")
SIZES = (
    "--model.width",
    "2",
    "--training.epochs",
    "1",
    "--training.batch_size",
    "8",
    "--holdout",
    "0.5",
)
DEFENSE = ("--defense", "ft", "--defense.epochs", "1", "--defense.batch_size", "8")


def paint(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(file)


def make(folder: Path) -> Path:
    """Write 24 small images of two classes as the data set ``set``, and two pictures beside it."""
    for number in range(24):
        split = "train" if number < 16 else "test"
        paint(folder / "set" / split / CLASSES[number % 2] / f"{number:02}.png", number)
    paint(folder / "red.png", 100)
    paint(folder / "blue.png", 101)
    return folder


def words(data: Path, *more: str) -> list[str]:
    picture = ("--attack", "blended", "--attack.trigger_image", str(data / "trigger.png"))
    return ["--data", "set", "--data.data_dir", str(data), *picture, *SIZES, *DEFENSE, *more]


def call(out: Path, data: Path, *more: str, command: str = "run") -> int:
    return cli.main([command, *words(data, *more), "--out", str(out)])


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, Path]:
    """Data, and a folder of finished runs with a trigger picture."""
    data = make(tmp_path_factory.mktemp("data"))
    shutil.copy(data / "red.png", data / "trigger.png")
    out = data / "runs"
    assert call(out, data) == 0
    return data, out


@pytest.fixture
def copied(ran, tmp_path, monkeypatch) -> tuple[Path, Path]:
    """The same data at the same place of a folder of one's own, where the picture's path is part of the config."""
    shutil.rmtree(tmp_path)
    shutil.copytree(ran[0], tmp_path)
    shutil.rmtree(tmp_path / "runs")
    out = tmp_path / "runs"
    assert call(out, tmp_path, "--quiet") == 0
    return tmp_path, out


def defended(out: Path) -> report.Record:
    return next(record for record in report.load([out]) if record.config["defense"]["name"] == "ft")


def refused(capsys) -> str:
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


# --- what has not changed --------------------------------------------------------------------------------------------


def test_a_run_that_is_finished_says_so_and_reads_nothing(ran, capsys, monkeypatch):
    data, out = ran
    capsys.readouterr()
    monkeypatch.setattr(inputs, "_load", lambda *_: pytest.fail("the data are read"))
    assert call(out, data) == 0
    none, ft = (file.parent.name for file in _files(out))
    assert capsys.readouterr().err == f"finished already: {none}, {ft}\n"


def _files(out: Path) -> list[Path]:
    """Return the records of no defense and of fine-tuning, in that order."""
    return sorted(out.glob("set-*/record.json"), key=lambda file: "-none-" not in file.parent.name)


def test_files_that_only_look_otherwise_are_read_once_more(copied, capsys, monkeypatch):
    data, out = copied
    for file in data.glob("set/*/*/*.png"):
        os.utime(file, (1, 1))
    before = [file.read_bytes() for file in _files(out)]
    assert call(out, data) == 0
    assert "finished already" in capsys.readouterr().err
    assert [file.read_bytes() for file in _files(out)] == before
    monkeypatch.setattr(inputs, "_load", lambda *_: pytest.fail("the data are read"))
    assert call(out, data, "--quiet") == 0


def test_the_same_data_elsewhere_are_the_same(copied, tmp_path_factory, capsys):
    data, out = copied
    other = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(data / "set", other / "set", copy_function=shutil.copyfile)
    assert call(out, data, "--data.data_dir", str(other)) == 0
    assert "finished already" in capsys.readouterr().err


def test_content_of_the_same_size_and_time_has_another_stamp(tmp_path):
    file = tmp_path / "set" / "train" / "bar" / "0.bmp"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"red")
    os.utime(file, (1, 1))
    before = data.stamp("set", data_dir=tmp_path)
    assert data.stamp("set", data_dir=tmp_path) == before
    file.write_bytes(b"sea")
    os.utime(file, (1, 1))
    assert data.stamp("set", data_dir=tmp_path) != before


# --- what has --------------------------------------------------------------------------------------------------------


def test_another_picture_of_the_same_name_is_never_taken_for_the_trigger(copied, capsys):
    data, out = copied
    shutil.copy(data / "blue.png", data / "trigger.png")
    record = defended(out)
    # The run itself; and another defense of the same victim
    for more in ((), ("--defense.epochs", "2")):
        assert call(out, data, *more) == 2
        err = refused(capsys)
        assert "the data have changed since" in err
        assert f"attack.trigger_image {data / 'trigger.png'}" in err
    for load in (saved.restore, saved.subject):
        with pytest.raises(InputError, match=r"attack\.trigger_image .*trigger\.png"):
            load(record)
    for command in (["analyze", "history"], ["smoothness"]):
        assert cli.main([*command, str(out), "--quiet"]) == 2
        assert "attack.trigger_image" in refused(capsys)
    assert _findings.read_findings(record, "history") is None
    shutil.copy(data / "red.png", data / "trigger.png")
    assert call(out, data) == 0
    assert "finished already" in capsys.readouterr().err
    assert saved.restore(record).plan.inputs.fingerprint["files"].keys() == {"attack.trigger_image"}


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_image_that_was_exchanged_is_seen(copied, capsys, split):
    data, out = copied
    (file, *_) = (data / "set" / split / "bar").iterdir()
    paint(file, 200)
    for command in ("run", "sweep"):
        assert call(out, data, command=command) == 2
        err = refused(capsys)
        assert "the data have changed since" in err
        assert f"the {'training' if split == 'train' else 'test'} images" in err
    with pytest.raises(InputError, match="the data have changed"):
        saved.restore(defended(out))


def test_another_folder_of_the_same_name_is_other_data(copied, tmp_path_factory, capsys):
    data, out = copied
    other = make(tmp_path_factory.mktemp("other"))
    paint(other / "set" / "test" / "bar" / "16.png", 300)
    assert call(out, data, "--data.data_dir", str(other)) == 2
    assert "the test images" in refused(capsys)


def test_a_run_that_was_not_finished_is_not_continued_with_other_data(copied, capsys):
    data, out = copied
    defended(out).file.unlink()
    paint(data / "set" / "train" / "bar" / "00.png", 200)
    assert call(out, data) == 2
    assert "the training images" in refused(capsys)


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_a_rerun_sets_aside_what_was_made_of_other_data(copied, capsys, command):
    data, out = copied
    old = {record.run_id: record.content["metrics"] for record in report.load([out])}
    for file in (data / "set").glob("test/*/*.png"):
        paint(file, int(file.stem) + 500)
    assert call(out, data, "--changed-data", "rerun", "--quiet", command=command) == 0
    (aside,) = out.glob("data-*")
    assert {record.run_id: record.content["metrics"] for record in report.load([aside])} == old
    assert [path.name for path in (aside / "victims").iterdir()] == [
        path.name for path in (out / "victims").iterdir()
    ]
    new = [RunFolder(out / name).record() for name in old]
    config = configs.resolve(schema.overrides(words(data)))
    assert {json.dumps(record["data"]["fingerprint"]) for record in new} == {
        json.dumps(inputs.load(config).fingerprint)
    }
    capsys.readouterr()
    assert call(out, data, "--changed-data", "rerun", command=command) == 0
    assert "finished already" in capsys.readouterr().err


class Killed(BaseException):
    """Stands for a signal that nobody can handle."""


@pytest.mark.slow
def test_a_rerun_that_is_killed_while_it_sets_aside_is_gone_on_with_and_loses_nothing(
    copied, capsys
):
    data, out = copied
    whole = {file.relative_to(out): file.read_bytes() for file in _kept(out)}
    for file in (data / "set").glob("test/*/*.png"):
        paint(file, int(file.stem) + 500)
    for move in range(40):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "rename", _stopping_after(move % 4))
            try:
                code = call(out, data, "--changed-data", "rerun", "--quiet")
            except Killed:
                continue
        assert code == 0
        break
    (aside,) = out.glob("data-*")
    assert {file.relative_to(aside): file.read_bytes() for file in _kept(aside)} == whole
    assert move > 2
    assert {record.run_id for record in report.load([aside])} == {
        record.run_id for record in report.load(_runs(out))
    }


def _kept(out: Path) -> list[Path]:
    return [file for file in out.rglob("*") if file.is_file() and file.name != ".lock"]


def _runs(out: Path) -> list[Path]:
    return list(out.glob("set-*"))


def _stopping_after(count: int):
    """Return `Path.rename` that is killed after so many moves."""
    moves = iter(range(count))

    def rename(path: Path, target: Path) -> None:
        if next(moves, None) is None:
            raise Killed
        os.rename(path, target)

    return rename


def test_an_unknown_word_is_refused(ran, capsys):
    data, out = ran
    assert call(out, data, "--changed-data", "rerum") == 2
    assert "changed must be one of refuse, rerun; got 'rerum' (did you mean 'rerun'?)" in refused(
        capsys
    )


def test_a_record_that_does_not_say_of_which_data_it_is_cannot_be_restored(ran):
    record = defended(ran[1])
    data = {key: value for key, value in record.content["data"].items() if key != "fingerprint"}
    with pytest.raises(InputError, match=r"record\.json does not say of which data it is"):
        saved.restore(report.Record(record.folder, {**record.content, "data": data}))


# --- what is of another run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_the_record_of_another_run_is_not_taken(copied, capsys, command):
    data, out = copied
    none, ft = _files(out)
    shutil.copy(none, ft)
    assert call(out, data, command=command) == 2
    assert (
        f"{ft} is damaged (it is the record of {none.parent.name}); delete it to make it again"
        in refused(capsys)
    )


@pytest.mark.parametrize("where", ["victims/*", "set-blended-ft-*"])
def test_the_checkpoint_of_another_run_is_not_taken(copied, capsys, where):
    data, out = copied
    assert call(out, data, "--seed", "1", "--quiet") == 0
    first, second = sorted(out.glob(where))
    for file in out.glob("set-*/record.json"):
        file.unlink()
    for folder in second.glob("checkpoints*"):
        shutil.rmtree(folder)
        shutil.copytree(first / folder.name, folder)
    codes = [call(out, data, "--seed", seed, "--quiet") for seed in ("0", "1")]
    assert sorted(codes) == [0, 2]
    assert (
        f"it belongs to {'victim' if where == 'victims/*' else 'run'} {first.name}"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("more", [(), ("--seeds", "2")])
def test_the_checkpoint_of_a_defense_of_another_victim_is_not_taken(
    copied, capsys, monkeypatch, more
):
    """It leaves out what is made again of the victim: two victims would be mixed without a word."""
    data, out = copied
    command = {"command": "sweep" if more else "run"}
    assert call(out, data, *more, "--quiet", **command) == 0
    defended = [*out.glob("set-blended-ft-*/record.json")]
    assert len(defended) == (2 if more else 1)

    def again() -> int:
        for file in defended:
            file.unlink()
        shutil.rmtree(out / "victims")
        return call(out, data, *more, "--quiet", **command)

    assert again() == 0  # a victim that is made again has the same bits
    usual = plans.key_for
    monkeypatch.setattr(plans, "key_for", lambda *words: jax.random.fold_in(usual(*words), 1))
    assert again() == 2
    said = capsys.readouterr().err
    assert "it belongs to run set-blended-ft-" in said
    assert ", stage 0, seed 0, victim " in said
    assert "delete it to start over" in said
    assert said.count("\n") == 1


def test_findings_and_curves_of_another_run_are_not_taken(copied, capsys):
    _, out = copied
    assert (
        cli.main(["analyze", "history", str(out), "--figures", str(out / "figures"), "--quiet"])
        == 0
    )
    none, ft = (file.parent for file in _files(out))
    shutil.copy(none / "analysis-history.npz", ft)
    capsys.readouterr()
    assert (
        cli.main(["analyze", "history", str(out), "--figures", str(out / "figures"), "--quiet"])
        == 2
    )
    assert f"is damaged (it is what history found of {none.name})" in refused(capsys)
    atomic.write_json(ft / SMOOTHNESS, {"run": none.name, "settings": {}})
    assert cli.main(["report", str(out), "--smoothness"]) == 2
    assert f"is damaged (it is of the run {none.name})" in refused(capsys)


def test_a_run_without_files_has_the_fingerprint_that_it_always_had():
    config = configs.resolve({})
    assert inputs.load(config).fingerprint == plans.prepare(config).inputs.fingerprint
    assert inputs.load(config).fingerprint.keys() == {"train", "test"}
    assert provenance.is_of_these_data(RunFolder(Path("nowhere")), config)
