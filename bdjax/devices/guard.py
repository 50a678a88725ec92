"""A process that watches the one that computes: JAX ends a process of several, by a signal, when it loses another.

No handler in that process could prevent it, so its parent says in one line what has happened. It imports no JAX.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TypeAlias

LOST = (
    "another host was lost, or failed; the same command continues, on another number of hosts too"
)
_VARIABLE = "BDJAX_WATCHED"
_EXIT_FAILED, _EXIT_STOPPED = 1, 143
# What `signal.signal` takes and returns; None is one that was not set from Python.
_Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None


def is_watched() -> bool:
    """Say whether this is the process that computes."""
    return _VARIABLE in os.environ


def watch(module: str, words: Sequence[str]) -> int:
    """Run ``python -m module words`` as a child and return its exit code, 1 with a line for one that was aborted.

    SIGTERM and Ctrl-C are passed on as a question (`listen`); a second one ends both.
    """
    # Exactly what is imported here, whatever lies in this folder
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, _VARIABLE: "1", "PYTHONPATH": path}
    command = [sys.executable, "-P", "-m", module, *words]
    received: list[int] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, env=environment) as child:

        def pass_on(number: int, frame: FrameType | None) -> None:
            received.append(number)
            signal.signal(number, previous[number])
            with contextlib.suppress(OSError):
                os.write(pipe, b"s")

        assert child.stdin is not None
        pipe = child.stdin.fileno()
        previous: dict[int, _Handler] = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, pass_on)
        try:
            while child.poll() is None:
                child.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            child.stdin.close()  # which ends a child that is still there
    if child.returncode >= 0:
        return child.returncode
    if received or child.returncode == -signal.SIGTERM:  # before it could ask
        return _EXIT_STOPPED
    print(f"bdjax: {LOST} ({signal.Signals(-child.returncode).name}).", file=sys.stderr)
    return _EXIT_FAILED


def listen() -> Callable[[], bool]:
    """In the child: return whether the parent was asked to stop; end with the parent, however that ends."""
    asked = threading.Event()

    def read() -> None:
        while os.read(0, 1):
            asked.set()
        os._exit(_EXIT_FAILED)

    threading.Thread(target=read, daemon=True).start()
    return asked.is_set
