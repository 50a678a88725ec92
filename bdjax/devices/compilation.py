"""How bdjax compiles: where the cache lies, with which options, and how long it took."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.metadata
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax

from bdjax.checks import InputError
from bdjax.devices import flags

R = TypeVar("R", covariant=True)

_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '([\w<>.-]+)'")
_LARGE = 2**18  # bytes, more than most programs have
_log = logging.getLogger(__name__)
_NONE: flags.Options = MappingProxyType({})
_ALSO: contextvars.ContextVar[flags.Options] = contextvars.ContextVar("also", default=_NONE)
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
        where = "JAX finds no device"
        if asked:
            where = f"JAX_PLATFORMS asks for {asked!r}, which cannot be used"
        why = reason or "its plugin is not installed"
        raise InputError(f"{where} here ({why}); name another, or none.") from error


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

    def look(message: Warning | str, *args: Any, **options: Any) -> None:  # as the module calls it
        if (found := _UNREADABLE.match(str(message))) is None:
            show(message, *args, **options)
            return
        for entry in folder.glob(f"{found[1]}-*-cache"):
            with contextlib.suppress(OSError):
                entry.unlink()
        _log.info(
            "The compiled program %s in %s was damaged, and is compiled again.", found[1], folder
        )

    warnings.showwarning = look


def _warn_of_no_cache(folder: Path, error: OSError) -> None:
    words = "Compiled programs cannot be kept in %s (%s); each start compiles them again."
    _log.warning(words, folder, error.strerror)


@runtime_checkable
class Compiled(Protocol[R]):
    """What `jit` returns: the function, with the ``lower`` of `jax.jit`."""

    lower: Callable[..., jax.stages.Lowered]

    def __call__(self, *args: Any, **kwargs: Any) -> R: ...


def jit(function: Callable[..., R], *, tuned: bool = True, **options: Any) -> Compiled[R]:
    """Return `jax.jit` of the function with the compiler options that are in force when it is called.

    Args:
      function: to be compiled.
      tuned: with the options of `bdjax.devices.flags.USED` too; without, it has those of `also` alone.
      options: of `jax.jit`.
    """

    @functools.cache
    def compiled(under: tuple[tuple[str, flags.Value], ...]) -> jax.stages.Wrapped:
        return jax.jit(function, compiler_options=dict(under) or None, **options)

    def here() -> jax.stages.Wrapped:
        under = options_in_force() if tuned else _ALSO.get()
        return compiled(tuple(sorted(under.items())))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> R:
        return here()(*args, **kwargs)

    def lower(*args: Any, **kwargs: Any) -> jax.stages.Lowered:
        return here().lower(*args, **kwargs)

    call.lower = lower  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def options_in_force() -> dict[str, flags.Value]:
    """Return the compiler options of a program that is called now: the backend's, then those of `also`."""
    return {**flags.used(jax.default_backend()), **_ALSO.get()}


@contextlib.contextmanager
def also(options: flags.Options) -> Iterator[None]:
    """Call programs with further compiler options in the block; in this thread alone.

    Raises:
      InputError: this XLA does not know one of them.
    """
    if (why := flags.unknown(options)) is not None:
        refused = f"it refuses {dict(options)}: {why}"
        raise InputError(f"compiler options must be known to this XLA; {refused}.")
    token = _ALSO.set({**_ALSO.get(), **options})
    try:
        yield
    finally:
        _ALSO.reset(token)


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
