"""How fast? A network's steps against what the device can do and against PyTorch, sweeps, and what surrounds a run.

Calls that are compared are timed in turn, in the same seconds. The estimates of parts are for one H100 and are guesses
until one has measured them: most of a part is compiling. A program stays in the process, so that a part which needs it
again is done sooner than it says.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from accelerator import torch_process
from accelerator.session import Part, Row, Session, Settings
from accelerator.speed_tables import tables as tables
from accelerator.torch_ways import CHANNELS_LAST, LAYOUTS, NCHW, Way
from bdjax import defenses, evaluate
from bdjax.bench import loads, measure, profile, startup, sweeps
from bdjax.bench import session as bench_session
from bdjax.defenses.ft_sam import SharpnessAware
from bdjax.devices import environment
from bdjax.parametrizations import NeuronMasks
from bdjax.train import feeding, group
from bdjax.train.feeding import Feeding
from bdjax.train.supervised import supervised
from bdjax.types import Learner, Model, Split

BDJAX, TORCH = "bdjax", "PyTorch"
PLAIN, SAM = "plain", "sam"
RHO = 0.01
# The network's type, and how JAX rounds the operands of float32 products.
TYPES = {
    "bfloat16": ("bfloat16", None),
    "tensorfloat32": ("float32", "tensorfloat32"),
    "float32": ("float32", "float32"),
}
STEPS: dict[str, Callable[[int], Learner]] = {
    PLAIN: lambda size: supervised(batch_size=size),
    SAM: lambda size: _defense("ft_sam", size, rho=RHO),
    "nft": lambda size: _defense("nft", size),
    # min over masks in [0, 1] of the loss at the worst perturbation of the masks, in two passes. ANP's own step has a
    # third one, at the masks as they are, and perturbs the shifts of the batch norms as well.
    "anp_like": lambda size: supervised(
        batch_size=size,
        weight_decay=0.0,
        transformation=SharpnessAware(RHO, adaptive=False),
        parametrization=NeuronMasks(0.0, 0.0),
    ),
    "sft": lambda size: _defense("sft", size),
    "fast_sft": lambda size: _defense("fast_sft", size),
}
# How an epoch may be fed, beside the way that `bdjax run` takes by itself.
FEEDINGS = {
    "step": Feeding(prepared=False),
    "epoch": Feeding(prepared=True),
    "unroll-4": Feeding(prepared=True, unroll=4),
    "unroll-8": Feeding(prepared=True, unroll=8),
}
# Within a step, of which XLA counts one turn, and a trace on one step of ten
_WITH_LOOPS = ("sft", "fast_sft")


def _numbers(kind: str) -> tuple[str, str | None]:
    """Return what `TYPES` says of a type; on a CPU, float32 products are exact, whatever is asked for."""
    dtype, precision = TYPES[kind]
    return dtype, None if jax.default_backend() == "cpu" else precision


def _defense(name: str, batch_size: int, **options: Any) -> Learner:
    return defenses.create(name, batch_size=batch_size, **options).learner


class Case(NamedTuple):
    """A step in one type and size; ``kind`` is of `TYPES`."""

    step: str
    kind: str
    batch_size: int
    model: str = "preact_resnet18"

    @property
    def part(self) -> str:
        """The name of its part."""
        return f"speed/{self.step}-{self.kind}-{self.batch_size}"


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
      width: of the network.
      images: of one call at least, which is ten steps or more, as a trace is due on one of ten.
      rounds: of calls that take turns.
      rhos, seeds: of the sweep.
      sweep_rounds: of its calls, which are long.
      evaluated: images.
      compile_seconds: guesses for each step; of PyTorch's start, and of `torch.compile`.
    """

    width: int
    images: int
    rounds: int
    rhos: int
    seeds: int
    sweep_rounds: int
    evaluated: int
    compile_seconds: Mapping[str, float] = dataclasses.field(hash=False)
    other_seconds: float = 5.0

    def steps(self, batch_size: int) -> int:
        """Return the steps of a call."""
        return max(10, self.images // batch_size // 10 * 10)

    def settings(self, case: Case) -> bench_session.Settings:
        """Return a case as the benchmark's settings."""
        return bench_session.settings(
            model=case.model,
            widths=(self.width,),
            batch_sizes=(case.batch_size,),
            dtype=TYPES[case.kind][0],
            matmul_precision=_numbers(case.kind)[1],
            steps=self.steps(case.batch_size),
            rounds=self.rounds,
        )

    def seconds(self, *steps: str) -> float:
        """Return the guess for a part that compiles these."""
        return sum(self.compile_seconds[step] for step in dict.fromkeys(steps)) + self.other_seconds


_H100 = {
    "plain": 25,
    "sam": 35,
    "nft": 25,
    "anp_like": 30,
    "sft": 45,
    "fast_sft": 60,
    "torch": 15,
    "torch.compile": 40,
}
_CPU = {"plain": 5, "sam": 5, "torch": 2}
_CPU_SMALL = {"plain": 2, "sam": 2, "fast_sft": 4}
FULL = Scale(64, 5_120, 5, 8, 3, 2, 10_000, _H100)
DEBUG = Scale(4, 160, 2, 2, 2, 1, 64, _CPU, other_seconds=1.0)
SMALL = "small_cnn"  # in miniature, of all that is not compared with PyTorch
DEBUG_SMALL = dataclasses.replace(DEBUG, compile_seconds=_CPU_SMALL)


# The parts


def parts(settings: Settings) -> list[Part]:
    """Return what is worth most: the rates, and plain and SAM steps in bfloat16 against PyTorch; about two minutes."""
    if settings.debug:
        return [_peaks(DEBUG, ("float32",)), *_against_torch("float32", 16, DEBUG)]
    compiled = [
        _step_part(Case(step, "bfloat16", 128), FULL, (Way(CHANNELS_LAST, True),))
        for step in (PLAIN, SAM)
    ]
    return [_peaks(FULL, tuple(TYPES)), *_against_torch("bfloat16", 128, FULL), *compiled]


def further_parts(settings: Settings) -> list[Part]:
    """Return the rest, in the order of its worth, for when the other subjects have had their minutes."""
    if settings.debug:
        method = _step_part(Case("fast_sft", "float32", 16, SMALL), DEBUG_SMALL)
        sweep = _sweep(Case(SAM, "float32", 16, SMALL), DEBUG_SMALL, (group.LOOP,))
        small = Case(PLAIN, "float32", 16, SMALL)
        return [method, *sweep, *_fed(small, DEBUG_SMALL, ("epoch",)), *_rest(small, DEBUG_SMALL)]
    methods = [
        _step_part(Case(step, "bfloat16", 128), FULL) for step in STEPS if step not in (PLAIN, SAM)
    ]
    larger = [
        _step_part(Case(step, "bfloat16", 256), FULL, (Way(CHANNELS_LAST, True),))
        for step in (PLAIN, SAM)
    ]
    floats = [
        part for kind in ("tensorfloat32", "float32") for part in _against_torch(kind, 128, FULL)
    ]
    largest = [part for kind in TYPES for part in _against_torch(kind, 1024, FULL)]
    sweep = _sweep(Case(SAM, "bfloat16", 128), FULL, (group.LOOP, "map:4", "map:8", group.VMAP))
    fed = _fed(Case(PLAIN, "bfloat16", 128), FULL, ("step", "unroll-4", "unroll-8"))
    listed = [
        *_against_torch("bfloat16", 256, FULL),
        *larger,
        *fed,
        *methods,
        *floats,
        *largest,
        *sweep,
    ]
    listed += [*_rest(Case(PLAIN, "bfloat16", 128), FULL), *_left(FULL)]
    first = {part.name for part in parts(settings)}
    return [
        part for name, part in {part.name: part for part in listed}.items() if name not in first
    ]


def _against_torch(kind: str, batch_size: int, scale: Scale) -> list[Part]:
    """Return a plain and a SAM step against PyTorch's eager ones."""
    ways = tuple(map(Way, LAYOUTS))
    return [_step_part(Case(step, kind, batch_size), scale, ways) for step in (PLAIN, SAM)]


def _left(scale: Scale) -> list[Part]:
    """Return what has no minutes of its own: the other layout compiled, and each step in each type and size."""
    nchw = [
        _step_part(Case(step, "bfloat16", 128), scale, (Way(NCHW, True),)) for step in (PLAIN, SAM)
    ]
    cases = itertools.starmap(Case, itertools.product(STEPS, TYPES, (128, 256, 1024)))
    ways = tuple(map(Way, LAYOUTS))
    return nchw + [
        _step_part(case, scale, ways if case.step in (PLAIN, SAM) else ()) for case in cases
    ]


def _step_part(case: Case, scale: Scale, ways: tuple[Way, ...] = ()) -> Part:
    name = case.part
    if ways and ways[0].compiled:
        name += f"-compile-{ways[0].layout}"
    compiled = "torch.compile" if ways and ways[0].compiled else "torch"
    seconds = scale.seconds(PLAIN, case.step, *([compiled] if ways else []))
    return Part(name, seconds, functools.partial(_step, case=case, scale=scale, ways=ways))


def _peaks(scale: Scale, kinds: tuple[str, ...]) -> Part:
    return Part("speed/peak", 3.0 + scale.other_seconds, functools.partial(_peak, kinds=kinds))


def _sweep(case: Case, scale: Scale, forms: tuple[str, ...]) -> list[Part]:
    seconds = 2 * scale.seconds(case.step) + 2 * scale.other_seconds
    return [
        Part(
            f"speed/sweep-{form}",
            seconds,
            functools.partial(_sweep_rows, case=case, scale=scale, form=form),
        )
        for form in forms
    ]


def _fed(case: Case, scale: Scale, names: tuple[str, ...]) -> list[Part]:
    seconds = scale.seconds(case.step) + scale.compile_seconds[case.step]
    return [
        Part(
            f"speed/feeding-{name}",
            seconds,
            functools.partial(_feeding, case=case, scale=scale, name=name),
        )
        for name in names
    ]


def _rest(case: Case, scale: Scale) -> list[Part]:
    both = scale.seconds(PLAIN, SAM)
    return [
        Part(
            "speed/loads",
            2 * scale.other_seconds,
            functools.partial(_loads, case=case, scale=scale),
        ),
        Part(
            "speed/evaluation",
            3 * scale.other_seconds,
            functools.partial(_evaluation, case=case, scale=scale),
        ),
        Part("speed/startup", 2 * both, functools.partial(_startup, case=case, scale=scale)),
        Part("speed/profile", both, functools.partial(_profile, case=case, scale=scale)),
    ]


# What they measure


def _peak(session: Session, kinds: tuple[str, ...]) -> Iterator[Row]:
    del session
    for kind in kinds:
        yield {"peak": kind, **measure.Peak(*_numbers(kind)).rates()}


def _step(session: Session, case: Case, scale: Scale, ways: tuple[Way, ...]) -> Iterator[Row]:
    """Time a step, a plain one and PyTorch's, a product and a copy in turn."""
    epochs = {of.step: _epoch(of, scale) for of in (case._replace(step=PLAIN), case)}
    if not all(epoch.fits for epoch in epochs.values()):
        yield {**_said(case, BDJAX, scale), "missing": "not enough memory"}
        return
    torch: dict[str, _TorchSteps] = {}
    for way in ways:
        try:
            made = _TorchSteps(way, case, scale)
            torch[f"{way.mode} {way.layout}"] = made
        except torch_process.Missing as reason:
            yield {
                **_said(case, TORCH, scale),
                "mode": way.mode,
                "layout": way.layout,
                "missing": str(reason),
            }
            session.tell(f"{case.part}: no {way.mode} {way.layout}: {reason}")
    peak = measure.Peak(*_numbers(case.kind))
    work = {**epochs, **torch, "product": peak.product, "copy": peak.copy}
    timings = measure.timed(work, scale.rounds)
    rates = {
        "matmul": peak.flops / timings["product"].seconds,
        "copy": peak.bytes / timings["copy"].seconds,
    }
    ratio = timings[case.step].seconds / timings[PLAIN].seconds
    row = _bdjax_row(case, epochs[case.step], timings[case.step], rates, scale)
    yield {**row, "ratio_to_plain": ratio}
    for name, made in torch.items():
        yield made.row(timings[name].seconds, timings[case.step].seconds)


@functools.cache
def _epoch(case: Case, scale: Scale, fed: Feeding | None = None) -> measure.TimedEpoch:
    """Compile an epoch, fed as `bdjax run` feeds it here unless it is said how."""
    model, split = _model_and_split(case, scale)
    learner = STEPS[case.step](case.batch_size)
    fed = fed or feeding.choose(feeding.AUTO, 1, learner, split)
    return measure.TimedEpoch(learner, model, split, precision=_numbers(case.kind)[1], feeding=fed)


def _model_and_split(case: Case, scale: Scale) -> tuple[Model, Split]:
    model = scale.settings(case).create(scale.width)
    return model, measure.random_split(model.spec, case.batch_size * scale.steps(case.batch_size))


def _said(case: Case, by: str, scale: Scale) -> Row:
    """Return what a row of steps says of itself."""
    return {"by": by, **case._asdict(), "width": scale.width, "steps": scale.steps(case.batch_size)}


def _bdjax_row(
    case: Case,
    epoch: measure.TimedEpoch,
    timing: measure.Timing,
    rates: dict[str, float],
    scale: Scale,
) -> Row:
    seconds = timing.seconds / scale.steps(case.batch_size)
    row = {
        **_said(case, BDJAX, scale),
        "seconds_per_step": seconds,
        "images_per_second": case.batch_size / seconds,
        "host_seconds_per_step": timing.host_seconds / scale.steps(case.batch_size),
        "host_share": timing.host_seconds / timing.seconds,
        "compile_seconds": epoch.compile_seconds,
        "program_bytes": epoch.held_bytes,
        # Of all that the process has done so far
        "device_peak_bytes": environment.memory()["device_peak_bytes"],
    }
    for rate, what, amount in (("matmul", "flops", epoch.flops), ("copy", "bytes", epoch.bytes)):
        if rate not in rates:
            continue
        row[f"{rate}_{what}_per_second"] = rates[rate]
        if amount is not None and case.step not in _WITH_LOOPS:
            row |= {f"{what}_per_step": amount, f"share_of_{rate}": amount / seconds / rates[rate]}
    return row


class _TorchSteps:
    """The same steps in PyTorch, to be called; making them takes the first ones, which compiles."""

    def __init__(self, way: Way, case: Case, scale: Scale):
        dtype = TYPES[case.kind][0]
        tf32 = case.kind == "tensorfloat32"
        self._way = dataclasses.replace(way, dtype=dtype, tf32=tf32, device=torch_process.device())
        self._said, self._size = _said(case, TORCH, scale), case.batch_size
        self._asked = {
            "width": scale.width,
            "batch_size": case.batch_size,
            "count": scale.steps(case.batch_size),
            "sam": case.step == SAM,
        }
        started = time.perf_counter()
        self._version = self()["version"]
        self._prepare_seconds = time.perf_counter() - started

    def __call__(self) -> dict[str, Any]:
        return _torch().take(way=self._way, **self._asked)

    def row(self, seconds: float, bdjax_seconds: float) -> Row:
        """Return the row of a call that takes so long, and one of bdjax's so long in the same rounds."""
        seconds, bdjax_seconds = (of / self._asked["count"] for of in (seconds, bdjax_seconds))
        return {
            **self._said,
            "mode": self._way.mode,
            "layout": self._way.layout,
            "version": self._version,
            "seconds_per_step": seconds,
            "images_per_second": self._size / seconds,
            "bdjax_images_per_second": self._size / bdjax_seconds,
            "bdjax_over_torch": seconds / bdjax_seconds,  # images a second over images a second
            "prepare_seconds": self._prepare_seconds,
        }


@functools.cache
def _torch() -> torch_process.TorchProcess:
    process = torch_process.TorchProcess()
    atexit.register(process.close)
    return process


def _sweep_rows(session: Session, case: Case, scale: Scale, form: str) -> Iterator[Row]:
    """Time a step of all points of a sweep of FT-SAM, in one inner form, against that of a single run."""
    del session
    single, (model, split) = _epoch(case, scale), _model_and_split(case, scale)
    variables = model.init(jax.random.key(0))
    points = [
        group.Point(
            jax.random.key(seed),
            _defense("ft_sam", case.batch_size, rho=RHO * 2.0**power),
            variables,
            split,
        )
        for power in range(scale.rhos)
        for seed in range(scale.seeds)
    ]
    count, steps = len(points), scale.steps(case.batch_size)
    found = sweeps.costs(points, model, single, (form,), steps, scale.sweep_rounds)
    row = {**_said(case, BDJAX, scale), "form": form, "points": count}
    row["compile_seconds"] = found["compile_seconds"][form]
    if form not in found["cost_per_point"]:
        yield {**row, "missing": "not enough memory"}
        return
    cost = found["cost_per_point"][form]
    row |= {
        "seconds_per_step": found["seconds_per_step"][form],
        "cost_per_point": cost,
        "in_singles": cost * count,
    }
    yield {**row, "single_seconds_per_step": found["seconds_per_step"][sweeps.SINGLE]}


def _feeding(session: Session, case: Case, scale: Scale, name: str) -> Iterator[Row]:
    """Time a way to feed an epoch and the one that is taken by itself, in turn."""
    del session
    epochs = {name: _epoch(case, scale, FEEDINGS[name]), feeding.AUTO: _epoch(case, scale)}
    timings = measure.timed(epochs, scale.rounds)
    taken = timings[feeding.AUTO].seconds
    for way, timing in timings.items():
        row = _bdjax_row(case, epochs[way], timing, {}, scale)
        yield {**row, "feeding": way, "against": name, "ratio_to_auto": timing.seconds / taken}


def _loads(session: Session, case: Case, scale: Scale) -> Iterator[Row]:
    asked = dataclasses.replace(scale.settings(case), data_dir=session.settings.data_dir)
    found = loads.section(bench_session.Session(asked, session.tell))
    for verb in ("load", "poison"):
        for name, rate in found[f"{verb}_images_per_second"].items():
            yield {"rate": f"{verb} {name}", "images_per_second": rate}


def _evaluation(session: Session, case: Case, scale: Scale) -> Iterator[Row]:
    del session
    model = scale.settings(case).create(scale.width)
    variables = model.init(jax.random.key(0))
    image = measure.random_split(model.spec, scale.evaluated).input
    call = functools.partial(evaluate.predict, model, variables, image)
    seconds = measure.interleaved({"evaluate": call}, scale.rounds)["evaluate"]
    yield {"rate": f"evaluate, {case.kind}", "images_per_second": scale.evaluated / seconds}


def _startup(session: Session, case: Case, scale: Scale) -> Iterator[Row]:
    """Compile an epoch of ten steps in fresh processes, with an empty cache and with a filled one."""
    asked = bench_session.Session(
        dataclasses.replace(scale.settings(case), minutes=60.0), session.tell
    )
    if (found := startup.section(asked)) is None:
        yield {"startup": "compile", "missing": asked.skipped[-1]["why"]}
        return
    for step in found["compile_seconds"]["cold"]:
        yield {"startup": step, **{kind: of[step] for kind, of in found["compile_seconds"].items()}}
    yield {"startup": "import", "cold": found["import_seconds"]}


def _profile(session: Session, case: Case, scale: Scale) -> Iterator[Row]:
    """Trace a call of each, and name the ten costliest operations; the traces stay with the runs, being large."""
    for of in (case, case._replace(step=SAM)):
        epoch = _epoch(of, scale)
        jax.block_until_ready(epoch())
        folder = session.settings.work / f"profile-{of.step}"
        with profile.trace(folder):
            jax.block_until_ready(epoch())
        for operation in profile.costliest(folder, count=10):
            yield {
                "operation_of": of.step,
                "steps": scale.steps(of.batch_size),
                **operation._asdict(),
            }
