"""Locks: one process at a time in a folder, and none that a killed process leaves behind."""

import errno
import os
import subprocess
import sys
import time

import pytest

from bdjax.files import locks

HOLD = """
import sys, time
from pathlib import Path
from bdjax.files import locks

folder, name, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
(folder / f"{name} asks").touch()
with locks.locked(folder):
    (folder / f"{name} has it").touch()
    time.sleep(seconds)
"""


def hold(folder, name, seconds):
    """Start a process that holds a folder for some seconds."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), name, str(seconds)], env=environment
    )


def wait_for(file):
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} did not appear"
        time.sleep(0.01)


def test_a_second_process_waits_until_the_first_is_dead(tmp_path):
    first = hold(tmp_path, "first", 600)
    wait_for(tmp_path / "first has it")
    second = hold(tmp_path, "second", 0)
    wait_for(tmp_path / "second asks")
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(0.5)
    assert not (tmp_path / "second has it").exists()
    first.kill()  # the lock is not a file that a killed process leaves behind
    first.wait()
    assert second.wait(60) == 0
    assert (tmp_path / "second has it").exists()


def test_a_lock_is_free_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locks.locked(tmp_path):
            raise ZeroDivisionError


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.lock_descriptor", fail)
    for hold in (lambda: locks.locked(tmp_path), lambda: locks.claimed([tmp_path])):
        with (
            pytest.raises(OSError, match="No locks available, so it cannot be locked") as raised,
            hold(),
        ):
            raise AssertionError("it is not held")
        assert (raised.value.errno, raised.value.filename) == (
            errno.ENOLCK,
            str(tmp_path / ".lock"),
        )


def test_a_lock_leaves_what_is_in_its_file_alone(tmp_path):
    (tmp_path / ".lock").write_text("of an earlier bdjax")
    with locks.locked(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == "of an earlier bdjax"


def test_folders_are_claimed_all_or_none(tmp_path):
    held, free = tmp_path / "held", tmp_path / "free"
    with locks.locked(held), locks.claimed([free, held]) as other:
        assert other == held
        with locks.claimed([free]) as nobody:  # what is not worked on is not held either
            assert nobody is None
    with locks.claimed([free, held]) as nobody, locks.claimed([held]) as other:
        assert (nobody, other) == (None, held)
