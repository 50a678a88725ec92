"""How bdjax compiles: where the cache lies, what the CPU needs, and how long it took."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from bdjax.checks import InputError

# On the CPU, XLA sends convolutions to a library that was slower than its own kernels for training when this was
# measured, with jax 0.10 and 0.11. The XLA of jax 0.12 knows the option, too.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}
_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '([\w<>.-]+)'")
_LARGE = 2**18  # bytes, more than most programs have
_log = logging.getLogger(__name__)
_DURATIONS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


def require_devices() -> None:
    """Find what JAX computes on, before anything is computed.

    Raises:
      InputError: ``JAX_PLATFORMS`` asks for an accelerator that is not there, or cannot be used.
    """
    try:
        jax.local_devices()
    except Exception as error:  # RuntimeError of most plugins, AssertionError without a word where CUDA's is missing
        reason = str(error).partition("\n")[0].partition(" (set JAX_PLATFORMS")[0].rstrip(".")
        asked = getattr(jax.config, "jax_platforms", None)
        where = f"JAX_PLATFORMS asks for {asked!r}, which cannot be used" if asked else "JAX finds no device"
        raise InputError(f"{where} here ({reason or 'its plugin is not installed'}); name another, or none.") from error


def enable_cache(folder: Path | None = None) -> None:
    """Keep compiled programs on disk for the next process, in a folder of the user's own.

    An existing setting of ``JAX_COMPILATION_CACHE_DIR`` is left alone. The default lies under ``XDG_CACHE_HOME`` or
    ``~/.cache`` and is named after the jaxlib version. Where nothing can be kept, a line says so and all goes on.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return
    if folder is None:
        root = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
        if root.parts[:1] == ("~",):  # a container's user may have no home
            return
        folder = root / "bdjax" / f"xla-{importlib.metadata.version('jaxlib')}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        _warn_of_no_cache(folder, error)
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_LARGE))
    except OSError as error:  # what is there already can still be read
        _warn_of_no_cache(folder, error)
    # JAX would say it again, in two lines, of each program.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry")
    _mend(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _mend(folder: Path) -> None:
    """Take away a program that a full disk or a kill has cut short, instead of a warning at each start.

    JAX compiles it again, but leaves the file as it is.
    """
    show = warnings.showwarning

    def look(message: Warning | str, *args: Any, **options: Any) -> None:
        if (found := _UNREADABLE.match(str(message))) is None:
            show(message, *args, **options)
            return
        for entry in folder.glob(f"{found[1]}-*-cache"):
            with contextlib.suppress(OSError):
                entry.unlink()
        _log.info("The compiled program %s in %s was damaged, and is compiled again.", found[1], folder)

    warnings.showwarning = look


def _warn_of_no_cache(folder: Path, error: OSError) -> None:
    _log.warning("Compiled programs cannot be kept in %s (%s); each start compiles them again.", folder, error.strerror)


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
