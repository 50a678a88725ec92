"""Time training steps of preact_resnet18: plain and SAM, inside the compiled epoch and from a Python loop.

    python experiments/bench_steps.py --widths 16 64 --batch-size 128 --steps 6 --rounds 5

Per width: seconds of a step, images a second, share of the measured matrix-product rate, the ratio of a SAM step to a
plain one, what the compiled epoch adds to a Python loop over the very same step, and, where torch is installed, the
ratio of both to the same steps in PyTorch, eager, in the faster of its two layouts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import _measure
import jax
from accelerator.torch_ways import LAYOUTS, Way

from bdjax import defenses, models
from bdjax.bench import measure as benchmarks
from bdjax.data.modalities.images import image_spec
from bdjax.devices import compilation, environment
from bdjax.train import supervised
from bdjax.types import Learner, Model, Split

SPEC = image_spec(
    "cifar10", (32, 32, 3), 10, (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261), (), 4, True
)


def main() -> None:
    options = _measure.arguments(__doc__, widths=(16, 64), batch_size=128, steps=6, rounds=5)
    matmul = benchmarks.Peak().rates()["matmul_flops_per_second"]
    rows = [
        measure(width, options.batch_size, options.steps, options.rounds, matmul)
        for width in options.widths
    ]
    _measure.write(
        {"matmul_flops_per_second": matmul, "steps": rows, "memory": environment.memory()},
        options.out,
    )


def measure(width: int, batch_size: int, steps: int, rounds: int, matmul: float) -> dict[str, Any]:
    """Return the figures of one width."""
    model = models.create("preact_resnet18", SPEC, width=width)
    split = benchmarks.random_split(SPEC, batch_size * steps)
    learners = {
        "plain": supervised.supervised(batch_size=batch_size),
        "sam": defenses.create("ft_sam", rho=0.01, batch_size=batch_size).learner,
    }
    work: dict[str, Callable[[], Any]] = {}
    for name, learner in learners.items():
        work[f"{name}_epoch"] = benchmarks.TimedEpoch(learner, model, split)
        work[f"{name}_loop"] = loop_call(learner, model, split, steps)
    work |= torch_calls(width, batch_size, steps)
    seconds = {name: total / steps for name, total in benchmarks.interleaved(work, rounds).items()}
    flops = benchmarks.step_flops(learners["plain"], model, split)
    row: dict[str, Any] = {"width": width, "batch_size": batch_size, "seconds_per_step": seconds}
    for name, evaluations in (("plain", 1), ("sam", 2)):
        row[f"{name}_images_per_second"] = batch_size / seconds[f"{name}_epoch"]
        row[f"{name}_share_of_matmul"] = (
            None if flops is None else evaluations * flops / seconds[f"{name}_epoch"] / matmul
        )
        row[f"{name}_epoch_overhead"] = seconds[f"{name}_epoch"] / seconds[f"{name}_loop"] - 1
    row["sam_to_plain"] = seconds["sam_epoch"] / seconds["plain_epoch"]
    for name in learners:
        of_layout = {
            layout: seconds[f"torch_{name}_{layout}"]
            for layout in LAYOUTS
            if f"torch_{name}_{layout}" in seconds
        }
        if of_layout:
            best = min(of_layout, key=lambda layout: of_layout[layout])
            row[f"{name}_to_torch"], row[f"{name}_torch_layout"] = (
                seconds[f"{name}_epoch"] / of_layout[best],
                best,
            )
    return row


def loop_call(learner: Learner, model: Model, split: Split, steps: int) -> Callable[[], Any]:
    """Return a call that runs the same steps one by one from Python, each compiled, each gathering its own batch."""

    def one(key: Any, learner: Learner, state: Any, split: Split, order: Any, number: Any) -> Any:
        size = learner.batch_size or order.shape[0]
        index = jax.lax.dynamic_slice_in_dim(order, number * size, size)
        batch = Split(split.input[index], split.label[index], None)  # type: ignore[arg-type]
        return learner.update(jax.random.fold_in(key, number), model, state, batch)

    step = compilation.jit(one, donate_argnums=2)
    order = jax.random.permutation(jax.random.key(2), split.label.shape[0])
    box = [benchmarks.random_state(learner, model, split)]

    def call() -> Any:
        for number in range(steps):
            box[0], info = step(jax.random.key(1), learner, box[0], split, order, number)
        return info

    return call


def torch_calls(width: int, batch_size: int, steps: int) -> dict[str, Callable[[], Any]]:
    """Return calls that take the same steps in PyTorch on the CPU, in each layout; none without torch."""
    if importlib.util.find_spec("torch") is None:
        return {}
    from accelerator import torch_steps

    return {
        f"torch_{name}_{layout}": torch_steps.steps(
            width, batch_size, steps, name == "sam", Way(layout)
        )
        for name in ("plain", "sam")
        for layout in LAYOUTS
    }


if __name__ == "__main__":
    main()
