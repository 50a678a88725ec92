"""Time what comes before the first step: importing, compiling cold and from the cache on disk, loading CIFAR-10.

    python experiments/bench_startup.py --rounds 3 --data-dir ~/tensorflow_datasets

Each figure is a median over fresh processes. Without a data folder the loads are left out.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import _measure

from bdjax.bench import session, startup

LOAD = """
import time
from bdjax import data
t = time.perf_counter()
dataset = data.load("cifar10", data_dir={folder!r})
print(time.perf_counter() - t, len(dataset.train.label), len(dataset.test.label))
"""


def main() -> None:
    options = _measure.arguments(
        __doc__, rounds=3, width=16, data_dir=os.environ.get("BDJAX_DATA_DIR", "")
    )
    imports = {"bdjax": "bdjax", "everything": startup.MODULES}
    seconds = {
        name: startup.import_seconds(options.rounds, modules) for name, modules in imports.items()
    }
    settings = session.settings(widths=(options.width,), batch_sizes=(32,), steps=2)
    results: dict[str, Any] = {"import_seconds": seconds}
    results["compile_seconds"] = startup.compile_seconds(settings, options.rounds)
    if options.data_dir:
        results["load_cifar10_seconds"] = load_seconds(
            options.rounds, Path(options.data_dir).expanduser()
        )
    _measure.write(results, options.out)


def load_seconds(rounds: int, source: Path) -> dict[str, float]:
    """Return seconds to load 60,000 images from a copy of a prepared folder, without and with the cache."""
    cold, cached = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            ignore = shutil.ignore_patterns("bdjax-cache")
            shutil.copytree(
                source / "cifar10",
                Path(folder) / "cifar10",
                ignore=ignore,
                copy_function=shutil.copyfile,
            )
            cold.append(startup.child(LOAD.format(folder=folder), XDG_CACHE_HOME=folder)[0])
            cached.append(startup.child(LOAD.format(folder=folder), XDG_CACHE_HOME=folder)[0])
    return {"cold": statistics.median(cold), "cached": statistics.median(cached)}


if __name__ == "__main__":
    main()
