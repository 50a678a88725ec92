"""What every benchmark is made of: calls timed in turn, the device's own rates, an epoch to call, its operations."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bdjax import records
from bdjax.train import compilation, group, loop, sharding
from bdjax.train.feeding import STEPWISE, Feeding
from bdjax.types import ImageSpec, Learner, LearnerState, Model, Split

T = TypeVar("T")

_REPEATS = 10  # of a product and of a copy


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


class Peak:
    """The device's own rates: what a large matrix product computes, and what a large copy reads and writes.

    Attributes:
      flops: operations of one call of ``product``.
      bytes: what one call of ``copy`` reads and writes.
    """

    def __init__(self, dtype: Any = jnp.float32):
        """Choose sizes of which starting the call is no part, and which no cache holds."""
        cpu = jax.default_backend() == "cpu"
        size, length = (2048, 2**26) if cpu else (8192, 2**28)
        self._matrix, self._array = jnp.ones((size, size), dtype), jnp.zeros(length, jnp.float32)
        self.flops, self.bytes = 2.0 * size**3, 2.0 * self._array.nbytes

    def product(self) -> Any:
        """Multiply two square matrices, in JAX's default precision."""
        return _product(self._matrix, self._matrix)

    def copy(self) -> Any:
        """Add one to an array, in place: fresh memory would cost the host more than the copy."""
        self._array = _plus_one(self._array)
        return self._array

    def rates(self) -> dict[str, float]:
        """Return operations and bytes a second, the best of ten each: what the device can do when it is let."""
        flops, bandwidth = self.flops / _fastest(self.product), self.bytes / _fastest(self.copy)
        return {"matmul_flops_per_second": flops, "copy_bytes_per_second": bandwidth}


_product = compilation.jit(jnp.matmul)
_plus_one = compilation.jit(lambda x: x + 1, donate_argnums=0)


def _fastest(call: Callable[[], Any]) -> float:
    jax.block_until_ready(call())
    clock = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(call())
        clock.append(time.perf_counter() - started)
    return min(clock)


def random_split(spec: ImageSpec, rows: int) -> Split:
    """Return random images and labels on the device."""
    image_key, label_key = jax.random.split(jax.random.key(0))
    image = jax.random.bits(image_key, (rows, *spec.shape), jnp.uint8)
    label = jax.random.randint(label_key, (rows,), 0, spec.num_classes, jnp.int32)
    return Split(image, label, jnp.ones(rows, bool))


def start(learner: Learner, model: Model, split: Split) -> LearnerState:
    """Return a state that may be consumed, of random positive numbers and with all counters at one.

    No step's time depends on the values, but they stay finite. To compute the true start, singular values and Fisher
    matrices included, would take longer to compile than the steps that are timed.
    """

    def fill(index: int, leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.ones(leaf.shape, leaf.dtype)  # zero steps in an epoch would be a schedule of no length
        values = np.random.default_rng(index).random(leaf.shape, np.float32)
        return jnp.asarray(0.1 * values + 0.01, leaf.dtype)

    key = jax.random.key(0)
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: learner.init(key, model, model.init(key), split)))
    return jax.tree.unflatten(tree, [fill(index, leaf) for index, leaf in enumerate(leaves)])


def prepared(makers: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """Make things that compile, two at a time on a CPU, as one compilation does not fill two cores.

    One at a time on an accelerator, where compiling includes trying kernels out.
    """
    with ThreadPoolExecutor(2 if jax.default_backend() == "cpu" else 1) as pool:
        return dict(zip(makers, pool.map(lambda make: make(), makers.values()), strict=True))


class Epoch:
    """A compiled epoch of a single run, to be called again and again; each call consumes the state of the last.

    Attributes:
      state: before the next call.
      fits: whether the device has the memory for it; if not, it must not be called.
      bytes: what one step reads and writes by XLA's count, where it tells. A loop's body is counted once.
    """

    def __init__(
        self,
        learner: Learner,
        model: Model,
        split: Split,
        mesh: Mesh | None = None,
        feeding: Feeding = STEPWISE,
    ):
        """Compile it, and run nothing."""
        self._arguments = (jax.random.key(1), learner, model)
        self._options = {"mesh": mesh, "feeding": feeding}
        self._split, self.state = sharding.replicate((split, start(learner, model, split)), mesh)
        lowered = loop.train_epoch.lower(*self._arguments, self.state, self._split, **self._options)  # type: ignore[attr-defined]
        compiled = lowered.compile()
        self.fits = group.fits(compiled, 1)
        self.bytes = _counted(compiled, "bytes accessed")

    def __call__(self) -> loop.Summary:
        """Take the steps of the next epoch."""
        self.state, summary = loop.train_epoch(*self._arguments, self.state, self._split, **self._options)
        return summary


def step_flops(learner: Learner, model: Model, split: Split) -> float | None:
    """Return the floating-point operations of one step, as XLA counts them before it optimizes, where it tells.

    Of the step by itself: in a compiled epoch, XLA counts a loop's body once, however often it runs.
    """

    key, size = jax.random.key(0), learner.batch_size or split.label.shape[0]
    state = jax.eval_shape(lambda: learner.init(key, model, model.init(key), split))
    batch = jax.eval_shape(lambda: Split(split.image[:size], split.label[:size], None))  # type: ignore[arg-type]
    lowered = jax.jit(lambda state, batch: learner.update(key, model, state, batch)).lower(state, batch)
    return _counted(lowered, "flops")


def _counted(stage: Any, what: str) -> float | None:
    analysis = stage.cost_analysis()
    return None if not analysis else analysis.get(what)


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on, and how busy it is: load over 1, 5 and 15 minutes."""
    return {
        "cpus": os.cpu_count(),
        "architecture": platform.machine(),
        "device": records.device(jax.device_count()),
        "load_average": list(os.getloadavg()),
    }


def described(settings: Any) -> dict[str, Any]:
    """Return date, versions and settings as JSON takes them."""
    date = time.strftime("%Y-%m-%d")
    return {"date": date, "versions": records.versions(), "settings": dataclasses.asdict(settings)}
