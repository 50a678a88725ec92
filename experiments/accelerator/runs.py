"""The runs behind victims and methods: what is asked for, what is published of it, where it is kept.

All victims are FT-SAM's: 100 epochs at 0.01, 10 % poison, the holdout not held out. Methods have the options of their
own papers (`_paper_configs`), on these victims.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from _paper_configs import FULL, SIZES, Options, Paper, Size, values_of
from ft_sam_tables import FT_SAM

from accelerator.session import Row, Session, Settings
from bdjax import data, models, report
from bdjax.report import bundle, published
from bdjax.report.published import TASK, Value
from bdjax.report.records import Record
from bdjax.runs import config, plans, schema
from bdjax.runs.at_hand import AtHand
from bdjax.runs.config import Config
from bdjax.runs.execution import Execution
from bdjax.runs.folder import RECORD, RunFolder
from bdjax.runs.plans import Plan
from bdjax.runs.victim import Victim

RECORDS = "records.jsonl"
RATE = 40_000  # training images a second that are reckoned with, of a plain step in bfloat16
COMPILE = 30.0  # seconds, likewise, of a program that is new
CHECKPOINT_SECONDS = 30.0  # a stop saves at once; this is what a kill may cost
DEBUG = Size("digits", SIZES["digits"][0], 8, 6, 3)
# What lets the attacks be tried on 1,347 digits in seconds, over what `_paper_configs` changes for them.
_DEBUG_ATTACKS: dict[str, Options] = {
    "input_aware": {"epochs": 2, "learning_epochs": 2},
    "lf": {"images": 10, "passes": 2, "iterations": 10},
    "sig": {"poison_rate": 0.08},
}
COUNTS = ("clean_correct", "clean_total", "attack_hits", "robust_correct", "attack_total")
RATES = ("clean_accuracy", "attack_success_rate", "robust_accuracy")


class Planted(NamedTuple):
    """A victim: an attack, as the papers' tables name it, on a data set and a network."""

    attack: str
    dataset: str = "cifar10"
    model: str = "preact_resnet18"

    @property
    def name(self) -> str:
        """The name in parts and tables; what is usual goes without saying."""
        usual = {"cifar10", "preact_resnet18"}
        more = [word for word in (self.dataset, self.model) if word not in usual]
        return "-".join([*more, self.attack.removesuffix("_a2o")])

    @property
    def is_there(self) -> bool:
        """Whether bdjax has such data and such a network."""
        return self.dataset in data.names() and self.model in models.names()


def values(
    settings: Settings,
    planted: Planted,
    paper: Paper = FT_SAM,
    defense: str = "none",
    clean_data: str = "5%",
) -> Options:
    """Return a run's config without seed: the victim, and a defense with its paper's options.

    Args:
      settings: of the call.
      planted: the victim.
      paper: whose options the defense has.
      defense: as the papers' tables name it.
      clean_data: the defender's images, likewise.

    Raises:
      _paper_configs.Missing: bdjax has no such thing.
    """
    size = DEBUG if settings.debug else FULL
    asked = functools.partial(_value, planted)
    victim = values_of(FT_SAM, asked("none", "5%"), size, settings.data_dir)
    method = values_of(paper, asked(defense, clean_data), size, settings.data_dir)
    found = {
        **victim,
        "holdout": {**method["holdout"], "held_out": False},
        "defense": method["defense"],
    }
    return (
        _debugged(found)
        if settings.debug
        else schema.merge(found, {"model": {"dtype": "bfloat16"}})
    )


def _value(planted: Planted, defense: str, clean_data: str) -> Value:
    """Return what a table would have of a run, but for the number."""
    names = (TASK, planted.dataset, planted.model, planted.attack, "10%", clean_data, defense)
    return Value("", "", *names, "acc", float("nan"), None, "")


def _debugged(values: Options) -> Options:
    attack = {**values["attack"], **_DEBUG_ATTACKS.get(values["attack"]["name"], {})}
    training = {**values["training"], "epochs": DEBUG.epochs}
    return {**values, "attack": attack, "training": training}


def published_of(planted: Planted, source: str, defense: str, clean_data: str) -> Row:
    """Return what a paper prints of a victim and a defense, in %, and where; its main table's, if there are several.

    Args:
      planted: the victim.
      source: how the paper's identifier begins.
      defense: as its tables name it.
      clean_data: likewise.
    """
    wanted = _value(planted, defense, clean_data)
    columns = ("task", "dataset", "attack", "poison_rate", "clean_data", "defense")
    found = [
        value
        for value in published.load()
        if value.paper.startswith(source)
        and value.model in (planted.model, "")
        and all(getattr(value, name) == getattr(wanted, name) for name in columns)
    ]
    if not found:
        return {}
    first = found[0]
    rates = {value.metric: value.value for value in found if value[:2] == first[:2]}
    return {"source": f"{first.paper}, {first.table}", **rates}


@dataclasses.dataclass(frozen=True)
class Draw(Config):
    """A run whose holdout and defense are drawn with its own seed, and whose victim is that of another.

    A plain config has one seed for all of it. Here ``victim_seed`` is part of what a run is, of its name and of its
    record; `bdjax.runs.config.resolve` does not know it.
    """

    victim_seed: int = 0

    def victim_dict(self) -> dict[str, Any]:
        """Return the part that decides the attacked model, which is a plain run's."""
        whole = super().victim_dict()
        whole["seed"] = whole.pop("victim_seed")
        return whole


def drawn(of: Config, seed: int) -> Draw:
    """Return a run on the victim of a config, with a seed of its own for the rest."""
    fields = {field.name: getattr(of, field.name) for field in dataclasses.fields(of)}
    return Draw(**{**fields, "seed": seed, "victim_seed": of.seed})


def resolve(values: Mapping[str, Any], defense: Mapping[str, Any] | None = None) -> Config:
    """Return the config of seed 0, with changed options of the defense if there are any."""
    return config.resolve(
        {**values, "seed": 0, "defense": {**values["defense"], **(defense or {})}}
    )


def execution(session: Session) -> Execution:
    """Return how runs are carried out: under ``work``, until the time is up."""
    out = session.settings.work / "runs"
    return Execution(out, checkpoint_seconds=CHECKPOINT_SECONDS, should_stop=session.out_of_time)


@functools.cache
def at_hand(session: Session) -> AtHand:
    """Return what this process has at hand, so that no part restores a victim anew."""
    return AtHand(execution(session))


def rates(metrics: Mapping[str, Any]) -> Row:
    """Return the counts and rates of a network, from its record."""
    return {name: metrics[name] for name in (*COUNTS, *RATES)}


def keep_records(session: Session) -> None:
    """Write the records of all runs that are finished, those of earlier calls whose folders are gone too."""
    file = session.settings.out / RECORDS
    files = (session.settings.work / "runs").glob(f"*/{RECORD}")
    folders = [RunFolder(path.parent) for path in sorted(files)]
    found: dict[str, Record] = {}
    if file.exists():
        found = {record.run_id: record for record in report.load([file])}
    for folder in folders:
        if (content := folder.finished()) is not None:
            found[folder.name] = Record(folder.path, content)
    bundle.write(found.values(), file)


def attacked(session: Session, of: Config) -> tuple[Plan, Victim]:
    """Return the plan of a run and its victim, trained if it was not, and the trigger as the attacker has made it."""
    plan = at_hand(session).plan(of)
    victim = at_hand(session).victim(plan)
    return plans.with_trigger(plan, victim.trigger_state), victim
