"""What comes before the first step, each in a fresh process: importing, and compiling cold and from the cache."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile

import jax

from bdjax import defenses
from bdjax.bench import measure
from bdjax.bench.session import Session, Settings, settings
from bdjax.devices import compilation, numerics
from bdjax.train import loop
from bdjax.train.supervised import supervised

MODULES = "bdjax.runs.run, bdjax.report"  # all that a run and its report need
_IMPORT = "import time; t = time.perf_counter(); import {modules}; print(time.perf_counter() - t)"
_COMPILE = "import sys; from bdjax.bench import startup; startup.compile_here(sys.argv[1])"


def section(session: Session) -> measure.Row | None:
    """Measure the first width and batch size once; a process that fails is told and skipped."""
    if not session.room("startup"):
        return None
    try:
        importing = import_seconds(1)
        compiling = compile_seconds(session.settings, 1)
        return {"import_seconds": importing, "compile_seconds": compiling}
    except subprocess.CalledProcessError as error:  # some accelerators belong to one process
        last = (error.stderr or "").strip().rpartition("\n")[2]
        session.skip("startup", f"another process cannot use the device: {last}")
        return None


def import_seconds(rounds: int, modules: str = MODULES) -> float:
    """Return the median seconds of importing."""
    return statistics.median(child(_IMPORT.format(modules=modules))[0] for _ in range(rounds))


def compile_seconds(asked: Settings, rounds: int) -> dict[str, dict[str, float]]:
    """Return the median seconds of tracing and compiling an epoch of plain and of SAM steps, cold and cached."""
    written = json.dumps({**dataclasses.asdict(asked), "devices": 1})
    runs: dict[str, list[list[float]]] = {"cold": [], "cached": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for kind in runs:  # the first fills the cache for the second
                runs[kind].append(child(_COMPILE, written, JAX_COMPILATION_CACHE_DIR=cache))
    return {kind: _medians(of) for kind, of in runs.items()}


def _medians(runs: list[list[float]]) -> dict[str, float]:
    plain, sam = zip(*runs, strict=True)
    return {"plain": statistics.median(plain), "sam": statistics.median(sam)}


def compile_here(written: str) -> None:
    """Print the seconds that each program takes to trace and compile in this process."""
    asked = settings(**json.loads(written))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    with numerics.in_force(asked.matmul_precision):
        _compile(asked)


def _compile(asked: Settings) -> None:
    model, batch_size = asked.create(asked.widths[0]), asked.batch_sizes[0]
    split = measure.random_split(model.spec, batch_size * asked.steps)
    for learner in (
        supervised(batch_size=batch_size),
        defenses.create("ft_sam", batch_size=batch_size).learner,
    ):
        state = measure.random_state(learner, model, split)  # type: ignore[arg-type]
        with compilation.count_seconds() as seconds:
            loop.train_epoch.lower(jax.random.key(0), learner, model, state, split).compile()
        print(sum(seconds))


def child(code: str, *words: str, **environment: str) -> list[float]:
    """Run Python code in a fresh process and return the first number of each line that it prints.

    It may take memory of the device beside this process.

    Raises:
      subprocess.CalledProcessError: it failed.
    """
    variables = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", **environment}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, env=variables, capture_output=True, encoding="utf-8", check=True)
    return [float(line.split()[0]) for line in done.stdout.splitlines()]
