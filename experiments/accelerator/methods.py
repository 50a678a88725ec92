"""The papers' methods on the victims: their settings and those around them, with what is published beside.

Three victims for three seeds would take the minutes of all methods. So there is one victim of each attack, and a seed
is that of the holdout's draw and of the defense's (`runs.Draw`); Grad-Prune's paper counts the same way. A part is a
method with one seed: its settings are one compiled program, which further seeds and victims use again.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from _paper_configs import DEFENSES, Paper
from ft_sam_tables import FT_SAM
from grad_prune_tables import GRAD_PRUNE
from nft_tables import NFT
from sft_tables import SFT

from accelerator import runs, victims
from accelerator.runs import Draw, Planted
from accelerator.session import Part, Row, Session, Settings
from accelerator.victims import known_rate
from bdjax import sweeps
from bdjax.curvature import loss_surface
from bdjax.data import splits
from bdjax.devices import compilation
from bdjax.report.cells import significant, spread
from bdjax.report.grid import Grid, Line, write
from bdjax.report.labels import SYMBOLS
from bdjax.report.statistics import Statistic, statistic
from bdjax.runs import curve, plans, run, schema
from bdjax.runs.folder import RunFolder
from bdjax.runs.plans import Plan
from bdjax.runs.victim import Victim
from bdjax.train import group, loop
from bdjax.train.checkpoints import Checkpoints
from bdjax.types import Variables

SEEDS = (0, 1, 2)
FURTHER = (
    *(Planted(attack) for attack in ("wanet", "input_aware", "sig", "lf")),
    *(Planted(attack, model="vgg19_bn") for attack in ("badnets_a2o", "blended")),
    *(Planted(attack, dataset="gtsrb") for attack in ("badnets_a2o", "blended")),
)
_AFTER = 2.0  # seconds in which a network is tested and its record written
_DEFENDED = "defended"  # folder of a run's network, of those whose loss surface is measured


class Method(NamedTuple):
    """A defense with its paper's settings and further ones.

    Attributes:
      defense: as its paper's tables name it.
      clean_data: the defender's images, likewise.
      paper: whose options it has.
      source: how the identifier of the paper with the published values begins.
      axes: the values of each option; the paper's comes first.
      cost: of a step, in plain ones, for the estimate.
      variants: other names in the paper's tables for some of the settings.
    """

    defense: str
    clean_data: str
    paper: Paper
    source: str
    axes: Mapping[str, tuple[float, ...]]
    cost: float = 1.0
    variants: tuple[str, ...] = ()

    @property
    def settings(self) -> list[dict[str, float]]:
        """The product of the axes, the paper's setting first."""
        return [
            dict(zip(self.axes, point, strict=True))
            for point in itertools.product(*self.axes.values())
        ]


_RHO = {"rho": (2.0, 1.0, 4.0, 8.0)}
_ETA = {"eta_f": (1e-3, 1e-4, 1e-5, 1e-6), "eta_r": (5.0, 0.0)}
_DECAY = {"weight_decay": (1e-4,)}
_ALPHA = {"alpha": (0.8,)}
_DROP = {"accuracy_drop": (0.1,)}

TUNING = (
    Method("ft", "5%", FT_SAM, "ft-sam", _DECAY),
    Method("ft_sam", "5%", FT_SAM, "ft-sam", _RHO, 2.0),
)
SMOOTHING = (
    Method("sft_theta", "1%", SFT, "sft", _ETA, 1.6),
    Method("fsft", "1%", SFT, "sft", _ETA, 1.6, ("fsft:no_lr",)),
    Method("nft", "1%", NFT, "nft", _ALPHA),
)
MAIN = (*TUNING, *SMOOTHING)
REST = (
    Method("grad_prune", "spc=10", GRAD_PRUNE, "grad-prune", _DROP, 20.0),
    Method("fp", "5%", FT_SAM, "ft-sam", _DROP, 1.2),
    Method("grad_prune", "spc=2", GRAD_PRUNE, "grad-prune", _DROP, 20.0),
    Method("ft", "1%", FT_SAM, "ft-sam", _DECAY),
    Method("ft_sam", "1%", FT_SAM, "ft-sam", _RHO, 2.0),
    Method("grad_prune", "spc=100", GRAD_PRUNE, "grad-prune", _DROP, 20.0),
    Method("nft", "5%", NFT, "nft", _ALPHA),
    Method("fsft", "5%", SFT, "sft", _ETA, 1.6, ("fsft:no_lr",)),
    Method("sft_theta", "5%", SFT, "sft", _ETA, 1.6),
    Method("fp", "1%", FT_SAM, "ft-sam", _DROP, 1.2),
)


# --- Parts -----------------------------------------------------------------------------------------------------------


def parts(settings: Settings) -> list[Part]:
    """Return the parts of this subject, in the order of their worth."""
    first, *later = (0,) if settings.debug else SEEDS
    found: list[Part] = []
    for planted in victims.MAIN:
        found += [_part(settings, planted, method, first) for method in MAIN]
        found.append(_surface_part(settings, planted))
    found += _crossed(settings, victims.MAIN, MAIN, later)
    if settings.debug:
        return found + _trial(settings)
    found += _crossed(settings, victims.MAIN, REST, (first, *later))
    for planted in filter(lambda planted: planted.is_there, FURTHER):
        found.append(victims.part(settings, planted))
        found += _crossed(settings, (planted,), TUNING, (first, *later))
        found += _crossed(settings, (planted,), SMOOTHING, (first, *later))
    return found


def _trial(settings: Settings) -> list[Part]:
    """Return the rest of a trial: each method once, and attacks that do not take half a minute to compile."""
    found = _crossed(settings, victims.MAIN[:1], REST[:2], SEEDS[:1])
    for planted in (one for one in FURTHER[:4] if one.attack != "input_aware"):
        found.append(victims.part(settings, planted))
        found += _crossed(settings, (planted,), TUNING[:1], SEEDS[:1])
    return found


def _crossed(
    settings: Settings, planted: Sequence[Planted], methods: Sequence[Method], seeds: Sequence[int]
) -> list[Part]:
    """Return the parts of each method on each victim, seed by seed."""
    crossed = itertools.product(seeds, planted, methods)
    return [_part(settings, one, method, seed) for seed, one, method in crossed]


def _part(settings: Settings, planted: Planted, method: Method, seed: int) -> Part:
    work = functools.partial(_purify, planted=planted, method=method, seed=seed)
    return Part(
        _name(planted, method, seed),
        _seconds(settings, method, seed),
        work,
        (victims.name(planted),),
    )


def _surface_part(settings: Settings, planted: Planted) -> Part:
    needs = tuple(_name(planted, method, SEEDS[0]) for method in MAIN)
    seconds = 3.0 if settings.debug else runs.COMPILE + 8.0 * (1 + len(MAIN))
    return Part(
        f"methods/{planted.name}/surface",
        seconds,
        functools.partial(_measure, planted=planted),
        needs,
    )


def _name(planted: Planted, method: Method, seed: int) -> str:
    return f"methods/{planted.name}/{_called(method)}-{method.clean_data}-seed{seed}"


def _called(method: Method) -> str:
    """Return bdjax's name of a method."""
    return DEFENSES.get(method.defense, {"name": method.defense})["name"]


def _seconds(settings: Settings, method: Method, seed: int) -> float:
    """Return how long a part takes where a plain step is as fast as `runs.RATE`; a program may be new with seed 0."""
    if settings.debug:
        return 2.0
    kind, _, number = method.clean_data.rpartition("=")
    images = 10 * int(number) if kind else 500 * float(number.rstrip("%"))
    steps = 100 * images * method.cost / runs.RATE
    compiling = runs.COMPILE if seed == SEEDS[0] else runs.COMPILE / 3
    return compiling + len(method.settings) * (steps + _AFTER)


# --- Defenses --------------------------------------------------------------------------------------------------------


def _purify(session: Session, planted: Planted, method: Method, seed: int) -> Iterator[Row]:
    """Carry out a method at all of its settings on a victim, test what it leaves, and give a row for each."""
    compilation.enable_cache(session.settings.work / "compiled")
    asked = functools.partial(_values, session.settings, planted, method)
    configs = [runs.resolve(asked(method.defense), setting) for setting in method.settings]
    prepared = [runs.attacked(session, config) for config in configs]
    draws = [runs.drawn(config, seed) for config in configs]
    own = [_with_draw(plan, draw) for (plan, _), draw in zip(prepared, draws, strict=True)]
    victim = prepared[0][1]
    printed_as = {
        runs.resolve(asked(name)).run_id: name for name in (method.defense, *method.variants)
    }
    outcomes = _outcomes(session, method, own, victim)
    for config, setting, plan, outcome in zip(configs, method.settings, own, outcomes, strict=True):
        name = printed_as.get(config.run_id, "")
        yield {
            "victim": planted.name,
            "method": _called(method),
            "holdout": method.clean_data,
            "setting": setting,
            "seed": seed,
            **_concluded(session, plan, victim, outcome),
            "published": runs.published_of(planted, method.source, name, method.clean_data)
            if name
            else {},
        }
    if seed == SEEDS[0] and method in MAIN and isinstance(outcomes[0], loop.Result):
        with _defended(session, draws[0]) as kept:
            kept.save(1, outcomes[0].variables, [], force=True)
    runs.keep_records(session)


def _values(
    settings: Settings, planted: Planted, method: Method, defense: str
) -> Mapping[str, Any]:
    return runs.values(settings, planted, method.paper, defense, method.clean_data)


def _with_draw(plan: Plan, draw: Draw) -> Plan:
    """Return the plan with another draw of the holdout."""
    wanted = draw.holdout
    rows = splits.holdout(
        plans.key_for(draw, "holdout"),
        plan.dataset.train,
        share=wanted.share,
        per_class=wanted.per_class,
        balanced=wanted.balanced,
        num_classes=plan.dataset.spec.num_classes,
    )
    return dataclasses.replace(plan, config=draw, holdout_rows=rows)


def _outcomes(
    session: Session, method: Method, own: Sequence[Plan], victim: Victim
) -> list[loop.Result | loop.Diverged]:
    """Purify the victim at every setting, as one program."""
    made = {
        tuple(setting.values()): plan.defense
        for setting, plan in zip(method.settings, own, strict=True)
    }
    sweep: Any = sweeps.grid(lambda **setting: made[tuple(setting.values())], **method.axes)
    found = sweeps.purify(
        plans.key_for(own[0].config, "defense"),
        sweep,
        own[0].model,
        victim.trained.variables,
        own[0].holdout,
        form=group.LOOP,
        should_stop=session.out_of_time,
    )
    return [of_keys[0] for of_keys in found]


def _concluded(
    session: Session, plan: Plan, victim: Victim, outcome: loop.Result | loop.Diverged
) -> Row:
    """Write the record of a run and return what a table needs of it."""
    where = runs.execution(session)
    if isinstance(outcome, loop.Diverged):
        run.mark_diverged(plan.config, where.out, str(outcome))
        return {"run_id": plan.config.run_id, "diverged": str(outcome)}
    run.folder_of(plan, where).write_config(schema.to_yaml(plan.config.to_dict()))
    state = run.attacked(plan, victim, where)
    record = run.conclude(state._replace(result=outcome), where)
    metrics = record["metrics"]
    return {
        "run_id": record["run_id"],
        **runs.rates(metrics["after"]),
        "defense_effectiveness_rating": metrics["defense_effectiveness_rating"],
        **record["cost"],
    }


# --- Loss surface ----------------------------------------------------------------------------------------------------


def _defended(session: Session, draw: Draw) -> Checkpoints:
    """Return where the network of a run is kept for `_measure`."""
    folder = runs.execution(session).out / draw.run_id / _DEFENDED
    return Checkpoints(folder, owner={"run": draw.run_id, "seed": draw.seed})


def _measure(session: Session, planted: Planted) -> Iterator[Row]:
    """Measure λ_max and Tr(H) of the victim, and after each method of `MAIN` with its paper's setting and seed 0."""
    compilation.enable_cache(session.settings.work / "compiled")
    few = loss_surface.Settings(images=20, draws=2, iterations=3, chunk=20)
    settings = few if session.settings.debug else loss_surface.Settings()
    plan, victim = runs.attacked(session, runs.resolve(runs.values(session.settings, planted)))

    def surface(variables: Variables) -> Row:
        return curve.measure(plan, variables, victim.triggered, settings).plain()

    before = surface(victim.trained.variables)
    yield {"victim": planted.name, "surface": before}
    like = jax.eval_shape(plan.model.init, jax.random.key(0))
    for method in MAIN:
        values = _values(session.settings, planted, method, method.defense)
        draw = runs.drawn(runs.resolve(values, method.settings[0]), SEEDS[0])
        with _defended(session, draw) as kept:
            saved = kept.restore(like)
        if saved is None:  # it has diverged
            continue
        after = surface(saved.state)
        content = {"before": {"mixed": before}, "after": {"mixed": after}}
        owner = {"run": draw.run_id, "settings": settings.identity()}
        RunFolder(kept.folder.parent).write_smoothness({**owner, **content})
        yield {**_identity(planted, method), "surface": after}
    runs.keep_records(session)


def _identity(planted: Planted, method: Method) -> Row:
    """Return what tells a table's line, of a method's first setting."""
    return {
        "victim": planted.name,
        "method": _called(method),
        "holdout": method.clean_data,
        "setting": method.settings[0],
    }


# --- Tables ----------------------------------------------------------------------------------------------------------

_RATES = (
    "clean_accuracy",
    "attack_success_rate",
    "robust_accuracy",
    "defense_effectiveness_rating",
)
_SURFACE = ("largest_eigenvalue", "hessian_trace")
_SECONDS = ("compile_seconds", "run_seconds")
_HEADS = (
    "method",
    "setting",
    "holdout",
    "n",
    "ACC",
    "ASR",
    "RA",
    "DER",
    "λ_max",
    "Tr(H)",
    "compile s",
    "run s",
)
_PUBLISHED = ("ACC published", "ASR published", "DER published", "source")
_CAPTION = (
    "Rates in %, mean ± sample standard deviation over n draws of the holdout with as many seeds of the defense, all "
    "on the one victim of seed 0. λ_max and Tr(H): of the Hessian on 200 test images, half of them triggered, after "
    "seed 0's defense and, above, of the victim. compile s, run s: a run's share of its program, which computes the "
    "settings of a method one after another; what was compiled before costs nothing. The victim is FT-SAM's, trained "
    "on the defender's images too. Published by SFT and NFT: on victims of 250 epochs that never saw these, with other "
    "BadNets and Blended patterns; by Grad-Prune: on BackdoorBench's, whose Blended has α = 0.2."
)


def tables(rows: Sequence[Row]) -> str:
    """Return the tables of this subject as Markdown; empty, where there are no rows of it."""
    own = [row for row in rows if row["part"].startswith("methods/") and "victim" in row]
    attacked = {
        row["victim"]: row for row in rows if row["part"].startswith("victims/") and "victim" in row
    }
    names = dict.fromkeys(row["victim"] for row in own)
    found = [_table(name, own, attacked.get(name)) for name in names]
    return "\n\n".join([*found, _CAPTION]) if found else ""


def _table(victim: str, rows: Sequence[Row], attacked: Row | None) -> str:
    own = [row for row in rows if row["victim"] == victim]
    surfaces = {_key(row): row["surface"] for row in own if "surface" in row}
    lines = [] if attacked is None else [_victim_line(attacked, surfaces.get(None, {}))]
    grouped: dict[Any, list[Row]] = {}
    for row in own:
        if "seed" in row:
            grouped.setdefault(_key(row), []).append(row)
    lines += [_line(same, surfaces.get(key, {})) for key, same in grouped.items()]
    grid = Grid("", (*_HEADS, *_PUBLISHED), {"": lines}, "", words=(0, 1, 2, len(_HEADS) + 3))
    return f"## Methods on {victim}\n\n{write(grid, 'markdown').rstrip()}"


def _key(row: Row) -> Any:
    """Return what tells a line of a victim's table from the others; None for the victim itself."""
    return (
        (row["method"], row["holdout"], tuple(row["setting"].items())) if "method" in row else None
    )


def _victim_line(row: Row, surface: Row) -> Line:
    rates = [spread(statistic([row[name]]), scale=100) for name in _RATES[:3]]
    seconds = [f"{row[name]:.1f}" for name in _SECONDS]
    known = row["published"]
    beside = [known_rate(known, metric) for metric in ("acc", "asr", "der")]
    cells = ["none", "", "–", "1", *rates, "–", *_sharpness(surface), *seconds, *beside]
    return Line([*cells, known.get("source", "–")])


def _line(rows: Sequence[Row], surface: Row) -> Line:
    """Return the line of a method's setting over its seeds."""
    first, whole = rows[0], [row for row in rows if "diverged" not in row]
    told = " ".join(
        f"{SYMBOLS.get(name, name)}={value:g}" for name, value in first["setting"].items()
    )
    count = (
        str(len(whole))
        if len(whole) == len(rows)
        else f"{len(whole)}, {len(rows) - len(whole)} diverged"
    )
    rates = [spread(_over(whole, name), scale=100) for name in _RATES]
    seconds = [spread(_over(whole, name)) for name in _SECONDS]
    known = first["published"]
    beside = [known_rate(known, metric) for metric in ("acc", "asr", "der")]
    front = [first["method"], told, first["holdout"], count]
    return Line([*front, *rates, *_sharpness(surface), *seconds, *beside, known.get("source", "–")])


def _over(rows: Sequence[Row], name: str) -> Statistic:
    return statistic([row[name] for row in rows]) if rows else Statistic(math.nan, None)


def _sharpness(surface: Row) -> list[str]:
    numbers = (surface.get(name) for name in _SURFACE)
    return ["–" if number is None else significant(Statistic(number, None)) for number in numbers]
