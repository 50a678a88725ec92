"""Training steps: plain, SAM, fast SFT and NFT, each against a plain one and against what the device can do."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bdjax import defenses
from bdjax.bench import measure
from bdjax.bench.session import Session
from bdjax.optim.fisher_trace import FisherTraceState
from bdjax.train.supervised import supervised
from bdjax.train.transformations import PlainSgd
from bdjax.types import Model, Split

PLAIN, FAST_SFT = "plain", "fast_sft"
WITHOUT_TRACE, WITH_TRACE = "fast_sft_without_trace", "fast_sft_with_trace"
_PRODUCT, _COPY = "product", "copy"
_NEVER = 10**6  # steps between two traces, so that the benchmark alone decides when one is due


def section(session: Session) -> list[dict[str, Any]]:
    """Measure each width and batch size."""
    rows, took = [], 0.0
    for width in session.settings.widths:
        for batch_size in session.settings.batch_sizes:
            if session.room(f"steps of width {width}, batches of {batch_size}", took):
                started = time.perf_counter()
                rows.append(_row(session, width, batch_size))
                took = time.perf_counter() - started
    return rows


def _row(session: Session, width: int, batch_size: int) -> dict[str, Any]:
    model, count = session.settings.create(width), session.settings.steps
    split = measure.random_split(model.spec, batch_size * count)
    learners = _learners(batch_size)
    epochs = measure.prepared(
        {name: functools.partial(measure.Epoch, learner, model, split) for name, learner in learners.items()}
    )
    for name in [name for name, epoch in epochs.items() if not epoch.fits]:
        session.skip(f"{name} step of width {width}, batches of {batch_size}", "not enough memory")
        del epochs[name]
    peak = measure.Peak(session.settings.dtype or "float32")
    calls = measure.interleaved({**_calls(epochs), _PRODUCT: peak.product, _COPY: peak.copy}, session.settings.rounds)
    if session.traces is not None:
        for name, call in _calls(epochs).items():
            with session.traces.of(f"{name}-width-{width}-batch-{batch_size}"):
                jax.block_until_ready(call())
    rates = {"matmul": peak.flops / calls.pop(_PRODUCT), "copy": peak.bytes / calls.pop(_COPY)}
    seconds = {name: total / count for name, total in calls.items() if name != WITH_TRACE}
    row: dict[str, Any] = {"width": width, "batch_size": batch_size, "seconds_per_step": seconds}
    if FAST_SFT in epochs:
        trace = max(calls[WITH_TRACE] - calls[WITHOUT_TRACE], 0.0)  # of the one step in the call where it is due
        every = defenses.create(FAST_SFT).learner.transformation.every
        seconds[FAST_SFT] = seconds[WITHOUT_TRACE] + trace / every
        row["trace_seconds"] = trace
    row["images_per_second"] = {name: batch_size / second for name, second in seconds.items()}
    if PLAIN in seconds:
        row["ratio_to_plain"] = {name: second / seconds[PLAIN] for name, second in seconds.items()}
    return row | _shares(_work(learners, epochs, model, split), seconds, rates)


def _work(learners: dict[str, Any], epochs: Mapping[str, Any], model: Model, split: Split) -> dict[str, dict[str, Any]]:
    """Return the operations of a step, and the bytes that it reads and writes, by XLA's count.

    Fast SFT is counted without its trace, whose loop over images XLA would count once.
    """
    untraced = dataclasses.replace(learners[FAST_SFT], transformation=PlainSgd())
    counted = {**learners, FAST_SFT: untraced}
    return {
        "flops": {_timed(name): measure.step_flops(counted[name], model, split) for name in epochs},
        "bytes": {name: epoch.bytes for name, epoch in epochs.items() if name != FAST_SFT},
    }


def _shares(
    work: dict[str, dict[str, Any]], seconds: dict[str, float], rates: dict[str, float]
) -> dict[str, float | dict[str, float]]:
    """Return the work where it is known, and its shares of the rates: of what the device did in the same rounds."""
    row: dict[str, Any] = {}
    for what, rate in (("flops", "matmul"), ("bytes", "copy")):
        known = {name: amount for name, amount in work[what].items() if amount is not None}
        row[f"{what}_per_step"], row[f"{rate}_{what}_per_second"] = known, rates[rate]
        row[f"share_of_{rate}"] = {name: amount / seconds[name] / rates[rate] for name, amount in known.items()}
    return row


def _learners(batch_size: int) -> dict[str, Any]:
    def defense(name: str, **options: Any) -> Any:
        return defenses.create(name, batch_size=batch_size, **options).learner

    return {
        PLAIN: supervised(batch_size=batch_size),
        "sam": defense("ft_sam", rho=0.01),
        FAST_SFT: defense(FAST_SFT, every=_NEVER),
        "nft": defense("nft"),
    }


def _calls(epochs: dict[str, measure.Epoch]) -> dict[str, Callable[[], Any]]:
    work: dict[str, Callable[[], Any]] = {name: epoch for name, epoch in epochs.items() if name != FAST_SFT}
    if FAST_SFT in epochs:
        work[WITHOUT_TRACE] = _after(epochs[FAST_SFT], 0)
        work[WITH_TRACE] = _after(epochs[FAST_SFT], _NEVER - 1)
    return work


def _after(epoch: measure.Epoch, step: int) -> Callable[[], Any]:
    """Return a call of the epoch as if so many steps had been taken; on the millionth the trace is due."""

    def is_counter(node: Any) -> bool:
        return isinstance(node, FisherTraceState)

    def counted(node: Any) -> Any:
        return node._replace(step=jnp.int32(step)) if is_counter(node) else node

    def call() -> Any:
        epoch.state = jax.tree.map(counted, epoch.state, is_leaf=is_counter)
        return epoch()

    return call


def _timed(name: str) -> str:
    return WITHOUT_TRACE if name == FAST_SFT else name
