"""A sweep on digits from the command line: its runs are runs, and whatever interrupts it, it ends the same."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

from bdjax import cli, data
from bdjax.checks import InputError
from bdjax.runs import inputs, plans, run, schema, sweep, together, victim
from bdjax.runs.folder import RunFolder, RunsFolder
from bdjax.train import loop

SIZES = ("--model.width", "2", "--training.epochs", "3", "--defense.epochs", "3")
OVER = ("--over", "defense.rho=1,4", "--over", "defense=ft_sam", "--seeds", "2")
PATIENCE = 180  # seconds, for a machine that has other things to do


def bdjax(out, *words, command="sweep"):
    """Call the command in this process; return its exit code and what it said."""
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        code = cli.main([command, *SIZES, *words, "--out", str(out)])
    return code, said.getvalue(), complained.getvalue()


def everything(out):
    """Return what must not depend on how the runs of a folder were carried out."""
    found = {}
    for file in out.glob("*/record.json"):
        record = json.loads(file.read_text())
        history = [
            {k: v for k, v in row.items() if "seconds" not in k}
            for row in record.get("history", [])
        ]
        found[file.parent.name] = record["status"], record.get("metrics"), history
    return found


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("swept")
    return out, bdjax(out, *OVER)


def test_a_sweep_has_each_point_and_its_control_rows(swept):
    out, (code, said, complained) = swept
    assert code == 0
    names = sorted(name.rsplit("-", 1)[0] for name in everything(out))
    assert (
        names
        == ["digits-badnets-ft"] * 2 + ["digits-badnets-ft_sam"] * 4 + ["digits-badnets-none"] * 2
    )
    assert "ft_sam ρ=1" in said
    assert "ft_sam ρ=4" in said
    assert "2 victims: 3 epochs" in complained
    assert "4 × ft_sam: 3 epochs" in complained
    assert (out / "figures" / "overview.png").exists()
    assert not list((out / "groups").iterdir())  # nothing is left behind


def test_a_record_tells_how_its_group_was_computed(swept):
    out, _ = swept
    for file in out.glob("digits-badnets-ft_sam-*/record.json"):
        (how,) = json.loads(file.read_text())["sweep"]
        assert (how["form"], how["points"], how["devices"]) == ("loop", 4, 1)


def test_its_runs_are_what_single_runs_are(swept, tmp_path):
    """To the last bit on this CPU, where a loop inside a program computes what one program each does."""
    out, _ = swept
    assert bdjax(tmp_path, "--defense.rho", "4", "--seed", "1", command="run")[0] == 0
    single, together = everything(tmp_path), everything(out)
    assert len(single) == 3
    for name, result in single.items():
        assert together[name] == result


def test_a_single_run_goes_on_from_a_sweep(swept, tmp_path):
    """The checkpoints lie where a run leaves its own, so another defense finds the victim trained."""
    out, _ = swept
    assert bdjax(out, "--defense", "ft", "--defense.momentum", "0.5", command="run")[0] == 0
    (file,) = (
        path
        for path in out.glob("*-ft-*/record.json")
        if "sweep" not in json.loads(path.read_text())
    )
    assert json.loads(file.read_text())["victim"]["epochs"] == 3
    file.unlink()


def test_what_is_finished_is_not_looked_at_again(swept, monkeypatch):
    out, (_, said, _) = swept
    before = everything(out)
    monkeypatch.setattr(plans, "prepare", lambda *_: pytest.fail("data were loaded"))
    assert bdjax(out, *OVER)[:2] == (0, said)
    assert everything(out) == before


def test_a_wider_grid_adds_to_what_is_there(swept, monkeypatch):
    out, _ = swept
    stamps = {file: file.stat().st_mtime_ns for file in out.glob("*/record.json")}
    monkeypatch.setattr(victim, "plant", planted := Counted(victim.plant))
    assert bdjax(out, "--over", "defense.rho=1,2,4", "--seeds", "2", "--form", "vmap")[0] == 0
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    assert len(everything(out)) == len(stamps) + 2
    assert planted.calls == 2  # both victims were restored


class Counted:
    """A function that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args):
        self.calls += 1
        return self.function(*args)


def test_points_of_other_structure_make_another_program(tmp_path):
    words = (
        "--defense",
        "ft",
        "--over",
        "defense.batch_size=100,50",
        "--over",
        "attack=badnets,blended",
    )
    code, _, complained = bdjax(tmp_path, *words)
    assert code == 0
    assert complained.count("2 victims: 3 epochs") == 1  # different attacks, one program
    assert complained.count("2 × ft: 3 epochs") == 2
    assert len(everything(tmp_path)) == 2 + 4


def test_the_precision_of_products_makes_groups_and_each_is_computed_in_its_own(
    tmp_path, monkeypatch
):
    found = []

    def plant(self, folder, planned):
        asked = {plan.config.matmul_precision for plan in planned}
        found.append((jax.config.jax_default_matmul_precision, asked))
        for plan in planned:
            RunsFolder(tmp_path).victim(plan.config.victim_id).write_diverged("made up")

    monkeypatch.setattr(sweep._Sweep, "_plant", plant)
    over = ("--over", "matmul_precision=none,float32,tensorfloat32", "--seeds", "2")
    assert bdjax(tmp_path, "--defense", "ft", *over)[0] == 1
    assert sorted(found, key=str) == [(name, {name}) for name in ("float32", "tensorfloat32", None)]


def test_a_point_that_diverges_is_marked_and_not_tried_again(tmp_path, monkeypatch):
    words = ("--over", "defense.learning_rate=0.05,1e30", "--defense", "ft")
    code, said, complained = bdjax(tmp_path, *words)
    assert code == 0
    assert "1 of 3 runs diverged; the reason stands in their record.json." in complained
    assert sorted(status for status, *_ in everything(tmp_path).values()) == [
        "diverged",
        "finished",
        "finished",
    ]
    (reason,) = {
        json.loads(file.read_text()).get("reason") for file in tmp_path.glob("*/record.json")
    } - {None}
    assert "not finite after epoch 1 of 3: lower the learning rate" in reason
    monkeypatch.setattr(plans, "prepare", lambda *_: pytest.fail("it was tried again"))
    assert bdjax(tmp_path, *words)[:2] == (0, said)


def test_runs_of_a_victim_that_diverges_are_marked(tmp_path):
    code, _, complained = bdjax(
        tmp_path, "--over", "training.learning_rate=0.05,1e30", "--defense", "ft"
    )
    assert code == 0
    assert "2 of 4 runs diverged" in complained
    found = [json.loads(file.read_text()) for file in tmp_path.glob("*/record.json")]
    assert sorted(record["status"] for record in found) == ["diverged"] * 2 + ["finished"] * 2
    assert all(
        "of the victim, the loss is not finite" in r["reason"]
        for r in found
        if r["status"] == "diverged"
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--over", "defense.roh=1,2"), "defense.roh"),
        (
            ("--over", "defense.rho"),
            "--over must be KEY=V1,V2,..., such as defense.rho=0.5,1,2; got 'defense.rho'.",
        ),
        (("--over", "defense.rho="), "defense.rho needs at least one value."),
        (("--over", "defense.rho=1,2,1"), "defense.rho has the value '1' twice."),
        (
            ("--over", "defense.rho=1,1.0"),
            "the sweep has the same point twice: defense.rho 1 and 1.0 are one value.",
        ),
        (("--over", "defense.rho=1", "--over", "defense.rho=2"), "--over defense.rho stands twice"),
        (("--over", "defense.rho=1,-2"), "defense.rho must"),
        (("--over", "defense.rho=1,x"), "defense.rho must be a number"),
        (("--seeds", "0"), "seeds must"),
        (
            ("--over", "seed=5,6", "--seeds", "2"),
            "--seeds and --over seed exclude each other; give one.",
        ),
        (("--form", "fast"), "form must be auto, loop, vmap, or map:k"),
        (("--devices", "9"), "devices must be at most 8"),
        (
            ("--devices", "4", "--batch-devices", "3"),
            "batch_devices must divide devices = 4; got 3.",
        ),
        (("--at-once", "0"), "at_once must"),
        (
            ("--holdout.per_class", "999"),
            "holdout.per_class must be at most 130: class '8' has only 130",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(words, complaint, tmp_path):
    code, said, complained = bdjax(tmp_path / "runs", *words)
    assert (code, said) == (2, "")
    assert complained.startswith("bdjax: ")
    assert complaint in complained
    assert complained.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_parts_of_a_large_group_are_of_one_size(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        sweep._Sweep, "_defend", lambda self, folder, members: sizes.append(len(members))
    )
    monkeypatch.setattr(sweep._Sweep, "plant", lambda self, victims: None)
    monkeypatch.setattr(RunFolder, "has_ended", lambda folder: sum(sizes) >= 10)
    wanted = sweep.points({"defense": "none"}, {"seed": list(map(str, range(10)))})
    sweep.run(wanted, run.Execution(tmp_path), sweep.Sharing(at_once=4))
    assert sizes == [4, 4, 2]


def test_runs_of_a_victim_are_together(tmp_path, monkeypatch):
    """So that a group needs few victims, and few are read again for the next."""
    seeds, done = [], set()

    def defend(self, folder, planned):
        members = [plan.config for plan in planned]
        done.update(config.run_id for config in members)
        seeds.extend(
            [config.seed for config in members] for _ in range(members[0].defense.name == "ft_sam")
        )

    monkeypatch.setattr(sweep._Sweep, "_defend", defend)
    monkeypatch.setattr(sweep._Sweep, "plant", lambda self, victims: None)
    monkeypatch.setattr(RunFolder, "has_ended", lambda folder: folder.name in done)
    wanted = sweep.points({}, {"defense.rho": ["1", "2"], "seed": ["0", "1"]})
    sweep.run(wanted, run.Execution(tmp_path), sweep.Sharing(at_once=2))
    assert seeds == [[0, 0], [1, 1]]


def test_devices_of_points_need_not_divide_their_batches(tmp_path):
    words = (
        "--training.epochs",
        "1",
        "--defense.epochs",
        "1",
        "--over",
        "defense.learning_rate=0.05,0.06,0.07",
    )
    code, _, complained = bdjax(tmp_path, "--defense", "ft", *words, "--devices", "3", "--quiet")
    assert (code, complained) == (0, "")


def test_a_sweep_stops_between_groups_of_one_epoch(tmp_path):
    wanted = sweep.points(
        schema.overrides((*SIZES, "--training.epochs", "1", "--defense.epochs", "1")), {}
    )
    with pytest.raises(loop.Stopped, match="between two groups"):
        sweep.run(wanted, run.Execution(tmp_path, should_stop=lambda: True), sweep.Sharing())
    assert not everything(tmp_path)


def test_what_a_group_learned_from_other_data_is_not_continued(swept, tmp_path, monkeypatch):
    """The data change, and the victims are deleted to train them anew, as the refusal says."""
    load, answers = data.load, iter([False, True])

    def other(*args, **options):
        dataset = load(*args, **options)
        return dataset._replace(train=dataset.train._replace(input=255 - dataset.train.input))

    wanted = sweep.points(schema.overrides(SIZES), {"defense.rho": ["1", "4"], "seed": ["0", "1"]})
    stopped = run.Execution(tmp_path, checkpoint_seconds=0.0, should_stop=lambda: next(answers))
    inputs._load.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(data, "load", other)
        with pytest.raises(loop.Stopped, match="after epoch 1 of 3"):
            sweep.run(wanted, stopped, sweep.Sharing())
    inputs._load.cache_clear()
    assert list(tmp_path.glob("groups/*/checkpoints/1"))
    with pytest.raises(InputError, match="the data have changed since"):
        sweep.run(wanted, run.Execution(tmp_path), sweep.Sharing())
    shutil.rmtree(tmp_path / "victims")
    sweep.run(wanted, run.Execution(tmp_path), sweep.Sharing())
    expected = everything(swept[0])
    assert everything(tmp_path) == {name: expected[name] for name in names_of_the_sweep()}


def test_a_run_that_began_on_other_data_is_not_continued(swept, tmp_path):
    """Its victim may have been deleted and trained anew; what the defense had made of the old one is still there."""
    config = sweep.points(schema.overrides(SIZES), {})[0]
    for folder in (tmp_path / config.run_id, tmp_path / config.with_defense(name="none").run_id):
        folder.mkdir()
        (folder / "data.json").write_text(json.dumps({"train": "other", "test": "other"}))
    with pytest.raises(
        InputError, match=f"the data have changed since .*{config.run_id} was begun"
    ):
        run.run(config, run.Execution(tmp_path))
    with pytest.raises(InputError, match=r"the data have changed since .*-none-.* was begun"):
        sweep.run([config], run.Execution(tmp_path), sweep.Sharing())


def test_a_finished_run_is_never_marked_as_diverged(swept):
    out, _ = swept
    before = everything(out)
    for config in sweep.points(schema.overrides(SIZES), {"defense.rho": ["1"], "seed": ["0"]}):
        together.mark(config, run.Execution(out), "it was not")
    assert everything(out) == before


def test_a_group_that_was_killed_when_all_was_done_is_removed(swept):
    out, _ = swept
    names = {"mine": sorted(names_of_the_sweep()), "another": ["of-another-grid"]}
    for folder, listed in names.items():
        (out / "groups" / folder).mkdir()
        (out / "groups" / folder / "group.json").write_text(
            json.dumps({"names": listed, "data": []})
        )
    assert bdjax(out, *OVER)[0] == 0
    assert [folder.name for folder in (out / "groups").iterdir()] == ["another"]
    shutil.rmtree(out / "groups" / "another")


# --- real processes --------------------------------------------------------------------------------------------------


def start(out):
    """Start the sweep of `OVER`, saving after each epoch; all processes share one compilation cache."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "XDG_CACHE_HOME": str(out.parent / "cache"),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",  # as here: it decides how an addition is split over threads
    }
    command = [sys.executable, "-m", "bdjax", "sweep", *SIZES, *OVER, "--out", str(out), "--quiet"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, "--checkpoint-seconds", "0"], env=environment, **pipes)


def wait(out, pattern, process):
    """Wait until something is there, while a process lives."""
    deadline = time.monotonic() + PATIENCE
    while not list(out.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
def test_a_sweep_cut_anywhere_ends_in_the_same_bits(swept, tmp_path):
    """Asked to stop while victims are trained; killed in the middle of a defense, and between two records."""
    out = tmp_path / "runs"
    moments = {
        "groups/*/checkpoints/1": signal.SIGTERM,
        "groups/*/stage-0/checkpoints/2": signal.SIGKILL,
        "digits-badnets-ft*/record.json": signal.SIGKILL,
    }
    for moment, number in moments.items():
        process = start(out)
        wait(out, moment, process)
        process.send_signal(number)
        _, complained = process.communicate(timeout=PATIENCE)
        if number == signal.SIGTERM:
            assert process.returncode == cli.EXIT_STOPPED
            assert "the same command continues" in complained
    finish([start(out)])
    expected = everything(swept[0])
    assert everything(out) == {name: expected[name] for name in names_of_the_sweep()}
    assert not list((out / "groups").iterdir())


@pytest.mark.slow
def test_two_processes_share_a_sweep(swept, tmp_path):
    """They take different groups, so the bits are the same, and no run is carried out twice."""
    out = tmp_path / "runs"
    finish([start(out), start(out)])
    expected = everything(swept[0])
    assert everything(out) == {name: expected[name] for name in names_of_the_sweep()}
    assert not list((out / "groups").iterdir())


def finish(processes):
    for process in processes:
        _, complained = process.communicate(timeout=PATIENCE)
        assert (process.returncode, complained) == (0, "")


def names_of_the_sweep():
    wanted = sweep.points(
        schema.overrides(SIZES),
        {"defense.rho": ["1", "4"], "defense": ["ft_sam"], "seed": ["0", "1"]},
    )
    return {row.run_id for config in wanted for row in run.with_controls(config)}
