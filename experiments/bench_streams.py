"""Time an epoch whose images are streamed against the same epoch with images on the device.

    python experiments/bench_streams.py --widths 4 16 --batch-size 128 --steps 24 --rounds 5 --data-dir …/tfds

Per width of preact_resnet18 and place of the images (an array on the host; array_record files on the disk, where
CIFAR-10 lies prepared in the data folder): the share of the resident throughput that streaming reaches, by the clock
and by the processor's time, which other work on the machine disturbs less; the share of the epoch in which the host
waited for images to be read, and in which the device did. BadNets is planted as the images arrive; the resident ones
were poisoned beforehand.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import _measure
import jax
import jax.numpy as jnp
import numpy as np

from bdjax import attacks, data, models, poison
from bdjax.bench.measure import interleaved
from bdjax.checks import InputError
from bdjax.data import splits
from bdjax.data.modalities.images import image_spec
from bdjax.train import loop, streamed, supervised
from bdjax.types import Model, Split

SPEC = image_spec(
    "cifar10", (32, 32, 3), 10, (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261), (), 4, True
)
KEY = jax.random.key(0)


def main() -> None:
    options = _measure.arguments(
        __doc__, widths=(4, 16), batch_size=128, steps=24, rounds=5, chunk_bytes=2**20, data_dir=""
    )
    places = sources(options.batch_size * options.steps, options.data_dir)
    rows = [
        measure(width, places, options.batch_size, options.rounds, options.chunk_bytes)
        for width in options.widths
    ]
    _measure.write({"chunk_bytes": options.chunk_bytes, "epochs": rows}, options.out)


def sources(rows: int, data_dir: str) -> dict[str, Split]:
    """Return random images on the host, and those of CIFAR-10 on the disk if they are there."""
    rng = np.random.default_rng(0)
    image, label = (
        rng.integers(0, 256, (rows, *SPEC.shape), np.uint8),
        rng.integers(0, 10, rows, np.int32),
    )
    found = {"host": Split(image, label, np.ones(rows, bool))}  # type: ignore[arg-type]
    try:
        train = data.load("cifar10", data_dir=data_dir or None, on_disk=True).train
    except InputError:
        return found
    return {**found, "disk": splits.exclude(train, np.arange(rows, len(train.label)))}


def measure(
    width: int, places: dict[str, Split], batch_size: int, rounds: int, chunk_bytes: int
) -> dict[str, Any]:
    """Return the figures of one width."""
    model = models.create("preact_resnet18", SPEC, width=width)
    learner = supervised.supervised(batch_size=batch_size)
    attack = attacks.create("badnets", spec=SPEC)
    trigger = attack.trigger.init(KEY, SPEC)
    first = next(iter(places.values()))
    calls: dict[str, Callable[[], Any]] = {
        "device": resident(
            learner, model, jax.jit(poison.poison_train)(KEY, attack, trigger, first).visible
        )
    }
    waits: dict[str, list[list[float]]] = {}
    for place, split in places.items():
        visible = poison.poison_stream(KEY, attack, trigger, split).visible
        waits[place] = []
        calls[place] = streaming(learner, model, visible, chunk_bytes, waits[place])
    processor: dict[str, list[float]] = {name: [] for name in calls}
    seconds = interleaved(
        {name: functools.partial(counted, call, processor[name]) for name, call in calls.items()},
        rounds,
    )
    # The first compiles
    cpu = {name: statistics.median(values[1:]) for name, values in processor.items()}
    images = len(first.label) // batch_size * batch_size
    row: dict[str, Any] = {"width": width, "batch_size": batch_size, "images": images}
    row |= {"seconds_per_epoch": seconds, "cpu_seconds_per_epoch": cpu}
    for place, measured in waits.items():
        reading, starving, total = np.sum(measured[1:], axis=0)  # without the first, which compiles
        row[place] = {
            "images_per_second": images / seconds[place],
            "share_of_resident_throughput": seconds["device"] / seconds[place],
            "share_of_resident_throughput_by_cpu": cpu["device"] / cpu[place],
            "share_of_time_host_waited": reading / total,
            "share_of_time_device_waited": starving / total,
        }
    return row


def counted(call: Callable[[], Any], seconds: list[float]) -> None:
    """Call and wait, and note the processor's seconds of all threads."""
    started = time.process_time()
    jax.block_until_ready(call())
    seconds.append(time.process_time() - started)


def start(learner: supervised.Supervised, model: Model, split: Split) -> Any:
    """Return a state that may be consumed."""
    return jax.tree.map(jnp.array, learner.init(KEY, model, model.init(KEY), split))


def resident(learner: supervised.Supervised, model: Model, split: Split) -> Callable[[], Any]:
    """Return a call that runs one epoch over images on the device."""
    box = [start(learner, model, split)]

    def call() -> Any:
        box[0], summary = loop.train_epoch(KEY, learner, model, box[0], split)
        return summary

    return call


def streaming(
    learner: supervised.Supervised,
    model: Model,
    split: Split,
    chunk_bytes: int,
    waits: list[list[float]],
) -> Callable[[], Any]:
    """Return a call that runs one epoch over streamed images, as `bdjax.train.streamed.run` does."""
    state = start(learner, model, split)
    box = [state, streamed.begin(KEY, learner, split, chunk_bytes=chunk_bytes)]

    def call() -> Any:
        started = time.perf_counter()
        reading, box[1] = box[1], streamed.begin(KEY, learner, split, chunk_bytes=chunk_bytes)
        box[0], summary, waited = streamed.epoch(reading, learner, model, box[0], split)
        jax.block_until_ready(summary)
        waits.append([*waited, time.perf_counter() - started])
        return summary

    return call


if __name__ == "__main__":
    main()
