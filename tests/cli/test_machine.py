"""Accidents of the machine, from end to end: each ends in one line, and what was done before them is not lost."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import made_up
import pytest

from bdjax import cli, report, saved
from bdjax.analysis import _analyze
from bdjax.checks import InputError
from bdjax.cli import _demo, _execution
from bdjax.files import failures
from bdjax.runs import run, sweep
from bdjax.runs.folder import RunFolder

SIZES = (
    "--model.width",
    "2",
    "--training.epochs",
    "2",
    "--defense",
    "ft",
    "--defense.epochs",
    "2",
    "--quiet",
)
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    "JAX_PLATFORMS": "cpu",
}


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def bdjax(*words: str) -> Answer:
    """Call the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words)
    return Answer(code, out.getvalue(), err.getvalue())


def process(code: str, *words: str, **environment: str) -> Answer:
    """Run Python's code, then the command line with these words, in a process of its own."""
    code += (
        "; import sys; from bdjax import cli; sys.argv[0] = 'bdjax'; sys.exit(cli.main())"
        if words
        else ""
    )
    command = [sys.executable, "-c", code, *words]
    ended = subprocess.run(
        command, capture_output=True, encoding="utf-8", env={**ENVIRONMENT, **environment}
    )
    return Answer(ended.returncode, ended.stdout, ended.stderr)


def one_line(answer: Answer, code: int) -> str:
    assert re.fullmatch(r"bdjax: [^\n]+\n", answer.err), answer
    assert (answer.code, answer.out) == (code, "")
    return answer.err


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch):
    monkeypatch.setattr("bdjax.devices.compilation.enable_cache", lambda: None)


# --- Storage ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_cannot_be_written_is_one_line_and_the_same_command_continues(tmp_path):
    """A limit on the size of files fails in TensorStore as a full disk does, and needs no right to mount one."""
    words = (
        "run",
        *SIZES,
        "--model.width",
        "24",
        "--out",
        str(tmp_path / "runs"),
        "--checkpoint-seconds",
        "0",
    )
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))"
    stopped = process(limit, *words, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert "File too large" in one_line(
        Answer(stopped.code, stopped.out, stopped.err.splitlines(True)[-1]), 1
    )
    assert len(stopped.err.splitlines()) <= 2  # the other is of the cache of compiled programs
    ended = process("pass", *words, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="only root may mount a small disk"
)
def test_a_full_disk_is_one_line_wherever_it_fills_up_and_the_same_command_continues(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        words = ("run", *SIZES, "--out", str(disk / "runs"), "--checkpoint-seconds", "0")
        free = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        for filled in (1_044_000, 1_036_000, 1_030_000, 1_020_000, 1_000_000, 960_000, 900_000):
            (disk / "filled").write_bytes(bytes(filled))
            stopped = process("pass", *words, **free)
            (disk / "filled").unlink()
            if stopped.code == 0:
                break  # what was there of it, and a little more, was enough
            said = one_line(stopped, 1)
            assert "there is no room left" in said
            assert "once there is room, the same command continues." in said
        whole = process("pass", *words[:-3], str(tmp_path / "runs"), *words[-2:], **free)
        ended = process("pass", *words, **free)
        assert (ended.code, ended.err) == (0, "")
        rates = [line.split()[:5] for line in ended.out.splitlines()[:4]]
        assert rates == [line.split()[:5] for line in whole.out.splitlines()[:4]]
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        other = process("pass", *words, "--seed", "1", **free)
        assert "Read-only file system" in one_line(other, 1)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_too_many_open_files_are_one_line(tmp_path):
    few = "import jax.numpy, os, resource; from bdjax.runs import run; top = len(os.listdir('/proc/self/fd'))"
    few += "; resource.setrlimit(resource.RLIMIT_NOFILE, (top + 6, top + 6))"
    if not Path("/proc/self/fd").exists():
        pytest.skip("open files are counted on Linux alone")
    words = ("run", *SIZES, "--out", str(tmp_path / "runs"), "--checkpoint-seconds", "0")
    said = one_line(process(few, *words, XDG_CACHE_HOME=str(tmp_path / "cache")), 1)
    assert "too many files are open" in said
    assert "the same command continues." in said


def test_a_folder_that_vanishes_is_one_line_and_can_be_made_again(tmp_path, monkeypatch):
    out, gone = tmp_path / "runs", []

    @contextlib.contextmanager
    def bar(**_):
        def on_epoch(label, epochs, epoch):
            if label == "ft" and epoch.epoch == epochs and not gone:
                shutil.rmtree(out)
                out.write_text("another's")
                gone.append(True)

        yield on_epoch

    monkeypatch.setattr("bdjax.cli._progress.bar", bar)
    assert str(out) in one_line(
        bdjax("run", *SIZES, "--out", str(out), "--checkpoint-seconds", "0"), 1
    )
    out.unlink()
    assert bdjax("run", *SIZES, "--out", str(out)).code == 0


# --- Memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "INTERNAL: Error preparing computation: Out of memory allocating 14400000000 bytes.\n[op]"
        ),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."),
        MemoryError("Unable to allocate 728. TiB"),
        MemoryError(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("command", ["run", "sweep", "demo"])
def test_a_lack_of_memory_is_one_line_that_says_what_to_lower(
    command, error, tmp_path, monkeypatch
):
    def fail(*_):
        raise error

    for module, name in ((run, "run_with_controls"), (sweep, "run"), (_demo, "carry_out")):
        monkeypatch.setattr(module, name, fail)
    words = ("--over", "defense.rho=1") if command == "sweep" else ()
    said = one_line(bdjax(command, *words, "--out", str(tmp_path / "runs")), 1)
    assert "lower batch_size, width" in said
    assert "[op]" not in said


def test_memory_that_a_cpu_does_not_have_is_known_by_what_jax_raises():
    with pytest.raises(RuntimeError) as raised:
        jax.numpy.zeros((10**7, 10**7)).block_until_ready()
    assert failures.is_out_of_memory(raised.value)


def test_a_mistake_in_the_code_keeps_its_traceback(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("INTERNAL: a mistake")

    monkeypatch.setattr(run, "run_with_controls", fail)
    with pytest.raises(RuntimeError, match="a mistake"):
        bdjax("run", "--out", str(tmp_path / "runs"))


# --- Accelerators ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("run",),
        ("run", "--show"),
        ("sweep", "--over", "defense.rho=1,2"),
        ("demo",),
        ("show", "badnets"),
        ("analyze", "tac", "runs"),
        ("smoothness", "runs"),
        ("bench",),
    ],
    ids=" ".join,
)
def test_an_accelerator_that_is_not_there_is_one_line_before_anything_is_done(
    words, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise RuntimeError("Unable to initialize backend 'cuda': no CUDA")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax, "local_devices", fail)
    assert "no CUDA" in one_line(bdjax(*words), 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("platform", ["nonsense", "cuda"])
def test_jax_says_it_in_a_process_of_its_own(platform, tmp_path):
    if platform == "cuda" and any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("there is one")
    words = ("run", *SIZES, "--out", str(tmp_path / "runs"))
    said = one_line(process("pass", *words, JAX_PLATFORMS=platform), 2)
    assert f"JAX_PLATFORMS asks for '{platform}', which cannot be used here" in said
    assert list(tmp_path.iterdir()) == []


def test_who_computes_nothing_needs_no_accelerator(tmp_path):
    made_up.write(tmp_path / "runs", made_up.content())
    for words in (("list", "attacks"), ("report", str(tmp_path / "runs"))):
        answer = process("pass", *words, JAX_PLATFORMS="nonsense")
        assert (answer.code, answer.err) == (0, "")


# --- Windows ---------------------------------------------------------------------------------------------------------

IMPORT_ALL = """
import importlib, os, pkgutil, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
import bdjax
for module in pkgutil.walk_packages(bdjax.__path__, "bdjax."):
    if module.name != "bdjax.__main__":
        importlib.import_module(module.name)
from pathlib import Path
from bdjax import data
from bdjax.devices import environment, placement
from bdjax.files import locks
del os.sysconf, os.geteuid, os.getuid
assert environment.memory()["host_peak_bytes"] is None
assert placement.host_bytes() is None
assert placement.choose_place("auto", data.load("digits").train) == "device"
try:
    with locks.locked(Path(sys.argv[1])):
        raise AssertionError("nothing can be locked here")
except OSError as error:
    print(error)
"""


def test_every_module_is_imported_where_unix_modules_are_missing(tmp_path):
    answer = process(IMPORT_ALL.replace("sys.argv[1]", repr(str(tmp_path))))
    assert answer.code == 0, answer
    # Filelock's part for Windows is not for this system
    assert "so it cannot be locked" in answer.out


def test_several_hosts_are_refused_on_windows(monkeypatch):
    options: Any = ("run", "--hosts", "1", "--host", "0", "--coordinator", "127.0.0.1:1234")
    parsed = cli._parser().parse_args(options)
    monkeypatch.setattr(_execution.sys, "platform", "win32")
    with pytest.raises(InputError, match="hosts must not be given on Windows"):
        _execution.check_execution(parsed)


# --- Packages that may be missing ------------------------------------------------------------------------------------

NOTE = "bdjax: the figures will be left out: Figures need matplotlib, which pip install 'bdjax[plots]' brings.\n"


@pytest.fixture
def no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def runs(tmp_path):
    return str(made_up.write(tmp_path / "made", made_up.content()))


def test_a_demo_without_matplotlib_says_so_first_and_ends_well(
    no_matplotlib, runs, tmp_path, monkeypatch
):
    done = []
    monkeypatch.setattr(_demo, "carry_out", lambda *_: done.append("trained"))
    load = report.load
    monkeypatch.setattr(report, "load", lambda paths: load([runs]))
    said = []
    monkeypatch.setattr("bdjax.cli.demo.may_draw", lambda: said.append(list(done)) or False)
    answer = bdjax("demo", "--out", str(tmp_path / "out"))
    assert (said, done, answer.code) == ([[]], ["trained"], 0)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(_demo, "carry_out", lambda *_: None)
    monkeypatch.setattr(report, "load", lambda paths: load([runs]))
    answer = bdjax("demo", "--out", str(tmp_path / "out"))
    assert (answer.code, answer.err) == (0, NOTE)
    assert "badnets" in answer.out
    assert not (tmp_path / "out").exists()


def test_a_sweep_without_matplotlib_says_so_first_and_ends_well(
    no_matplotlib, runs, tmp_path, monkeypatch
):
    load, told = report.load, []

    def carry_out(wanted, execution, spread):
        told.append(sys.stderr.getvalue())
        return wanted

    monkeypatch.setattr(sweep, "run", carry_out)
    monkeypatch.setattr(RunFolder, "finished", lambda folder: {})
    monkeypatch.setattr(report, "load", lambda paths: load([runs]))
    answer = bdjax("sweep", "--over", "defense.rho=1,2", "--out", str(tmp_path / "out"))
    assert (answer.code, answer.err, told) == (0, NOTE, [NOTE])
    assert "badnets" in answer.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("report", "no/such/runs", "--figures", "figures"),
        ("analyze", "tac", "no/such/runs"),
        ("show", "badnets", "wanet"),
    ],
    ids=lambda words: words[0],
)
def test_what_is_for_a_figure_alone_is_refused_before_any_work(
    words, no_matplotlib, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert one_line(bdjax(*words), 2) == NOTE.replace("the figures will be left out: ", "")
    assert list(tmp_path.iterdir()) == []


def test_a_page_without_matplotlib_has_all_but_the_figures_of_analyses(
    no_matplotlib, runs, tmp_path
):
    page = tmp_path / "page.html"
    plain = bdjax("report", runs, "--html", str(page))
    assert (plain.code, plain.err) == (0, "")  # there is none that it would lack
    (Path(runs) / "run000" / "analysis-tac.npz").write_bytes(b"whatever is in it")
    answer = bdjax("report", runs, "--html", str(page))
    assert (answer.code, answer.err) == (0, NOTE.replace("the figures", "the figures of analyses"))
    assert page.exists()


def test_what_embeds_is_looked_for_before_a_network_is_loaded(runs, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")

    def load(*_):
        raise AssertionError("this call should have been refused before")

    monkeypatch.setattr(saved, "subject", load)
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    with pytest.raises(InputError, match="t-SNE needs openTSNE"):
        _analyze.analyze("features", [runs], tmp_path / "figures")
    assert not (tmp_path / "figures").exists()
