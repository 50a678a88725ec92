"""What one call of the benchmark is asked for, and how much time it has left."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax

from bdjax import models
from bdjax.bench.profile import Traces
from bdjax.checks import InputError, integer, one_of, positive
from bdjax.data.modalities.images import image_spec
from bdjax.devices import numerics
from bdjax.types import Model

# In this order: what is short comes first
SECTIONS = ("loads", "startup", "steps", "sweeps", "scaling")
_CPU = {"widths": (8, 16), "batch_sizes": (128,), "steps": 1, "rounds": 3, "minutes": 5.0}
_ACCELERATOR = {
    "widths": (16, 64),
    "batch_sizes": (128, 256, 1024),
    "steps": 10,
    "rounds": 5,
    "minutes": 8.0,
}
_QUICK = {"rounds": 1, "points": (1, 2, 4)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The sizes that are measured; `settings` fills in what suits the backend, and checks them.

    Attributes:
      model: a network of `bdjax.models`.
      widths, batch_sizes: of which each pair is measured; sweeps, scaling and startup take the first of both.
      image_size: pixels a side of the images, which are random.
      dtype: the network's option of that name; None leaves it out.
      matmul_precision: of `bdjax.devices.numerics.in_force`.
      steps: training steps in one timed call.
      rounds: how often each call is timed, in turn with those that it is compared with.
      points: sizes of the sweeps.
      maps: the k of the forms ``map:k``.
      devices: the most that scaling uses.
      minutes: when they are over, what is left is skipped.
      sections: which of `SECTIONS`.
      data_dir: where a prepared CIFAR-10 may lie.
    """

    model: str
    widths: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    image_size: int
    dtype: str | None
    matmul_precision: str | None
    steps: int
    rounds: int
    points: tuple[int, ...]
    maps: tuple[int, ...]
    devices: int
    minutes: float
    sections: tuple[str, ...]
    data_dir: str | None

    def create(self, width: int) -> Model:
        """Return the network of a width, for images of ten classes with the usual augmentation."""
        shape = (self.image_size, self.image_size, 3)
        mean, std = (0.5,) * 3, (0.25,) * 3
        spec = image_spec("random", shape, 10, mean, std, (), crop_padding=4, flip=True)
        options = {} if self.dtype is None else {"dtype": self.dtype}
        return models.create(self.model, spec, width=width, **options)


def settings(*, quick: bool = False, **given: object) -> Settings:
    """Return the settings with defaults for this backend where nothing, or None, is given; ``quick`` has fewer.

    Raises:
      InputError: a value that could not be measured, before anything is compiled.
    """
    cpu = jax.default_backend() == "cpu"
    values: dict[str, Any] = {
        "model": "preact_resnet18",
        "image_size": 32,
        "dtype": None,
        "matmul_precision": None,
        "points": (1, 2, 4, 8, 16),
        "maps": (4,)
        if cpu
        else (4, 8),  # a compilation on a CPU takes longer than the difference is worth
        "devices": jax.device_count(),
        "sections": SECTIONS,
        "data_dir": None,
        **(_CPU if cpu else _ACCELERATOR),
    }
    if quick:
        values.update(_QUICK, widths=values["widths"][:1], batch_sizes=values["batch_sizes"][:1])
    for name, value in given.items():
        if value is not None:
            values[name] = tuple(value) if isinstance(value, list) else value
    asked = Settings(**values)
    _check(asked)
    return asked


def _check(asked: Settings) -> None:
    for name in ("widths", "batch_sizes", "points"):
        numbers: Sequence[int] = getattr(asked, name)
        if not numbers:
            raise InputError(f"{name} needs at least one number.")
        for number in numbers:
            integer(1, **{name: number})
    integer(
        1,
        image_size=asked.image_size,
        steps=asked.steps,
        rounds=asked.rounds,
        devices=asked.devices,
    )
    positive(minutes=asked.minutes)
    if asked.matmul_precision is not None:
        one_of(get_args(numerics.MatmulPrecision), matmul_precision=asked.matmul_precision)
    for section in asked.sections:
        one_of(SECTIONS, only=section)
    if asked.devices > jax.device_count():
        there = f"{jax.device_count()}, the number of devices here"
        raise InputError(f"devices must be at most {there}; got {asked.devices}.")
    for width in asked.widths:
        asked.create(width)


class Session:
    """The settings on their way through the sections, what was skipped, and where traces go if there are any."""

    def __init__(
        self,
        settings: Settings,
        tell: Callable[[str], None] = lambda line: None,
        traces: Traces | None = None,
    ):
        """Start the clock."""
        self.settings, self.tell, self.traces = settings, tell, traces
        self.skipped: list[dict[str, str]] = []
        self._started = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    def room(self, what: str, expected: float = 0.0) -> bool:
        """Whether something that takes about so many seconds may start; if not, it is among the skipped."""
        fits = self.elapsed + expected < 60 * self.settings.minutes
        if not fits:
            self.skip(what, f"no time: --minutes {self.settings.minutes:g}")
        return fits

    def skip(self, what: str, why: str) -> None:
        """Say, now and in the results, that something is not measured."""
        self.skipped.append({"what": what, "why": why})
        self.tell(f"{what}: skipped ({why})")
