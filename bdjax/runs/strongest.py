"""A defense that somebody wants once: with the strongest setting that costs no more accuracy than may be lost.

`bdjax.runs.strength.choose` tries every setting inside one program, as a sweep wants it. Here the settings are tried
from strong to weak until one is bearable, which is then the network that is returned: nothing is computed twice, each
trial has its progress and its checkpoints, and one that diverges is a trial that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from bdjax import defenses
from bdjax.data.validation import ROUNDING
from bdjax.defenses import Given, stage_key
from bdjax.runs import chance, plans
from bdjax.runs import config as configs
from bdjax.runs.clean_images import Parts
from bdjax.runs.config import Config
from bdjax.runs.execution import Execution
from bdjax.runs.folder import LoopFolder
from bdjax.runs.trainer import Alone, Work
from bdjax.train import batches, loop
from bdjax.types import Model, Split, Variables

Place = Callable[[int, int], LoopFolder]  # of a trial's number and a stage's


class Trial(NamedTuple):
    """A strength that was tried; ``right`` of ``of`` images kept for that, None where training diverged."""

    value: float
    right: int | None
    of: int


class Outcome(NamedTuple):
    """What came of a defense; without a strength that was to be chosen, there are no trials and no choice."""

    result: loop.Result
    chosen: float | None = None
    within_budget: bool = True  # False: even the weakest setting costs more
    right_before: int | None = None
    trials: tuple[Trial, ...] = ()


class Network(NamedTuple):
    """A model with its variables."""

    model: Model
    variables: Variables


def defend(
    config: Config,
    network: Network,
    parts: Parts,
    execution: Execution,
    place: Place,
    owner: str,
) -> Outcome:
    """Run the defense that a config asks for.

    Args:
      config: of the defense, whose strength may be ``auto``.
      network: the suspect one.
      parts: the images.
      execution: how, and who is told.
      place: where the checkpoints of a trial's stage lie.
      owner: whose they are.

    Raises:
      InputError: what the defense is given does not do.
      bdjax.train.loop.Stopped: `Execution.should_stop` said so; the same call continues.
      bdjax.train.loop.Diverged: there is no setting with which it did not diverge.
    """
    run = _Run(config, network, parts.given, execution, place, owner)
    if config.strength is None or config.selection is None or parts.choosing is None:
        return Outcome(run(0, None))
    kept = parts.choosing
    before, of = right(network, kept), len(kept.label)
    least = before - (config.selection.budget + ROUNDING) * of
    trials: list[Trial] = []
    result = None
    for number, value in _from_strong(config.strength.values):
        try:
            result = run(number, value)
        except loop.Diverged:
            trials.append(Trial(value, None, of))
            if value == config.strength.values[0] and result is None:
                raise
            continue
        trials.append(Trial(value, right(Network(network.model, result.variables), kept), of))
        if trials[-1].right is not None and trials[-1].right >= least:
            return Outcome(result, value, True, before, tuple(trials))
    assert result is not None, "as the weakest diverged otherwise"
    return Outcome(result, _last_value(trials), False, before, tuple(trials))


def right(network: Network, split: Split) -> int:
    """Return on how many images a network is right."""
    answer = chance.answers(network.model, network.variables, np.asarray(split.input))
    return int((answer == np.asarray(split.label)).sum())


def _from_strong(values: tuple[float, ...]) -> Iterator[tuple[int, float]]:
    for number in reversed(range(len(values))):
        yield number, values[number]


def _last_value(trials: list[Trial]) -> float:
    """Return the weakest strength that did not diverge, whose network is the last that was made."""
    return next(trial.value for trial in reversed(trials) if trial.right is not None)


class _Run(NamedTuple):
    """Runs a defense, with a strength in the place of ``auto``, stage by stage."""

    config: Config
    network: Network
    given: Split
    execution: Execution
    place: Place
    owner: str

    def __call__(self, number: int, value: float | None) -> loop.Result:
        """Return what comes of it.

        Args:
          number: of the trial, by which its checkpoints are named.
          value: of the strength, None where none is to be chosen.
        """
        config, model = self.config, self.network.model
        defense = configs.build_defense(config, value)
        key, history = plans.key_for(config, "defense"), []
        variables, trainer = self.network.variables, Alone(self.execution)
        paths = configs.stage_paths(config)
        for stage_number, (path, stage) in enumerate(zip(paths, defense.stages, strict=True)):
            own_key = stage_key(key, stage_number)
            learner, split = defenses.handed(stage, Given(self.given))
            batches.check(stage.learner, self.given, "data")
            batches.tell(stage.learner, self.given, f"{path}.batch_size")
            work = Work(
                key=own_key,
                learner=learner,
                model=model,
                variables=stage.begin(own_key, model, variables),
                split=split,
                label=_label(config, value),
                folder=self.place(number, stage_number),
                owner={"purification": self.owner, "trial": number, "stage": stage_number},
            )
            (outcome,) = trainer.train([work], stage_number)
            assert isinstance(outcome.result, loop.Result), "what diverges alone is raised"
            variables = outcome.result.variables
            history += outcome.result.history
        return loop.Result(variables, history)


def _label(config: Config, value: float | None) -> str:
    """Return what the progress is of."""
    if value is None or config.strength is None:
        return config.defense.name
    return f"{config.defense.name} {config.strength.path.rpartition('.')[2]}={value:g}"
