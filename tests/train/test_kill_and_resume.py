"""Real processes, killed at random moments: whatever they leave behind continues to the very same bits."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
import pytest

EPOCHS = 12
SIZES = ("--model.width", "2", "--training.epochs", str(EPOCHS), "--defense.epochs", str(EPOCHS))
RUN = ("run", *SIZES, "--defense", "ft", "--checkpoint-seconds", "0")
# one form, as another rounds otherwise
GRID = ("--over", "defense.rho=1,2", "--seeds", "2", "--form", "loop")
SWEEP = ("sweep", *SIZES, "--defense", "ft_sam", *GRID, "--checkpoint-seconds", "0")
COMMANDS = {"run": RUN, "sweep": SWEEP}
VICTIM, DEFENSE = "victims/*/checkpoints", "digits-badnets-ft-*/checkpoints-0"
KILLS, DELAYS = 10, (0, 8)  # of each seed; seconds after the start
PATIENCE = 120  # seconds, for a machine that has other things to do


class Saved(NamedTuple):
    """The newest checkpoint of a loop: every bit of its state, and its history."""

    epoch: int
    bits: dict[str, tuple]
    history: list[dict]


def start(out, words=RUN):
    """Start a command that saves after each epoch; all processes here share one compilation cache."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "XDG_CACHE_HOME": str(out.parent / "cache"),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "bdjax", *words, "--out", str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, "--quiet"], env=environment, **pipes)


def finish(out, words=RUN):
    process = start(out, words)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")


def epoch(out, loop):
    """Return the newest epoch that a loop has saved, 0 if none."""
    return max((int(path.name) for path in out.glob(f"{loop}/*") if path.name.isdigit()), default=0)


def saved(out, loop):
    (folder,) = out.glob(loop)
    return saved_in(folder)


def saved_in(folder):
    manager = ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True))
    args = ocp.args.Composite(state=ocp.args.StandardRestore(), history=ocp.args.JsonRestore())
    restored = manager.restore(manager.latest_step(), args=args)
    leaves = jax.tree_util.tree_leaves_with_path(restored["state"])
    bits = {
        jax.tree_util.keystr(path): (x.dtype, x.shape, x.tobytes())
        for path, x in jax.device_get(leaves)
    }
    return Saved(manager.latest_step(), bits, restored["history"]["rows"])


def exact(out):
    """Return everything that must not depend on an interruption."""
    folders = sorted(
        path
        for pattern in ("victims/*/checkpoints*", "*/checkpoints*")
        for path in out.glob(pattern)
    )
    loops = {str(path.relative_to(out)): saved_in(path) for path in folders}
    records = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/record.json")}
    samples = {path.parent.name: path.read_bytes() for path in out.glob("*/samples.npz")}
    metrics = {name: (record["metrics"], record["data"]) for name, record in records.items()}
    gradients = {name: record["cost"]["gradient_evaluations"] for name, record in records.items()}
    states = {name: (loop.bits, without_seconds(loop.history)) for name, loop in loops.items()}
    return states, metrics, gradients, samples


def without_seconds(history):
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in history]


def interrupt(out, loop, number, delay):
    """Start a run, send it a signal some seconds after its next checkpoint of a loop, and return what it said."""
    before, process = epoch(out, loop), start(out)
    deadline = time.monotonic() + PATIENCE
    while epoch(out, loop) <= before:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    return process.returncode, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kill")


@pytest.fixture(scope="module")
def unbroken(folder):
    """What the run gives that nobody disturbs."""
    finish(folder / "unbroken")
    return exact(folder / "unbroken")


def continued(out, loop):
    """Check that a loop was interrupted on its way, and return what it had then."""
    there = saved(out, loop)
    assert 0 < there.epoch < EPOCHS
    assert len(there.history) == there.epoch
    return there.history


def leave_half_written(out):
    """Make by hand what a process leaves that is killed while it writes a record or a checkpoint."""
    (run,) = out.glob("digits-badnets-ft-*")
    (run / ".record.json.123").write_text('{"status": "fin')
    half = run / "checkpoints-0" / f"{EPOCHS}.orbax-checkpoint-tmp-5" / "state"
    half.mkdir(parents=True)
    (half / "manifest.ocdbt").write_text("half")


@pytest.mark.slow
def test_a_run_killed_in_training_and_in_defense_ends_in_the_same_bits(folder, unbroken):
    out, moments = folder / "killed", random.Random(0)
    histories = {}
    for loop in (VICTIM, DEFENSE):
        code, _ = interrupt(out, loop, signal.SIGKILL, moments.uniform(0, 0.2))
        assert code == -signal.SIGKILL
        histories[loop] = continued(out, loop)
    leave_half_written(out)
    finish(out)
    assert exact(out) == unbroken
    # Seconds never repeat, so equal ones were not spent again
    for loop, history in histories.items():
        assert saved(out, loop).history[: len(history)] == history


@pytest.mark.slow
def test_a_run_asked_to_stop_says_so_in_one_line_and_continues_from_there(folder, unbroken):
    out, histories = folder / "stopped", {}
    for loop, number in ((VICTIM, signal.SIGTERM), (DEFENSE, signal.SIGINT)):
        answer = interrupt(out, loop, number, delay=0)
        histories[loop] = continued(out, loop)
        stopped = f"stopped after epoch {len(histories[loop])} of {EPOCHS}"
        assert answer == (143, f"bdjax: {stopped}; the same command continues.\n")
    finish(out)
    assert exact(out) == unbroken
    for loop, history in histories.items():
        assert saved(out, loop).history[: len(history)] == history


@pytest.fixture(scope="module")
def swept(folder):
    """What the sweep gives that nobody disturbs."""
    finish(folder / "swept", SWEEP)
    return exact(folder / "swept")


def kill(out, words, number, delay):
    """Start a command and send it a signal after some seconds; return its exit code and what it said."""
    process = start(out, words)
    time.sleep(delay)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    return process.returncode, err


def is_end(code, err):
    """Say whether a process was killed, told in one line that it was stopped, or was done before."""
    if code == 143:
        return re.fullmatch(r"bdjax: [^\n]+; the same command continues\.\n", err) is not None
    return code in (0, -signal.SIGKILL, -signal.SIGTERM) and err == ""


@pytest.mark.slow
@pytest.mark.parametrize(("command", "seed"), [("run", 0), ("run", 1), ("sweep", 2), ("sweep", 3)])
def test_what_is_killed_again_and_again_at_any_moment_ends_in_the_same_bits(
    command, seed, folder, request
):
    """Forty kills in all, while it imports, compiles, trains, saves, evaluates and writes."""
    undisturbed = request.getfixturevalue({"run": "unbroken", "sweep": "swept"}[command])
    moments, kills, told = random.Random(seed), 0, []
    for attempt in range(100):
        out = folder / f"{command} {seed} {attempt}"
        while kills < KILLS:
            number, delay = (
                moments.choice((signal.SIGKILL, signal.SIGTERM)),
                moments.uniform(*DELAYS),
            )
            told.append(f"{number.name} after {delay:.3f} s")
            code, err = kill(out, COMMANDS[command], number, delay)
            assert is_end(code, err), (seed, told, code, err)
            if code == 0:
                break  # it was faster; the next one begins anew
            kills += 1
        finish(out, COMMANDS[command])
        assert exact(out) == undisturbed, (seed, told)
        assert not list(out.glob("groups/*")), (seed, told)
        if kills == KILLS:
            break
    assert kills == KILLS


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_poisoned_folder_that_is_killed_while_it_is_written_is_written_by_the_same_command(
    number, folder
):
    words, moments = (
        ("poison", "badnets", "--runs", str(folder / "no runs")),
        random.Random(int(number)),
    )
    whole = contents(folder, words, "whole")
    out = folder / f"poisoned {number.name}"
    for _ in range(4):
        process = start(out, words)
        while process.poll() is None and not list(folder.glob(f".{out.name}.partial-*/*")):
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 1))
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
        assert is_end(process.returncode, err), (process.returncode, err)
        assert not out.exists() or files_of(out) == whole  # whole or not at all
        if number == signal.SIGTERM:
            assert not list(folder.glob(f".{out.name}.partial-*"))
        for left in folder.glob(f".{out.name}.partial-*"):
            shutil.rmtree(left)
    assert contents(folder, words, out.name) == whole


def contents(folder, words, name):
    finish(folder / name, words)
    return files_of(folder / name)


def files_of(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.slow
def test_two_processes_with_the_same_config_share_the_work(folder, unbroken):
    out = folder / "two"
    processes = [start(out) for _ in range(2)]
    ended = [(*process.communicate(timeout=PATIENCE), process.returncode) for process in processes]
    assert [(err, code) for _, err, code in ended] == [("", 0)] * 2
    assert exact(out) == unbroken
