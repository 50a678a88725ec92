"""What the benchmarks share: interleaved timing, the machine's own rates, and JSON with the machine's name on it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bdjax import records


def arguments(description: str | None, **options: Any) -> argparse.Namespace:
    """Read ``--out FILE`` and the given options (name: default); a tuple default takes several numbers."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="write the JSON to this file instead of printing it")
    for name, default in options.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(default, tuple):
            parser.add_argument(flag, type=type(default[0]), nargs="+", default=list(default))
        else:
            parser.add_argument(flag, type=type(default), default=default)
    return parser.parse_args()


def interleaved(work: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each piece of work, timed in turn so that a drifting machine harms no ratio."""
    for call in work.values():  # compile and warm up
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matmul_rate(size: int = 2048, dtype: Any = jnp.float32) -> float:
    """Return the floating-point operations a second of a square matrix product, the best of ten."""
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def write(results: dict[str, Any], out: Path | None) -> None:
    """Write the results with date, machine and versions."""
    content = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpus": os.cpu_count(), "architecture": platform.machine(), "device": records.device(1)},
        "versions": records.versions(),
        **results,
    }
    text = json.dumps(content, indent=1)
    if out is None:
        print(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        records.write_text(out, text + "\n")
