"""Time what comes before the first step: importing, compiling cold and from the cache on disk, loading CIFAR-10.

    python experiments/bench_startup.py --rounds 3 --data-dir ~/tensorflow_datasets

Each figure is a median over fresh processes. Without a data folder the loads are left out.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import _measure

IMPORT = "import time; t = time.perf_counter(); import {modules}; print(time.perf_counter() - t)"
MODULES = "bdjax.run, bdjax.report"  # all that a run and its report need
COMPILE = """
import sys
import jax, jax.numpy as jnp
sys.path.insert(0, {folder!r})
import bench_steps
from bdjax import defenses, models
from bdjax.train import compilation, loop, supervised
compilation.enable_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
model = models.create("preact_resnet18", bench_steps.SPEC, width={width})
split = bench_steps.random_split(64)
for learner in (supervised.supervised(batch_size=32), defenses.create("ft_sam", batch_size=32)):
    state = bench_steps.start(learner, model, split)
    with compilation.count_seconds() as seconds:
        loop.train_epoch(jax.random.key(0), learner, model, state, split)
    print(sum(seconds))
"""
LOAD = """
import time
from bdjax import data
t = time.perf_counter()
dataset = data.load("cifar10", data_dir={folder!r})
print(time.perf_counter() - t, len(dataset.train.label), len(dataset.test.label))
"""


def main() -> None:
    options = _measure.arguments(__doc__, rounds=3, width=16, data_dir=os.environ.get("BDJAX_DATA_DIR", ""))
    results: dict[str, Any] = {"import_seconds": import_seconds(options.rounds)}
    results["compile_seconds"] = compile_seconds(options.rounds, options.width)
    if options.data_dir:
        results["load_cifar10_seconds"] = load_seconds(options.rounds, Path(options.data_dir).expanduser())
    _measure.write(results, options.out)


def import_seconds(rounds: int) -> dict[str, float]:
    """Return seconds to import the package alone, and everything that a run needs."""
    wanted = {"bdjax": "bdjax", "everything": MODULES}
    return {
        name: statistics.median(child(IMPORT.format(modules=modules))[0] for _ in range(rounds))
        for name, modules in wanted.items()
    }


def compile_seconds(rounds: int, width: int) -> dict[str, Any]:
    """Return seconds to trace and compile an epoch of plain and of SAM steps, cold and from the cache."""
    code = COMPILE.format(folder=str(Path(__file__).parent), width=width)
    cold, cached = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(child(code, XDG_CACHE_HOME=cache))
            cached.append(child(code, XDG_CACHE_HOME=cache))
    return {
        name: {"plain": statistics.median(run[0] for run in runs), "sam": statistics.median(run[1] for run in runs)}
        for name, runs in (("cold", cold), ("cached", cached))
    }


def load_seconds(rounds: int, source: Path) -> dict[str, float]:
    """Return seconds to load 60,000 images from a copy of a prepared folder, without and with the cache."""
    cold, cached = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            ignore = shutil.ignore_patterns("bdjax-cache")
            shutil.copytree(source / "cifar10", Path(folder) / "cifar10", ignore=ignore, copy_function=shutil.copyfile)
            cold.append(child(LOAD.format(folder=folder), XDG_CACHE_HOME=folder)[0])
            cached.append(child(LOAD.format(folder=folder), XDG_CACHE_HOME=folder)[0])
    return {"cold": statistics.median(cold), "cached": statistics.median(cached)}


def child(code: str, **environment: str) -> list[float]:
    """Run Python code in a fresh process and return the first number of each line that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return [float(line.split()[0]) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    main()
