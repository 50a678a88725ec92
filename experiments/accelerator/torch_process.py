"""PyTorch in a process of its own, to be called step by step beside JAX."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax

from accelerator.torch_ways import Way

LIMIT = 240.0  # seconds that one call may take, compiling included


class Missing(Exception):
    """PyTorch, or a way to compute in it, is not to be had here; the text says why."""


class TorchProcess:
    """A process that takes steps on demand. It starts with the first, and anew after a call that it did not survive."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._process: subprocess.Popen[str] | None = None

    def take(self, *, way: Way, **asked: Any) -> dict[str, Any]:
        """Take the steps that are asked for, and return what they tell of themselves.

        Args:
          way: how PyTorch computes.
          asked: width, batch_size, count and sam of `accelerator.torch_steps.steps`.

        Raises:
          Missing: there is no PyTorch, the steps failed, or the process has ended.
        """
        process = self._process = self._process or _started()
        answer = _asked(process, json.dumps({"way": dataclasses.asdict(way), **asked}))
        if not answer:
            self.close()
            raise Missing(f"PyTorch's process ended with code {process.returncode}")
        told = json.loads(answer)
        if "error" in told:
            raise Missing(told["error"])
        return told

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _started() -> subprocess.Popen[str]:
    if importlib.util.find_spec("torch") is None:
        raise Missing("PyTorch is not installed")
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "accelerator.torch_steps"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def _asked(process: subprocess.Popen[str], line: str) -> str:
    """Return the line that answers one, or nothing if the process ends before, or is ended for taking too long."""
    assert process.stdin is not None
    assert process.stdout is not None
    timer = threading.Timer(LIMIT, process.kill)
    timer.start()
    try:
        print(line, file=process.stdin, flush=True)
        return process.stdout.readline()
    except OSError:  # it has ended already
        return ""
    finally:
        timer.cancel()


def device() -> str:
    """Return PyTorch's name of the kind of device that JAX computes on.

    Raises:
      Missing: PyTorch has no such device.
    """
    backend = jax.default_backend()
    if backend not in ("cpu", "gpu"):
        raise Missing(f"PyTorch is not compared on a {backend}")
    return {"cpu": "cpu", "gpu": "cuda"}[backend]
