"""What every benchmark is made of: calls timed in turn, the device's own rates, an epoch to call, its operations."""

from __future__ import annotations

import contextvars
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array

from bdjax.devices import compilation, environment, numerics, sharding
from bdjax.train import group, loop
from bdjax.train.feeding import STEPWISE, Feeding
from bdjax.types import Info, Learner, LearnerState, Model, Spec, Split

T = TypeVar("T")
Row: TypeAlias = dict[str, Any]  # of results, as JSON takes them
Work: TypeAlias = Callable[[], object]  # returns arrays, for which the clock waits

_REPEATS = 10  # of a product and of a copy


class Timing(NamedTuple):
    """Median seconds of a call: until its results are there, and until it has returned without them.

    The second is the host's own time as long as the device's queue has room; where that is full, the host waits in it.
    """

    seconds: float
    host_seconds: float


def interleaved(work: Mapping[str, Work], rounds: int) -> dict[str, float]:
    """Return the median seconds of each piece of work, timed in turn so that a drifting machine harms no ratio."""
    return {name: timing.seconds for name, timing in timed(work, rounds).items()}


def timed(work: Mapping[str, Work], rounds: int) -> dict[str, Timing]:
    """Return what `interleaved` does, and what of it the host needs to start the work."""
    for call in work.values():  # compile and warm up
        jax.block_until_ready(call())
    clock: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            started = time.perf_counter()
            results = call()
            returned = time.perf_counter()
            jax.block_until_ready(results)
            clock[name].append((time.perf_counter() - started, returned - started))
    found: dict[str, Timing] = {}
    for name, times in clock.items():
        seconds, host_seconds = zip(*times, strict=True)
        found[name] = Timing(statistics.median(seconds), statistics.median(host_seconds))
    return found


class Peak:
    """The device's own rates: what a large matrix product computes, and what a large copy reads and writes.

    The numbers are random: of ones and zeros, fewer bits flip, less power is drawn, and the clock is higher.

    Attributes:
      flops: operations of one call of ``product``.
      bytes: what one call of ``copy`` reads and writes.
    """

    def __init__(self, dtype: DTypeLike = jnp.float32, precision: str | None = None):
        """Choose sizes of which starting the call is no part, and which no cache holds."""
        cpu = jax.default_backend() == "cpu"
        size, length = (2048, 2**26) if cpu else (8192, 2**28)
        # An accelerator is given the next before it has done the last
        self._times = 1 if cpu else 8
        self._precision = precision
        self._matrix = _random((size, size), dtype)
        self._array = _random((length,), jnp.float32)
        self.flops = self._times * 2.0 * size**3
        self.bytes = self._times * 2.0 * self._array.nbytes

    def product(self) -> Array:
        """Multiply square matrices, in the given precision or the one that JAX is set to."""
        product = self._matrix
        with numerics.in_force(self._precision):
            for _ in range(self._times):
                product = _product(self._matrix, self._matrix)
        return product

    def copy(self) -> Array:
        """Add one to an array, in place: fresh memory would cost the host more than the copy."""
        for _ in range(self._times):
            self._array = _plus_one(self._array)
        return self._array

    def rates(self) -> dict[str, float]:
        """Return operations and bytes a second, the best of ten each: what the device can do when it is let."""
        flops, bandwidth = self.flops / _fastest(self.product), self.bytes / _fastest(self.copy)
        return {"matmul_flops_per_second": flops, "copy_bytes_per_second": bandwidth}


def _random(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return normal numbers: a million, over and over, as more would take longer to draw than to multiply."""
    drawn = np.random.default_rng(0).standard_normal(2**20, np.float32)
    return jnp.tile(jnp.asarray(drawn, dtype), math.prod(shape) // drawn.size).reshape(shape)


_product = compilation.jit(jnp.matmul)
_plus_one = compilation.jit(lambda x: x + 1, donate_argnums=0)


def _fastest(call: Work) -> float:
    jax.block_until_ready(call())
    clock = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(call())
        clock.append(time.perf_counter() - started)
    return min(clock)


def random_split(spec: Spec, rows: int) -> Split:
    """Return random images and labels on the device."""
    image_key, label_key = jax.random.split(jax.random.key(0))
    image = jax.random.bits(image_key, (rows, *spec.shape), jnp.uint8)
    label = jax.random.randint(label_key, (rows,), 0, spec.num_classes, jnp.int32)
    return Split(image, label, jnp.ones(rows, bool))


def random_state(learner: Learner, model: Model, split: Split) -> LearnerState:
    """Return a state that may be consumed, of random positive numbers and with all counters at one.

    No step's time depends on the values, but they stay finite. To compute the true start, singular values and Fisher
    matrices included, would take longer to compile than the steps that are timed.
    """

    def fill(index: int, leaf: jax.ShapeDtypeStruct) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            # Zero steps in an epoch would be a schedule of no length
            return jnp.ones(leaf.shape, leaf.dtype)
        values = np.random.default_rng(index).random(leaf.shape, np.float32)
        return jnp.asarray(0.1 * values + 0.01, leaf.dtype)

    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: learner.init(key, model, model.init(key), split))
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [fill(index, leaf) for index, leaf in enumerate(leaves)])


def prepared(makers: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """Make things that compile, two at a time on a CPU, as one compilation does not fill two cores.

    One at a time on an accelerator, where compiling includes trying kernels out.
    """
    here = [_as_here(make) for make in makers.values()]
    with ThreadPoolExecutor(2 if jax.default_backend() == "cpu" else 1) as pool:
        made = pool.map(lambda make: make(), here)
        return dict(zip(makers, made, strict=True))


def _as_here(make: Callable[[], T]) -> Callable[[], T]:
    """Return a call for another thread, with this one's compiler options and precision, which are a thread's own."""
    context = contextvars.copy_context()
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]

    def call() -> T:
        with jax.default_matmul_precision(precision):
            return context.run(make)

    return call


class TimedEpoch:
    """A compiled epoch of a single run, to be called again and again; each call consumes the state of the last.

    Attributes:
      state: before the next call.
      compile_seconds: that tracing and compiling took.
      fits: whether the device has the memory for it; if not, it must not be called.
      held_bytes: the memory that it asks for, where XLA tells.
      flops: floating-point operations of one step, as XLA counts them before it optimizes, where it tells. A loop's
        body is counted once, which is that of the steps; so it is no count for a step that has loops within.
      bytes: what one step reads and writes by XLA's count, likewise, of the program as it is compiled.
    """

    def __init__(
        self,
        learner: Learner,
        model: Model,
        split: Split,
        mesh: Mesh | None = None,
        precision: str | None = None,
        feeding: Feeding = STEPWISE,
    ):
        """Compile it, and run nothing."""
        self._arguments = (jax.random.key(1), learner, model)
        self._options, self._precision = {"mesh": mesh, "feeding": feeding}, precision
        self._split, self.state = sharding.replicate(
            (split, random_state(learner, model, split)), mesh
        )
        started = time.perf_counter()
        with numerics.in_force(precision):
            lowered = loop.train_epoch.lower(
                *self._arguments, self.state, self._split, **self._options
            )
            compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - started
        self.fits, self.held_bytes = group.fits(compiled, 1), group.held_bytes(compiled)
        self.flops, self.bytes = _counted(lowered, "flops"), _counted(compiled, "bytes accessed")

    def __call__(self) -> loop.Summary:
        """Take the steps of the next epoch."""
        with numerics.in_force(self._precision):
            self.state, summary = loop.train_epoch(
                *self._arguments, self.state, self._split, **self._options
            )
        return summary


def step_flops(learner: Learner, model: Model, split: Split) -> float | None:
    """Return the floating-point operations of one step, as XLA counts them before it optimizes, where it tells.

    Of the step by itself: in a compiled epoch, XLA counts a loop's body once, however often it runs.
    """

    key, size = jax.random.key(0), learner.batch_size or split.label.shape[0]
    state = jax.eval_shape(lambda: learner.init(key, model, model.init(key), split))
    every = None  # that row counts
    batch = jax.eval_shape(lambda: Split(split.input[:size], split.label[:size], every))  # type: ignore[arg-type]

    def update(state: LearnerState, batch: Split) -> tuple[LearnerState, Info]:
        return learner.update(key, model, state, batch)

    lowered = jax.jit(update).lower(state, batch)
    return _counted(lowered, "flops")


def _counted(stage: jax.stages.Lowered | jax.stages.Compiled, what: str) -> float | None:
    analysis: Mapping[str, float] | None = stage.cost_analysis()
    return None if not analysis else analysis.get(what)


def machine() -> Row:
    """Return what the numbers were measured on, and how busy it is: load over 1, 5 and 15 minutes."""
    return {
        "cpus": os.cpu_count(),
        "architecture": platform.machine(),
        "device": environment.device(jax.device_count()),
        "load_average": list(os.getloadavg()),
    }


def described(settings: Mapping[str, object]) -> Row:
    """Return date, versions and settings as JSON takes them."""
    date = time.strftime("%Y-%m-%d")
    return {"date": date, "versions": environment.versions(), "settings": settings}
