"""Time the defenses' steps on preact_resnet18 against a plain step, and the Fisher tools in seconds and memory.

    python experiments/bench_defenses.py --width 16 --batch-size 128 --steps 4 --rounds 5

All ratios come from one run, the calls interleaved: fast SFT without and with the trace's gradient and, from both, its
average at one penalty in ten steps; SFT, NFT, FT-SAM; the exact diagonal of the Fisher information of 500 images
against plain epochs over them; one round of Grad-Prune against the gradient that ranks all filters; and the working
memory of the exact trace's gradient at 32 images against that of a plain step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import _measure
import jax
import jax.numpy as jnp
from bench_steps import SPEC

from bdjax import defenses, models
from bdjax.bench.measure import TimedEpoch, interleaved, random_split, random_state
from bdjax.curvature import fisher
from bdjax.defenses._filters import saliency
from bdjax.defenses._triggered import Images
from bdjax.devices import compilation, environment
from bdjax.parametrizations import Identity, SingularValues
from bdjax.train import loop
from bdjax.types import Model, Variables

DIAGONAL_IMAGES = 500
CHUNK = 32


def main() -> None:
    options = _measure.arguments(__doc__, width=16, batch_size=128, steps=4, rounds=5)
    model = models.create("preact_resnet18", SPEC, width=options.width)
    variables = model.init(jax.random.key(0))
    results = {
        "width": options.width,
        "batch_size": options.batch_size,
        "steps": step_ratios(model, options.batch_size, options.steps, options.rounds),
        "diagonal": diagonal_ratios(model, variables, options.batch_size, options.rounds),
        "grad_prune": pruning_ratios(model, variables, options.batch_size, options.rounds),
        "working_bytes": memory(model, variables, options.batch_size),
        "memory": environment.memory(),
    }
    _measure.write(results, options.out)


def create(name: str, **options: Any) -> Any:
    """Return the learner of a defense of one stage."""
    return defenses.create(name, **options).learner


def step_ratios(model: Model, batch_size: int, steps: int, rounds: int) -> dict[str, float]:
    """Return the seconds of a plain step, and of the others over it."""
    split = random_split(SPEC, batch_size * steps)
    never, always = {"every": 10**6}, {"every": 1}
    learners = {
        "plain": ("ft", {}),
        "ft_sam": ("ft_sam", {}),
        "nft": ("nft", {}),
        "fast_sft_without_trace": ("fast_sft", never),
        "fast_sft_with_trace": ("fast_sft", always),
        "sft_without_trace": ("sft", never),
        "sft_with_trace": ("sft", always),
    }
    work = {
        name: TimedEpoch(create(defense, batch_size=batch_size, **changes), model, split)
        for name, (defense, changes) in learners.items()
    }
    seconds = {name: total / steps for name, total in interleaved(work, rounds).items()}
    ratios = {
        f"{name}_to_plain": value / seconds["plain"]
        for name, value in seconds.items()
        if name != "plain"
    }
    for name in ("fast_sft", "sft"):
        without, with_trace = (
            ratios[f"{name}_without_trace_to_plain"],
            ratios[f"{name}_with_trace_to_plain"],
        )
        ratios[f"{name}_every_10_to_plain"] = 0.9 * without + 0.1 * with_trace
    return {"plain_seconds": seconds["plain"], **ratios}


def diagonal_ratios(
    model: Model, variables: Variables, batch_size: int, rounds: int
) -> dict[str, float]:
    """Return the seconds of a plain epoch over 500 images, and of the exact diagonal in plain epochs."""
    split = random_split(SPEC, DIAGONAL_IMAGES)
    examples = (split.input, split.label)
    work: dict[str, Callable[[], Any]] = {
        "plain_epoch": TimedEpoch(create("ft", batch_size=batch_size), model, split)
    }
    for name, (tuned, loss_fn) in fisher_problems(model, variables).items():
        diagonal = compilation.jit(
            lambda at, f=loss_fn: fisher.diagonal(f, at, examples, chunk=CHUNK)
        )
        work[name] = lambda diagonal=diagonal, tuned=tuned: diagonal(tuned)
    seconds = interleaved(work, rounds)
    epoch = seconds.pop("plain_epoch")
    return {
        "plain_epoch_seconds": epoch,
        **{f"{name}_to_epoch": value / epoch for name, value in seconds.items()},
    }


def fisher_problems(model: Model, variables: Variables) -> dict[str, tuple[Any, Any]]:
    """Return, for all weights and for the singular values, where to start and the loss of one example."""
    problems = {}
    for name, parametrization in (("weights", Identity()), ("singular_values", SingularValues())):
        tuned, frozen = jax.jit(parametrization.init, static_argnums=0)(model, variables)

        def loss_fn(
            at: Any, example: Any, parametrization: Any = parametrization, frozen: Any = frozen
        ) -> Any:
            image, label = example
            whole = {**variables, "params": parametrization.factored(at, frozen)}
            logits, _ = model.apply(whole, image[None].astype(jnp.float32) / 255)
            return -jax.nn.log_softmax(logits)[0, label]

        problems[name] = (tuned, loss_fn)
    return problems


def pruning_ratios(
    model: Model, variables: Variables, batch_size: int, rounds: int
) -> dict[str, float]:
    """Return the seconds of a round of Grad-Prune (400 images, 100 aside) and of its ranking alone."""
    split = random_split(SPEC, 500)
    rest, aside = (
        Images(split.input[part], split.input[part, ::-1], split.label[part])
        for part in (slice(0, 400), slice(400, None))
    )

    def defense(count: int) -> Any:
        return create(
            "grad_prune",
            rounds=count,
            prune_patience=10**6,
            accuracy_drop=1.0,
            batch_size=batch_size,
        )

    prune = compilation.jit(
        lambda v, count: defense(count).prune(model, v, rest, aside), static_argnums=1
    )
    rank = compilation.jit(lambda v: saliency(model, v, rest, batch_size))
    work = {
        "few": lambda: prune(variables, 1),
        "more": lambda: prune(variables, 4),
        "ranking": lambda: rank(variables),
    }
    seconds = interleaved(work, rounds)
    one = (seconds["more"] - seconds["few"]) / 3
    return {
        "round_seconds": one,
        "ranking_seconds": seconds["ranking"],
        "round_to_ranking": one / seconds["ranking"],
    }


def memory(model: Model, variables: Variables, batch_size: int) -> dict[str, float]:
    """Return the bytes that the compiled programs need besides their arguments and results."""
    split = random_split(SPEC, batch_size)
    learner = create("ft", batch_size=batch_size)
    state = random_state(learner, model, split)
    plain = loop.train_epoch.lower(jax.random.key(0), learner, model, state, split)
    sizes = {"plain_step": _temporary_bytes(plain.compile())}
    for name, (tuned, loss_fn) in fisher_problems(model, variables).items():

        def gradient(at: Any, loss_fn: Any = loss_fn) -> Any:
            return fisher.trace_gradient(loss_fn, at, (split.input, split.label), chunk=CHUNK)

        compiled = compilation.jit(gradient).lower(tuned).compile()
        sizes[f"exact_trace_{name}"] = _temporary_bytes(compiled)
    ratios = {
        f"{name}_to_plain": size / sizes["plain_step"]
        for name, size in sizes.items()
        if name != "plain_step"
    }
    return {**sizes, **ratios}


def _temporary_bytes(compiled: jax.stages.Compiled) -> float:
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


if __name__ == "__main__":
    main()
