"""The demonstration: plant two backdoors in real images, remove them, and show both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from bdjax.checks import RUNS, integer, one_of
from bdjax.runs import config as configs
from bdjax.runs import schema
from bdjax.runs.config import Config
from bdjax.runs.run import Execution, run

ATTACKS = ("badnets", "blended")


@dataclasses.dataclass(frozen=True)
class Story:
    """What the demonstration runs on one data set: the common config, the defenses, and how many seeds."""

    common: dict[str, Any]
    defenses: tuple[dict[str, Any], ...]
    seeds: int


STORIES = {
    "digits": Story(
        common={"data": "digits"},
        defenses=(
            {"name": "none"},
            {"name": "ft"},
            *({"name": "ft_sam", "rho": rho} for rho in (1.0, 2.0, 4.0)),
        ),
        seeds=3,
    ),
    "cifar10": Story(
        common={"data": "cifar10", "model": "preact_resnet18"},
        defenses=({"name": "none"}, {"name": "ft"}, {"name": "ft_sam", "rho": 2.0}),
        seeds=1,
    ),
}


def plan(
    dataset: str = "digits",
    *,
    seeds: int | None = None,
    data_dir: str | None = None,
) -> list[Config]:
    """Return the runs of the demonstration, victims of one seed after another.

    Raises:
      InputError: no demonstration on that data set, or no seed.
    """
    one_of(STORIES, dataset=dataset)
    story = STORIES[dataset]
    seeds = story.seeds if seeds is None else seeds
    integer(1, RUNS, seeds=seeds)
    found = []
    for seed in range(seeds):
        for attack in ATTACKS:
            victim = {"seed": seed, "attack": attack, "data": {"data_dir": data_dir}}
            common = schema.merge(story.common, victim)
            for defense in story.defenses:
                found.append(configs.resolve(schema.merge(common, {"defense": defense})))
    return found


def carry_out(runs: list[Config], execution: Execution) -> list[Path]:
    """Carry out the runs that are not finished and return the folders of all."""
    for config in runs:
        run(config, execution)
    return [execution.out / config.run_id for config in runs]
