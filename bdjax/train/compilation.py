"""How bdjax compiles: where the cache lies, what the CPU needs, and how long it took."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

# On the CPU, XLA 0.10–0.11 sends convolutions to a library that is slower than its own kernels for training.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}
_DURATIONS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


def enable_cache(folder: Path | None = None) -> None:
    """Keep compiled programs on disk for the next process, in a folder of the user's own.

    An existing setting of ``JAX_COMPILATION_CACHE_DIR`` is left alone. The default lies under ``XDG_CACHE_HOME`` or
    ``~/.cache`` and is named after the jaxlib version.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return
    if folder is None:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(root) / "bdjax" / f"xla-{importlib.metadata.version('jaxlib')}"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        jax.config.update("jax_compilation_cache_dir", str(folder))


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return `jax.jit` of the function with the compiler options that suit the backend at the first call."""

    @functools.cache
    def compiled() -> Callable[..., Any]:
        return jax.jit(function, compiler_options=_compiler_options(), **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    call.lower = lambda *args, **kwargs: compiled().lower(*args, **kwargs)  # type: ignore[attr-defined]
    return call


@functools.cache
def _compiler_options() -> dict[str, str] | None:
    """Return the CPU's options where this XLA knows them; they are experimental, so it may not."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x + 1, compiler_options=_CPU_OPTIONS).lower(0.0).compile()
    except Exception:  # an unknown option is an XlaRuntimeError or a ValueError, depending on the version
        return None
    return _CPU_OPTIONS


@contextlib.contextmanager
def count_seconds() -> Iterator[list[float]]:
    """Collect the seconds that tracing and compiling take inside the block; sum the list that is given."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event in _DURATIONS:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
