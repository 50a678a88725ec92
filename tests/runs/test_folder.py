"""The folder of runs: what lies where, what is done, and what is set aside."""

import os
from pathlib import Path

import pytest

from bdjax.runs.folder import LoopFolder, RunFolder, RunsFolder


class Killed(BaseException):
    """Stands for a signal that nobody can handle."""


def _stopping_after(count: int):
    """Return `Path.rename` that is killed after so many moves."""
    moves = iter(range(count))

    def rename(path: Path, target: Path) -> None:
        if next(moves, None) is None:
            raise Killed
        os.rename(path, target)

    return rename


def test_what_is_set_aside_leaves_its_lock_and_finds_a_free_name(tmp_path):
    for _ in range(2):
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        (tmp_path / "run" / ".lock").touch()
        (tmp_path / "run" / "record.json").touch()
        RunsFolder(tmp_path).set_aside(RunFolder(tmp_path / "run"), "data-1")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("data-*/run/*")}
    assert found == {
        f"data-1{n}/run/{name}" for n in ("", "-2") for name in ("checkpoints", "record.json")
    }


@pytest.mark.parametrize("moves", range(5))
def test_setting_aside_goes_on_where_it_was_killed(tmp_path, moves):
    folder = tmp_path / "run"
    names = ("checkpoints", "samples.npz", "config.yaml", "record.json", "data.json")
    folder.mkdir()
    for name in names:
        (folder / name).write_text(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", _stopping_after(moves))
        with pytest.raises(Killed):
            RunsFolder(tmp_path).set_aside(RunFolder(folder), "data-1")
    assert (folder / "data.json").exists()  # which says that there is something to be moved
    RunsFolder(tmp_path).set_aside(RunFolder(folder), "data-1")
    assert {path.name for path in (tmp_path / "data-1" / "run").iterdir()} == set(names)
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "data-1-2").exists()


def test_each_file_of_a_run_lies_where_it_always_lay(tmp_path):
    """A folder that an earlier bdjax has begun must be found again."""
    runs = RunsFolder(tmp_path)
    own, victim, group = runs.run("a"), runs.victim("b"), runs.group(["a", "c"])
    places = {
        own.record_file: "a/record.json",
        own.smoothness_file: "a/smoothness.json",
        own.stage(1).path: "a/checkpoints-1",
        own.findings("tac"): "a/analysis-tac.npz",
        victim.stage("victim").path: "victims/b/checkpoints",
        victim.stage("trigger").path: "victims/b/checkpoints-trigger",
        group.path: "groups/a9573e0ed6",
        group.stage().checkpoints: "groups/a9573e0ed6/checkpoints",
        group.stage(0).checkpoints: "groups/a9573e0ed6/stage-0/checkpoints",
    }
    assert {path.relative_to(tmp_path).as_posix(): place for path, place in places.items()} == {
        place: place for place in places.values()
    }
    own.stage(0).write_unroll({"unroll": 2, "seconds": {}})
    own.write_selection({"option": "defense.rho"})
    victim.write_diverged("it was asked to")
    group.stage(0).write_form({"form": "loop", "seconds": {}})
    group.begin({"a": {"train": "0"}, "c": None})
    victim.write_begun_with({"train": "0", "test": "1"}, "stamp")
    assert {
        file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()
    } == {
        "a/checkpoints-0.unroll.json",
        "a/selection.json",
        "victims/b/data.json",
        "victims/b/diverged.json",
        "groups/a9573e0ed6/group.json",
    }, "a group that was begun with other members begins anew"


@pytest.mark.parametrize(("epochs", "trained"), [(0, True), (3, True), (2, False)])
def test_a_victim_is_trained_when_its_last_epoch_is_saved(tmp_path, epochs, trained):
    victim = RunsFolder(tmp_path).victim("b")
    (victim.stage("victim").path / "3").mkdir(parents=True)
    assert victim.is_trained(epochs) is trained


def test_what_orbax_has_not_finished_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp-5").mkdir(parents=True)
    assert not LoopFolder(tmp_path / "checkpoints").has(3)


def test_a_run_has_ended_when_it_is_finished_or_has_diverged(tmp_path):
    own = RunsFolder(tmp_path).run("a")
    assert (own.record(), own.finished(), own.has_ended()) == (None, None, False)
    own.write_record({"run_id": "a", "status": "diverged", "reason": "the loss"})
    assert (own.finished(), own.has_ended()) == (None, True)
    own.write_record(
        {"run_id": "a", "status": "finished", "data": {"fingerprint": {"train": "0", "test": "1"}}}
    )
    assert own.has_ended()
    assert own.finished() == own.record()
    assert own.begun_with() == {"train": "0", "test": "1", "stamp": None}
