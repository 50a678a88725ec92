"""Other processes of this checkout: what they are started with, and that none outlives who started it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

PATIENCE = 300.0  # seconds after which a process is taken for stuck
_SHOWN = 300  # letters of the last thing that it said


class Failed(RuntimeError):
    """A process ended otherwise than it should; what it said last."""


@contextlib.contextmanager
def started(
    words: Sequence[str], said: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Start Python with these words and everything that this process can import.

    Args:
      words: after ``python``.
      said: the file of what it prints.
      environment: what is otherwise than here.
    """
    there = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        # Several processes share the device, each taking what it needs.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **environment,
    }
    said.parent.mkdir(parents=True, exist_ok=True)
    with said.open("wb") as file:
        command = [sys.executable, *words]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=there)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def finish(process: subprocess.Popen[bytes], said: Path, code: int = 0) -> None:
    """Wait for the end of a process.

    Raises:
      Failed: it ended with another exit code.
    """
    if (ended := process.wait(timeout=PATIENCE)) != code:
        raise Failed(f"exit code {ended} instead of {code}: {last_words(said)}")


def last_words(said: Path) -> str:
    """Return the line that says most of why a process ended: of an unknown flag, or the last one."""
    lines = said.read_text(encoding="utf-8", errors="replace").split("\n")
    told = [line.strip() for line in lines if line.strip()]
    flags = [line for line in told if "Unknown flag" in line]
    return (flags or told or ["nothing"])[-1][:_SHOWN]
