"""Several hosts: real processes on this machine, which compute as one, stop as one, and survive the loss of one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from bdjax import cli, report, saved
from bdjax.checks import InputError
from bdjax.devices import hosts, sharding

EPOCHS = 5
WORDS = (  # batches of 63 and 62 images, which neither hosts nor devices divide
    *("--data.train_count", "250", "--model.width", "2", "--training.batch_size", "64", "--quiet"),
    *(
        "--training.drop_last",
        "false",
        "--training.epochs",
        str(EPOCHS),
        "--checkpoint-seconds",
        "0",
    ),
)
FT, NONE = ("--defense", "ft", "--defense.epochs", "2"), ("--defense", "none")
PATIENCE = 240  # seconds, for a machine that has other things to do
LOST = "bdjax: another host was lost, or failed; the same command continues, on another number of hosts too ("


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Process:
    """One process of a run; its output goes to files, which nobody has to empty."""

    def __init__(self, out: Path, *words: str, devices: int, name: str):
        self._logs = [out.parent / f"{out.name}.{name}.{stream}" for stream in ("out", "err")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "XDG_CACHE_HOME": str(out.parent / "cache"),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
        }
        command = [sys.executable, "-m", "bdjax", "run", *WORDS, "--out", str(out), *words]
        stdout, stderr = (log.open("w") for log in self._logs)
        with stdout, stderr:
            self.popen = subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr)

    def end(self) -> Ended:
        """Wait for the end. On standard output there are also lines of the library that connects CPUs, in any order."""
        code = self.popen.wait(PATIENCE)
        return Ended(code, *(log.read_text() for log in self._logs))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(out: Path, count: int, *words: str, devices: int = 4) -> list[Process]:
    """Start the processes of a run, which have as many devices together."""
    coordinator = f"127.0.0.1:{free_port()}"
    return [
        Process(
            out, *("--hosts", str(count), "--host", str(host), "--coordinator", coordinator), *words,
            devices=devices // count, name=str(host),
        )
        for host in range(count)
    ]  # fmt: skip


def epoch(out: Path) -> int:
    """Return the newest epoch of the victim that is saved, 0 if none."""
    return max(
        (int(path.name) for path in out.glob("victims/*/checkpoints/*") if path.name.isdigit()),
        default=0,
    )


def after_the_next_checkpoint(out: Path, processes: list[Process]) -> None:
    before, deadline = epoch(out), time.monotonic() + PATIENCE
    while epoch(out) <= before:
        assert [process.popen.poll() for process in processes] == [None] * len(processes), (
            processes[0].end()
        )
        assert time.monotonic() < deadline
        time.sleep(0.005)


def records(out: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/record.json")}


def networks(out: Path, name: str) -> list[np.ndarray]:
    """Return every array of the victim and of the defended network of a run."""
    (record,) = (record for record in report.load([out]) if record.run_id == name)
    found = saved.restore(record)
    return jax.tree.leaves(jax.device_get((found.victim, found.defended)))


def assert_same_run(out: Path, other: Path, *, exact: bool = False) -> None:
    """Check that what one folder has is in another: the same counts, and networks that differ by rounding at most."""
    found, expected = records(out), records(other)
    assert found
    for name, record in found.items():
        assert record["metrics"] == expected[name]["metrics"]
        losses = [[row["loss"] for row in each["history"]] for each in (record, expected[name])]
        assert losses[0] == (losses[1] if exact else pytest.approx(losses[1], rel=1e-4))
        tolerance = 0.0 if exact else 1e-4
        for got, wanted in zip(networks(out, name), networks(other, name), strict=True):
            np.testing.assert_allclose(got, wanted, atol=tolerance, rtol=tolerance)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def runs(folder):
    """The same run on two hosts and on one, each with four devices; at the same time."""
    processes = [
        *start(folder / "two", 2, *FT),
        Process(folder / "one", *FT, "--devices", "4", devices=4, name="0"),
    ]
    return [process.end() for process in processes]


# --- Two hosts compute as one -----------------------------------------------------------------------------------------


def test_two_hosts_give_the_result_of_one(runs, folder):
    assert [ended.code for ended in runs] == [0, 0, 0], runs
    assert_same_run(folder / "two", folder / "one")


def test_only_the_first_host_prints_and_each_file_is_written_once(runs, folder):
    first, second, one = runs
    assert not re.search("badnets|record", second.out)
    assert first.out.replace("two", "one").splitlines()[-1] == one.out.splitlines()[-1]
    assert (first.err, second.err) == ("", "")
    files = [
        {
            path.relative_to(out).as_posix()
            for path in out.rglob("*")
            if "checkpoints" not in path.as_posix()
        }
        for out in (folder / "two", folder / "one")
    ]
    assert files[0] == files[1]


def test_a_record_tells_on_how_many_hosts_and_devices_it_was_made(runs, folder):
    for name, count in (("two", 2), ("one", 1)):
        for record in records(folder / name).values():
            assert (record["device"]["hosts"], record["device"]["count"]) == (count, 4)


def test_both_hosts_write_their_part_of_a_checkpoint(runs, folder):
    (state,) = (folder / "two").glob(f"victims/*/checkpoints/{EPOCHS}/state")
    assert {path.name for path in state.glob("ocdbt.process_*")} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
    }


# --- Stopped, and lost ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_loses_a_host_says_so_and_continues_on_one(runs, folder):
    out = folder / "broken"
    processes = start(out, 2, *NONE)
    after_the_next_checkpoint(out, processes)
    processes[0].popen.kill()
    _, survivor = (process.end() for process in processes)
    assert survivor.code == 1
    assert survivor.err.splitlines()[-1].startswith(LOST)
    assert not records(out)
    assert 0 < epoch(out) < EPOCHS

    ended = Process(out, *NONE, "--devices", "1", devices=1, name="0").end()
    assert (ended.code, ended.err) == (0, "")
    assert_same_run(out, folder / "one")


@pytest.mark.slow
def test_hosts_that_stream_their_shares_give_the_result_of_one(runs, folder):
    out = folder / "streamed"
    assert [process.end().code for process in start(out, 2, *NONE, "--data-on", "host")] == [0, 0]
    assert_same_run(out, folder / "one")


@pytest.mark.slow
def test_a_run_stops_on_all_hosts_if_one_is_asked_and_continues_on_as_many(runs, folder):
    out = folder / "stopped"
    processes = start(out, 2, *FT)
    after_the_next_checkpoint(out, processes)
    processes[1].popen.terminate()
    first, second = (process.end() for process in processes)
    stopped = f"stopped after epoch {epoch(out)} of {EPOCHS}; the same command continues."
    assert (first.code, first.err) == (143, f"bdjax: {stopped}\n")
    assert (second.code, second.err) == (143, "")
    assert [process.end().code for process in start(out, 2, *FT)] == [0, 0]
    assert_same_run(out, folder / "two", exact=True)


@pytest.mark.slow
def test_a_run_that_loses_a_host_that_is_not_the_first_ends_within_the_timeout(runs, folder):
    out = folder / "second"
    processes = start(out, 2, *NONE, "--host-timeout", "10")
    after_the_next_checkpoint(out, processes)
    processes[1].popen.kill()
    started = time.monotonic()
    survivor = processes[0].end()
    assert time.monotonic() - started < 60
    assert survivor.code == 1
    assert survivor.err.splitlines()[-1].startswith(LOST)
    assert [process.end().code for process in start(out, 2, *NONE)] == [0, 0]
    assert_same_run(out, folder / "one")


@pytest.mark.slow
def test_four_hosts_give_the_result_of_one(runs, folder):
    ended = [process.end() for process in start(folder / "four", 4, *FT)]
    assert [process.code for process in ended] == [0] * 4, ended
    assert_same_run(folder / "four", folder / "one")


@pytest.mark.slow
def test_what_takes_the_whole_holdout_at_once_and_a_strength_that_is_chosen_agree_too(folder):
    words = (
        "--defense",
        "fine_pruning",
        "--defense.epochs",
        "2",
        "--defense.accuracy_drop",
        "auto",
    )
    processes = [
        *start(folder / "p two", 2, *words),
        Process(folder / "p one", *words, devices=1, name="0"),
    ]
    ended = [process.end() for process in processes]
    assert [process.code for process in ended] == [0] * 3, ended
    two, one = records(folder / "p two"), records(folder / "p one")
    assert two.keys() == one.keys()
    for name, record in two.items():
        assert record["metrics"] == one[name]["metrics"]
        assert record.get("selection") == one[name].get("selection")


@pytest.mark.slow
def test_hosts_that_are_asked_for_different_runs_are_told_so(folder):
    out, coordinator = folder / "differ", f"127.0.0.1:{free_port()}"
    processes = [
        Process(out, "--hosts", "2", "--host", str(host), "--coordinator", coordinator, "--seed", str(host),
                devices=2, name=str(host))
        for host in range(2)
    ]  # fmt: skip
    for process in processes:
        ended = process.end()
        said = "bdjax: the hosts must have the same config; host 1 has another than the first.\n"
        assert (ended.code, ended.err) == (2, said)


# --- The process that watches -----------------------------------------------------------------------------------------


def watch(tmp_path, code: str) -> Process:
    """Start a process that watches one that runs this code."""
    (tmp_path / "watched_one.py").write_text(
        f"import os, sys, time\nfrom bdjax.devices import guard\n{code}\n"
    )
    words = "import sys; from bdjax.devices import guard; sys.exit(guard.watch('watched_one', ['word']))"
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, "-c", words], env={**os.environ, "PYTHONPATH": path}, **pipes
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("sys.exit(2 if sys.argv[1:] == ['word'] and guard.is_watched() else 3)", (2, "")),
        ("os.abort()", (1, f"{LOST}SIGABRT).\n")),
        ("os.kill(os.getpid(), 15)", (143, "")),
    ],
)
def test_a_watched_process_keeps_its_exit_code_unless_it_is_aborted(code, expected, tmp_path):
    process = watch(tmp_path, code)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == expected


LISTENING = "asked = guard.listen()\nprint(os.getpid(), flush=True)\nwhile not asked(): time.sleep(0.01)\nsys.exit(7)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_as_a_question(number, tmp_path):
    process = watch(tmp_path, LISTENING)
    assert process.stdout.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (7, "")


def test_a_watched_process_ends_with_the_one_that_watches(tmp_path):
    process = watch(tmp_path, LISTENING)
    assert process.stdout.readline()
    process.kill()
    # Until the watched one has closed its end of the pipes too
    process.communicate(timeout=PATIENCE)


# --- Options, and a single process ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((None, 0, None), "host goes with hosts, as a number; hosts is not given"),
        (("auto", None, "a:1"), "coordinator goes with hosts, as a number; hosts is auto"),
        (("two", 0, "a:1"), "hosts must be auto, or their number; got 'two'"),
        (("0", 0, "a:1"), "hosts must be auto, or their number; got '0'"),
        (("2", None, "a:1"), "hosts = 2 needs host"),
        (("2", 0, None), "hosts = 2 needs host"),
        (("2", 2, "a:1"), "host must be below hosts = 2, as the first is 0; got 2"),
        (("2", -1, "a:1"), "host must be 0 or more"),
        (
            ("2", 1, "10.0.0.1"),
            "coordinator must be an address and a port, as in 10.0.0.1:1234; got '10.0.0.1'",
        ),
        (("2", 1, ":1234"), "coordinator must be an address"),
        (("2", 1, "a:0"), "coordinator must be an address"),
        (("2", 1, "a:65536"), "coordinator must be an address"),
        (("2", 1, "a:b"), "coordinator must be an address"),
        (("2", 1, "a:1", 0), "host_timeout must be 1 or more"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        hosts.check_options(*options)


@pytest.mark.parametrize(
    "options", [(None, None, None), ("auto", None, None), ("2", 1, "[::1]:1234"), ("1", 0, "a:1")]
)
def test_options_that_belong_together_are_not(options):
    hosts.check_options(*options)


def test_a_port_that_is_taken_is_refused_by_the_host_that_is_to_listen_there():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            InputError, match=f"coordinator: port {port} of this host cannot be used"
        ):
            hosts.start("2", 0, f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    "words", [("--host", "1"), ("--hosts", "2", "--host", "2", "--coordinator", "127.0.0.1:1")]
)
def test_the_command_line_refuses_them_in_one_line(words, capfd, tmp_path):
    assert cli.main(["run", *words, "--out", str(tmp_path / "out")]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("bdjax: host")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_auto_without_anything_to_find_is_refused_in_one_line(capfd, tmp_path, monkeypatch):
    for name in [
        name for name in os.environ if name.startswith(("SLURM", "OMPI", "JAX_COORDINATOR"))
    ]:
        monkeypatch.delenv(name)
    assert cli.main(["run", "--hosts", "auto", "--out", str(tmp_path)]) == 2
    said = "bdjax: hosts is auto, but JAX finds no SLURM, Open MPI or TPU pod; give their number.\n"
    assert capfd.readouterr().err == said


def test_a_single_process_is_the_first_and_agrees_with_itself():
    assert (hosts.process_count(), hosts.is_first()) == (1, True)
    something = object()
    assert hosts.from_first(lambda: something) is something
    assert hosts.arrays_of_first(something) is something
    assert [hosts.any_says(value) for value in (True, False)] == [True, False]
    hosts.check_same(thing=something)
    with pytest.raises(ZeroDivisionError):
        hosts.from_first(lambda: 1 / 0)


def test_copies_of_a_single_process_are_its_own_already():
    array = jax.numpy.arange(3)
    assert hosts.local({"x": array})["x"] is array


def test_devices_are_divided_among_the_hosts(monkeypatch):
    monkeypatch.setattr(hosts, "process_count", lambda: 3)
    for devices in (1, 4, 8):
        with pytest.raises(
            InputError, match=f"devices must be a multiple of hosts = 3, as .*; got {devices}"
        ):
            sharding.batch_mesh(devices, 24)


@pytest.mark.parametrize("value", [{"a": [1, None, "x"]}, "word", None, 3])
def test_a_checksum_tells_plain_values_apart(value):
    assert hosts._checksum(value) == hosts._checksum(json.loads(json.dumps(value)))
    assert hosts._checksum(value) != hosts._checksum([value])


def test_a_checksum_of_arrays_counts_every_bit_and_the_shape():
    tree = {"x": np.arange(6, dtype=np.uint8).reshape(2, 3), "y": np.zeros(2, np.float32)}
    same = {"x": jax.numpy.asarray(tree["x"]), "y": np.zeros(2, np.float32)}
    flipped = {**tree, "y": np.float32([0, -0.0])}
    reshaped = {**tree, "x": tree["x"].reshape(3, 2)}
    assert hosts._checksum(tree) == hosts._checksum(same)
    assert len({hosts._checksum(each) for each in (tree, flipped, reshaped)}) == 3
