"""What a program spends its time on: a trace that XProf and TensorBoard open, and its costliest operations.

A trace is of few steps, after compiling: tracing everything would make files of gigabytes that say the same.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax

from bdjax.bench import origins
from bdjax.bench.origins import Origin
from bdjax.checks import InputError
from bdjax.devices import environment
from bdjax.files import atomic, failures, places
from bdjax.train.loop import Epoch

OPERATIONS = "operations.json"
COUNT = 10
# Their time is that of what they call
_CONTROL = ("while", "conditional", "call", "async-start", "async-done")
_DEVICE = re.compile(r"/device:(GPU|TPU|CUSTOM):\d+")
_WIDEST = 60  # characters of where an operation comes from that a table shows, the last ones
_UNKNOWN = Origin("", "", "")
_Read: TypeAlias = Any  # by `jax.profiler.ProfileData`, whose classes have no types
_Key: TypeAlias = tuple[str, str]  # program and operation
OnEpoch: TypeAlias = Callable[[str, int, Epoch], None]
_Programs: TypeAlias = Mapping[str, Mapping[str, Origin]]


class Operation(NamedTuple):
    """An operation of a compiled program, in all of its occurrences in a trace.

    Attributes:
      name: in the compiled program, such as ``fusion.12``.
      program: the program's, such as ``jit_epochs``.
      seconds: of all occurrences, on every device, or thread of a CPU, that computes.
      share: of the seconds of all operations in the trace.
      count: how often; on a GPU, kernels.
      path: JAX's name for where it comes from, as far as the trace tells; of a fusion, that of its last part.
      line: of the source, likewise.
    """

    name: str
    program: str
    seconds: float
    share: float
    count: int
    path: str = ""
    line: str = ""


@contextlib.contextmanager
def trace(folder: Path) -> Iterator[None]:
    """Write a trace of what is computed in the block, which is to end when the device is done, into a folder.

    Raises:
      OSError: it cannot be written.
    """
    # Before JAX finds out at the end
    (folder / "plugins" / "profile").mkdir(parents=True, exist_ok=True)
    options = jax.profiler.ProfileOptions()
    # A device's operations are told of at any level
    options.python_tracer_level, options.host_tracer_level = 0, 1
    jax.profiler.start_trace(folder, profiler_options=options)
    try:
        yield
    finally:
        try:
            jax.profiler.stop_trace()
        except (RuntimeError, OSError) as error:
            why = str(error).splitlines()[0]
            raise OSError(f"the trace cannot be written to {folder}: {why}") from error


def costliest(trace_dir: Path, count: int = COUNT) -> list[Operation]:
    """Return the operations that took the most time in the newest trace in a folder, the first one first.

    Raises:
      InputError: there is no trace.
    """
    return _operations(trace_dir)[:count]


def operations_table(operations: Sequence[Operation]) -> str:
    """Write operations as lines of text."""
    rows = [("share", "ms", "times", "operation", "from")]
    for each in operations:
        where = " ".join(filter(None, (_end(each.path), each.line)))
        milliseconds = f"{1000 * each.seconds:,.2f}"
        rows.append((f"{each.share:.1%}", milliseconds, f"{each.count:,}", each.name, where))
    share, took, count, name, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines: list[str] = []
    for row in rows:
        numbers = f"{row[0]:>{share}}  {row[1]:>{took}}  {row[2]:>{count}}"
        lines.append(f"{numbers}  {row[3]:<{name}}  {row[4]}".rstrip())
    return "\n".join(lines)


# --- Several traces of one call --------------------------------------------------------------------------------------


class Traces:
    """The traces of one call, each in a folder of its own, which TensorBoard shows as a run."""

    def __init__(self, folder: str | Path):
        """Look at the folder, which the first trace makes; traces of other names that are there are kept.

        Raises:
          InputError: it cannot be a folder, or cannot be written, or its `OPERATIONS` are damaged.
        """
        deepest = Path(100 * "n", "plugins", "profile", 100 * "f")
        self.folder = places.check_folder("profile", folder, deepest)
        self._made: dict[str, Path] = {}
        above = self.folder.absolute()
        while not above.is_dir():
            above = above.parent
        if not os.access(above, os.W_OK):
            raise InputError(f"profile must be a folder that can be written; {above} cannot.")
        with failures.blaming_the_path(f"cannot read what is in {folder}"):
            content = atomic.read_json(self.folder / OPERATIONS, {"traces": dict})
            self._earlier = (content or {}).get("traces", {})

    def of(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Return the context in which one trace is taken; a name that was there gets a number."""
        number, plain = 1, re.sub(r"[^\w.,=+-]+", "-", name)[:90]
        while (key := plain if number == 1 else f"{plain}-{number}") in self._made:
            number += 1
        self._made[key] = self.folder / key
        return trace(self.folder / key)

    def finish(self) -> dict[str, list[Operation]]:
        """Write `OPERATIONS` into the folder, and return the costliest ones of each trace by its name."""
        found = {name: _operations(folder) for name, folder in self._made.items()}
        if found:
            self._write(found)
        return {name: operations[:COUNT] for name, operations in found.items()}

    def _write(self, found: Mapping[str, Sequence[Operation]]) -> None:
        traces = dict(self._earlier)
        for name, operations in found.items():
            whole = sum(each.seconds for each in operations)
            costly = [each._asdict() for each in operations[:COUNT]]
            traces[name] = {"seconds": whole, "operations": costly}
        content = {"versions": environment.versions(), "traces": traces}
        atomic.write_json(self.folder / OPERATIONS, content)


@contextlib.contextmanager
def second_epochs(traces: Traces, on_epoch: OnEpoch | None) -> Iterator[OnEpoch]:
    """Trace the second call of all that is trained, of which the first has compiled the program.

    A call is one epoch, or of short ones two (`bdjax.train.pace`).

    Args:
      traces: where to.
      on_epoch: is called in turn.

    Returns:
      an ``on_epoch`` of `bdjax.runs.run.Execution`. What has one epoch alone is not traced.
    """
    open_trace = contextlib.ExitStack()
    # What was trained, its epochs, and the number of the last one
    before: list[tuple[str, int, int]] = []

    def call(label: str, epochs: int, report: Epoch) -> None:
        open_trace.close()
        if on_epoch is not None:
            on_epoch(label, epochs, report)
        begun = not before or before[-1][:2] != (label, epochs) or report.epoch <= before[-1][2]
        before[:] = [(label, epochs, report.epoch)]
        if begun and report.epoch < epochs:
            open_trace.enter_context(traces.of(label))

    with open_trace:
        yield call


# --- The file of a trace ---------------------------------------------------------------------------------------------


def _operations(trace_dir: Path) -> list[Operation]:
    seconds: dict[_Key, float] = defaultdict(float)
    counts: dict[_Key, int] = defaultdict(int)
    found: dict[_Key, Origin] = {}
    for file in _files(trace_dir):
        programs = _programs(file)
        for event in _read(file):
            key = event.program, event.name
            origin = _origin(programs, event)
            if _is_control(event.name, origin):
                continue
            seconds[key] += event.seconds
            counts[key] += 1
            found[key] = origin
    whole = sum(seconds.values()) or 1.0
    operations: list[Operation] = []
    for key, took in seconds.items():
        program, name = key
        _, path, line = found[key]
        operations.append(Operation(name, program, took, took / whole, counts[key], path, line))
    return sorted(operations, key=lambda each: -each.seconds)


class _Event(NamedTuple):
    name: str
    program: str
    number: str  # of the program
    seconds: float


def _files(trace_dir: Path) -> list[Path]:
    """Return the files of the newest trace: one, or one of each host."""
    files = sorted(trace_dir.glob("plugins/profile/*/*.xplane.pb"))
    if not files:
        wanted = "a trace, plugins/profile/*/*.xplane.pb"
        raise InputError(f"trace_dir must hold {wanted}; {trace_dir} has none.")
    newest = max(file.parent.name for file in files)
    return [file for file in files if file.parent.name == newest]


def _programs(file: Path) -> _Programs:
    """Return the programs in a trace by name and number, and by name alone where one has it."""
    try:
        found = origins.read(file)
    except ValueError:  # of another XLA; the times do not depend on it
        return {}
    numbered = Counter(map(_unnumbered, found))
    alone: dict[str, Mapping[str, Origin]] = {}
    for name, program in found.items():
        if numbered[_unnumbered(name)] == 1:
            alone[_unnumbered(name)] = program
    return {**alone, **found}


def _unnumbered(program: str) -> str:
    return program.partition("(")[0]


def _read(file: Path) -> list[_Event]:
    # From Python 3.12 on, the first use of JAX's reader warns; as an error, that aborts the process.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return list(_events(jax.profiler.ProfileData.from_file(str(file))))


def _events(data: _Read) -> Iterator[_Event]:
    """Yield what the accelerators have computed; where there is none, what the threads of the CPU have."""
    planes = list(data.planes)
    accelerators = [plane for plane in planes if _DEVICE.match(plane.name)]
    for plane in accelerators:
        for line in _computing(list(plane.lines)):
            for event in line.events:
                yield _event(event)
    if accelerators:
        return
    for plane in planes:
        if plane.name.startswith("/host:CPU"):
            for line in plane.lines:
                yield from map(_event, filter(_is_operation, line.events))


def _is_operation(event: _Read) -> bool:
    return "hlo_op" in dict(event.stats)


def _event(event: _Read) -> _Event:
    stats = dict(event.stats)
    name = str(stats.get("hlo_op") or _short(event.name))
    program, number = str(stats.get("hlo_module", "")), str(stats.get("program_id", ""))
    return _Event(name, program, number, event.duration_ns / 1e9)


def _computing(lines: Sequence[_Read]) -> Sequence[_Read]:
    """Return the lines of a device that tell of single operations.

    Others sum them up to programs, steps and names.
    """
    operations = [line for line in lines if line.name == "XLA Ops"]
    streams = [line for line in lines if line.name.startswith("Stream")]
    return operations or streams or lines


def _short(name: str) -> str:
    """Return an operation's name of its whole text, ``%fusion.12 = f32[8] fusion(…)``, as a TPU's events have it."""
    return name.partition(" = ")[0].lstrip("%")


def _origin(programs: _Programs, event: _Event) -> Origin:
    program = programs.get(f"{event.program}({event.number})") or programs.get(event.program) or {}
    return program.get(event.name, _UNKNOWN)


def _is_control(name: str, origin: Origin) -> bool:
    return (origin.opcode or re.sub(r"\.\d+$", "", name)) in _CONTROL


def _end(path: str) -> str:
    return path if len(path) <= _WIDEST else "…" + path[-_WIDEST:]
