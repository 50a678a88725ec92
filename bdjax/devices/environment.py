"""What a result was computed with and on: versions of packages, the device with its settings, memory."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import sys
from typing import Any

try:
    import resource
except ModuleNotFoundError:  # Windows has none
    resource = None

_PACKAGES = ("bdjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def device(count: int) -> dict[str, Any]:
    """Return what the run computes on, and the settings outside the config that decide how it rounds."""
    import jax

    first = jax.local_devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": count,
        "hosts": jax.process_count(),
        "matmul_precision": jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def memory() -> dict[str, int | None]:
    """Return the most bytes that this process has held so far, on a host and on a device that tell."""
    import jax

    unit = 1 if sys.platform == "darwin" else 1024
    statistics = jax.local_devices()[0].memory_stats() or {}
    return {
        "host_peak_bytes": resource and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "device_peak_bytes": statistics.get("peak_bytes_in_use"),
    }
