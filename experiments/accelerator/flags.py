"""What options of XLA do to a plain step, one candidate of `bdjax.devices.flags` after the other.

Each is measured in a process of its own, against the options that are in use: one that aborts takes no other with it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from accelerator.session import Part, Row, Session, Settings
from bdjax import models
from bdjax.bench import measure
from bdjax.bench.table import markdown_table, milliseconds
from bdjax.data.modalities.images import image_spec
from bdjax.devices import compilation, flags
from bdjax.devices.flags import Flag, Options
from bdjax.train import loop
from bdjax.train.supervised import supervised

_SUBJECT = "flags/"
_HERE = "import sys; from accelerator import flags; flags.measure_here(*sys.argv[1:])"


class _Size(NamedTuple):
    """Of the step, and of the part."""

    model: str
    image: int
    options: dict[str, Any]
    batch: int
    steps: int
    rounds: int
    seconds: float
    always: Options  # options of both that are compared


_FULL = _Size("preact_resnet18", 32, {"width": 64, "dtype": "bfloat16"}, 256, 20, 5, 45.0, {})
_SMALL = _Size("small_cnn", 8, {"width": 2}, 8, 2, 2, 8.0, {"xla_backend_optimization_level": 0})


def parts(settings: Settings) -> list[Part]:
    """Return the parts of this subject, in the order of their worth."""
    backend = jax.default_backend()
    candidates = flags.CANDIDATES.get(backend, ())
    size = _size(settings.debug)
    return [
        Part(_SUBJECT + _slug(flag), size.seconds, functools.partial(_part, flag=flag))
        for flag in (candidates[:1] if settings.debug else candidates)
    ]


def tables(rows: Sequence[Row]) -> str:
    """Return the table of this subject as Markdown; empty, where there are no rows of it."""
    found = [row for row in rows if row["part"].startswith(_SUBJECT) and "flag" in row]
    if not found:
        return ""
    head = [
        "options of XLA",
        "ms",
        "× without",
        "compile, s",
        "compile without, s",
        "same bits again",
    ]
    lines = [
        [
            row["flag"],
            milliseconds(row["step_seconds"]),
            f"{row['step_seconds'] / row['step_seconds_without']:.2f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['compile_seconds_without']:.1f}",
            "yes" if row["same_bits_again"] else "no",
        ]
        for row in found
    ]
    title = f"A plain step of {found[0]['step']}, with one more option and without, in turn:"
    return f"## Options of XLA\n\n{title}\n\n{markdown_table(head, lines)}"


def _part(session: Session, flag: Flag) -> Iterator[Row]:
    why = flags.unknown(flag.options)
    if why is not None:
        yield {"unknown": flag.name, "why": why}
        return
    yield _in_a_process(flag, session.settings, max(session.left, 1.0))


def _in_a_process(flag: Flag, settings: Settings, patience: float) -> Row:
    """Return the row of a flag, measured in a process of its own.

    Raises:
      RuntimeError: it failed, or was aborted; the last line that it said.
      subprocess.TimeoutExpired: it took too long.
    """
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        # What all are compared with is compiled once
        "JAX_COMPILATION_CACHE_DIR": str(settings.work / "xla"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    command = [sys.executable, "-c", _HERE, flag.name, "small" if settings.debug else "full"]
    done = subprocess.run(
        command, env=variables, capture_output=True, encoding="utf-8", timeout=patience
    )
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2]
        raise RuntimeError(f"the process ended with {done.returncode}: {said}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_here(name: str, size: str) -> None:
    """Print the row of a candidate of this backend."""
    flag = next(flag for flag in flags.CANDIDATES[jax.default_backend()] if flag.name == name)
    print(json.dumps(_row(flag, _size(size == "small"))))


def _row(flag: Flag, size: _Size) -> Row:
    plain, tried, again = _Epoch({}, size), _Epoch(flag.options, size), _Epoch(flag.options, size)
    seconds = measure.interleaved({"without": plain, "with": tried}, size.rounds)
    numbers = " ".join(map(str, size.options.values()))
    return {
        "flag": flag.name,
        "options": dict(flag.options),
        "step": f"{size.model} {numbers}, batch {size.batch}",
        "step_seconds": seconds["with"] / size.steps,
        "step_seconds_without": seconds["without"] / size.steps,
        "compile_seconds": tried.compile_seconds,
        "compile_seconds_without": plain.compile_seconds,  # next to nothing, where it was cached
        "same_bits_again": _same(tried.after_first, again.after_first),
        "same_bits_as_without": _same(tried.after_first, plain.after_first),
    }


class _Epoch:
    """Some plain steps with further options, to be called again and again, and the state after the first of them."""

    def __init__(self, options: Options, size: _Size):
        spec = image_spec(
            "random", (size.image, size.image, 3), 10, (0.5,) * 3, (0.25,) * 3, (), 4, True
        )
        self._options = {**size.always, **options}
        self._model = models.create(size.model, spec, **size.options)
        self._learner = supervised(batch_size=size.batch)
        self._split = measure.random_split(spec, size.batch * size.steps)
        self._state = measure.random_state(self._learner, self._model, self._split)
        with compilation.count_seconds() as seconds:
            self()
        self.compile_seconds = sum(seconds)
        self.after_first = jax.device_get(self._state)

    def __call__(self) -> loop.Summary:
        with compilation.also(self._options):
            arguments = (jax.random.key(1), self._learner, self._model, self._state, self._split)
            self._state, summary = loop.train_epoch(*arguments)
        return summary


def _same(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def _size(small: bool) -> _Size:
    return _SMALL if small or jax.default_backend() == "cpu" else _FULL


def _slug(flag: Flag) -> str:
    return re.sub(r"\W+", "-", flag.name)
