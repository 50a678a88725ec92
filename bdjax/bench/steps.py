"""Training steps: plain, SAM, fast SFT and NFT, each against a plain one and against what the device can do."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from bdjax import defenses
from bdjax.bench import measure
from bdjax.bench.session import Session
from bdjax.optim.fisher_trace import FisherTraceState
from bdjax.train import loop
from bdjax.train.supervised import supervised
from bdjax.train.transformations import PlainSgd
from bdjax.types import Learner, Model, Split, Tree

PLAIN, FAST_SFT = "plain", "fast_sft"
WITHOUT_TRACE, WITH_TRACE = "fast_sft_without_trace", "fast_sft_with_trace"
_PRODUCT, _COPY = "product", "copy"
_Learners: TypeAlias = dict[str, Any]  # of several classes
# Of work, for each kind and step; None: nobody tells
_Amounts: TypeAlias = dict[str, dict[str, float | None]]
_NEVER = 10**6  # steps between two traces, so that the benchmark alone decides when one is due


def section(session: Session) -> list[measure.Row]:
    """Measure each width and batch size."""
    rows: list[measure.Row] = []
    took = 0.0
    asked = session.settings
    for width, batch_size in itertools.product(asked.widths, asked.batch_sizes):
        if session.room(f"steps of width {width}, batches of {batch_size}", took):
            started = time.perf_counter()
            rows.append(_row(session, width, batch_size))
            took = time.perf_counter() - started
    return rows


def _row(session: Session, width: int, batch_size: int) -> measure.Row:
    model, count = session.settings.create(width), session.settings.steps
    split = measure.random_split(model.spec, batch_size * count)
    learners = _learners(batch_size)
    epochs = _epochs(session, width, learners, model, split)
    peak = measure.Peak(session.settings.dtype or "float32")
    work = {**_calls(epochs), _PRODUCT: peak.product, _COPY: peak.copy}
    calls = measure.interleaved(work, session.settings.rounds)
    if session.traces is not None:
        for name, call in _calls(epochs).items():
            with session.traces.of(f"{name}-width-{width}-batch-{batch_size}"):
                jax.block_until_ready(call())
    rates = {"matmul": peak.flops / calls.pop(_PRODUCT), "copy": peak.bytes / calls.pop(_COPY)}
    seconds = {name: total / count for name, total in calls.items()}
    seconds.pop(WITH_TRACE, None)
    row: measure.Row = {"width": width, "batch_size": batch_size, "seconds_per_step": seconds}
    if FAST_SFT in epochs:
        # Of the one step in the call where it is due
        trace = max(calls[WITH_TRACE] - calls[WITHOUT_TRACE], 0.0)
        every = defenses.create(FAST_SFT).learner.transformation.every
        seconds[FAST_SFT] = seconds[WITHOUT_TRACE] + trace / every
        row["trace_seconds"] = trace
    row["images_per_second"] = {name: batch_size / second for name, second in seconds.items()}
    if PLAIN in seconds:
        row["ratio_to_plain"] = {name: second / seconds[PLAIN] for name, second in seconds.items()}
    return row | _shares(_work(learners, epochs, model, split), seconds, rates)


def _epochs(
    session: Session, width: int, learners: _Learners, model: Model, split: Split
) -> dict[str, measure.TimedEpoch]:
    """Compile an epoch of each learner, and skip those that the device has no memory for."""
    makers: dict[str, Callable[[], measure.TimedEpoch]] = {}
    for name, learner in learners.items():
        makers[name] = functools.partial(measure.TimedEpoch, learner, model, split)
    epochs = measure.prepared(makers)
    for name in list(epochs):
        if not epochs[name].fits:
            of_what = f"{name} step of width {width}, batches of {learners[name].batch_size}"
            session.skip(of_what, "not enough memory")
            del epochs[name]
    return epochs


def _work(
    learners: _Learners, epochs: Mapping[str, measure.TimedEpoch], model: Model, split: Split
) -> _Amounts:
    """Return the operations of a step, and the bytes that it reads and writes, by XLA's count.

    Fast SFT is counted without its trace, whose loop over images XLA would count once.
    """
    untraced = dataclasses.replace(learners[FAST_SFT], transformation=PlainSgd())
    counted = {**learners, FAST_SFT: untraced}
    flops: dict[str, float | None] = {}
    moved: dict[str, float | None] = {}
    for name, epoch in epochs.items():
        flops[_timed(name)] = measure.step_flops(counted[name], model, split)
        if name != FAST_SFT:
            moved[name] = epoch.bytes
    return {"flops": flops, "bytes": moved}


def _shares(work: _Amounts, seconds: dict[str, float], rates: dict[str, float]) -> measure.Row:
    """Return the work where it is known, and its shares of the rates: of what the device did in the same rounds."""
    row: measure.Row = {}
    for what, rate in (("flops", "matmul"), ("bytes", "copy")):
        known: dict[str, float] = {}
        shares: dict[str, float] = {}
        for name, amount in work[what].items():
            if amount is not None:
                known[name] = amount
                shares[name] = amount / seconds[name] / rates[rate]
        row[f"{what}_per_step"], row[f"{rate}_{what}_per_second"] = known, rates[rate]
        row[f"share_of_{rate}"] = shares
    return row


def _learners(batch_size: int) -> _Learners:
    def create(name: str, **options: Any) -> Learner:
        return defenses.create(name, batch_size=batch_size, **options).learner

    return {
        PLAIN: supervised(batch_size=batch_size),
        "sam": create("ft_sam", rho=0.01),
        FAST_SFT: create(FAST_SFT, every=_NEVER),
        "nft": create("nft"),
    }


def _calls(epochs: Mapping[str, measure.TimedEpoch]) -> dict[str, measure.Work]:
    work: dict[str, measure.Work] = {**epochs}
    if work.pop(FAST_SFT, None) is not None:
        work[WITHOUT_TRACE] = _after(epochs[FAST_SFT], 0)
        work[WITH_TRACE] = _after(epochs[FAST_SFT], _NEVER - 1)
    return work


def _after(epoch: measure.TimedEpoch, step: int) -> Callable[[], loop.Summary]:
    """Return a call of the epoch as if so many steps had been taken; on the millionth the trace is due."""

    def is_counter(node: object) -> bool:
        return isinstance(node, FisherTraceState)

    def counted(node: Tree) -> Tree:
        return node._replace(step=jnp.int32(step)) if is_counter(node) else node

    def call() -> loop.Summary:
        epoch.state = jax.tree.map(counted, epoch.state, is_leaf=is_counter)
        return epoch()

    return call


def _timed(name: str) -> str:
    return WITHOUT_TRACE if name == FAST_SFT else name
