"""A run, told in order: begin → train the attacker's stages → choose a strength → defend stage by stage → conclude.

A run by itself and a group of runs of a sweep are carried out by the same function; what differs is who trains a stage,
`bdjax.runs.trainer.Alone` or `bdjax.runs.together.Together`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bdjax import defenses
from bdjax.defenses import stage_key
from bdjax.devices import environment, hosts
from bdjax.files.atomic import Plain
from bdjax.runs import curve, plans, provenance, record, schema, strength
from bdjax.runs.at_hand import AtHand
from bdjax.runs.config import Config
from bdjax.runs.curve import Curve
from bdjax.runs.execution import Execution as Execution
from bdjax.runs.folder import RunFolder, RunsFolder
from bdjax.runs.plans import Plan
from bdjax.runs.samples import samples
from bdjax.runs.trainer import Alone, Trainer, Work
from bdjax.runs.victim import Victim, score
from bdjax.train import checkpoints, loop
from bdjax.types import Variables

_log = logging.getLogger(__name__)


class RunState(NamedTuple):
    """A run on its way."""

    plan: Plan  # with the trigger as the attacker has made it, and the strength that was chosen
    result: loop.Result  # where its defense is
    victim_digest: str  # of the network at which it began
    victim: Victim | None = None  # with what it does; None where nothing is to be concluded
    selection: Plain | None = None  # of the strength, where it was chosen
    how: tuple[Plain, ...] = ()  # each stage of the defense was computed with others
    curve: Curve | None = None  # to be measured on the way


# --- The story -------------------------------------------------------------------------------------------------------


def carry_out(
    planned: Sequence[Plan], execution: Execution, at_hand: AtHand, trainer: Trainer
) -> list[Plain]:
    """Carry out runs from beginning to end, together, and return the records of those that have not diverged.

    Their folders are held by the caller.

    Args:
      planned: the runs, whose defenses have as many stages.
      execution: how, and where to.
      at_hand: what has their victims, or trains them.
      trainer: of each stage of the defenses; it is told of runs that diverge, and of their victims.

    Raises:
      InputError: the data have changed since a run was begun.
      bdjax.train.loop.Stopped: `Execution.should_stop` said so.
      bdjax.train.loop.Diverged: if the trainer raises it.
    """
    runs = []
    for plan in planned:
        begin(plan, execution)
        try:
            victim = at_hand.victim(plan)
        except loop.Diverged as reason:
            trainer.give_up(plan, reason, victim=True)
            continue
        runs.append(choose_strength(attacked(plan, victim, execution), execution))
    return [conclude(run, execution) for run in defend(runs, execution, trainer)]


def begin(plan: Plan, execution: Execution) -> None:
    """Write down what a run is and of which data; refuse what cannot be."""
    folder = folder_of(plan, execution)
    provenance.begin(folder, plan.config, plan.inputs, execution.runs, execution.changed)
    text = schema.to_yaml(plan.config.to_dict())
    hosts.from_first(lambda: folder.write_config(text))
    curve.check(plan, execution)


def attacked(plan: Plan, victim: Victim, execution: Execution) -> RunState:
    """Return a run whose defense is about to begin; a defender who knows the trigger knows the one that was trained."""
    run = undefended(plans.with_trigger(plan, victim.trigger_state), victim.trained.variables)
    return run._replace(victim=victim, curve=curve.of_run(run.plan, victim.triggered, execution))


def undefended(plan: Plan, variables: Variables) -> RunState:
    """Return a run whose defense is about to begin at a network, with nothing to be concluded."""
    return RunState(plan, loop.Result(variables, []), checkpoints.digest(variables)[:16])


def choose_strength(run: RunState, execution: Execution) -> RunState:
    """Return the run with the strength that is ``auto`` chosen, and what was tried; it is kept in a file."""
    plan, config, validation = run.plan, run.plan.config, run.plan.validation
    if config.strength is None or config.selection is None or validation is None:
        return run
    folder = folder_of(plan, execution)
    if (selection := hosts.from_first(folder.selection)) is None:
        found = strength.choose(
            plans.key_for(config, "defense"),
            lambda value: plans.with_strength(plan, value).defense,
            config.strength.values,
            plan.model,
            run.result.variables,
            plans.given(plan, plan.defense.sees),
            validation,
            budget=config.selection.budget,
        )
        trials = [trial._asdict() for trial in found.trials]
        own = {"option": config.strength.path, **dataclasses.asdict(found), "trials": trials}
        selection = hosts.from_first(lambda: own)  # that of another may differ, by rounding
        hosts.from_first(lambda: folder.write_selection(selection))
    return run._replace(plan=plans.with_strength(plan, selection["chosen"]), selection=selection)


def defend(runs: Sequence[RunState], execution: Execution, trainer: Trainer) -> list[RunState]:
    """Purify networks stage by stage and return those runs that have not diverged."""
    alive = list(runs)
    for run in alive:
        if run.curve is not None:
            run.curve(0, lambda run=run: run.result.variables)
    for number in range(len(runs[0].plan.defense_stages) if runs else 0):
        works = (_work(run, number, execution) for run in alive)
        outcomes = trainer.train(works, number) if alive else []
        before, alive = alive, []
        for run, (result, how) in zip(before, outcomes, strict=True):
            if isinstance(result, loop.Diverged):
                trainer.give_up(run.plan, result, victim=False)
                continue
            whole = loop.Result(result.variables, [*run.result.history, *result.history])
            added = () if how is None else (how,)
            alive.append(run._replace(result=whole, how=(*run.how, *added)))
    return alive


def conclude(run: RunState, execution: Execution) -> Plain:
    """Test the defended network, write the record of the run and return it; one that is there already stays."""
    plan, victim, folder = run.plan, run.victim, folder_of(run.plan, execution)
    if (there := hosts.from_first(folder.finished)) is not None:
        return there
    assert victim is not None
    after, guesses = score(plan, run.result.variables, victim.triggered)
    kept = samples(plan, victim.triggered, victim.guesses, guesses)
    hosts.from_first(lambda: folder.write_samples(kept))
    more: Plain = {"sweep": list(run.how)} if run.how else {}
    if run.selection:
        more["selection"] = run.selection
    written = record.finished(plan, victim, run.result, after, execution, more)
    hosts.from_first(lambda: folder.write_record(written))
    return written


def _work(run: RunState, number: int, execution: Execution) -> Work:
    """Return the work of a stage of the defense."""
    plan, config = run.plan, run.plan.config
    key = stage_key(plans.key_for(config, "defense"), number)
    lengths = [stage.epochs for stage in plan.defense_stages]
    stage = plan.defense_stages[number]
    learner, split = defenses.handed(stage, plans.given(plan, (stage.sees,)))
    return Work(
        key=key,
        learner=learner,
        model=plan.model,
        variables=stage.begin(key, plan.model, run.result.variables),
        split=split,
        label=config.defense.name,
        folder=folder_of(plan, execution).stage(number),
        # A checkpoint leaves out what is made again of the victim, so it is of that victim alone.
        owner={
            "run": config.run_id,
            "stage": number,
            "seed": config.seed,
            "victim": run.victim_digest,
        },
        on_variables=None if run.curve is None else run.curve.after(sum(lengths[:number])),
    )


# --- One run ---------------------------------------------------------------------------------------------------------


def run(config: Config, execution: Execution, at_hand: AtHand | None = None) -> Plain:
    """Carry out a run, or return its record if it is finished; the same config never runs twice.

    The folder ``<out>/<run_id>`` holds ``config.yaml``, ``record.json``, ``samples.npz``, the defense's
    checkpoints and ``data.json``, which the data must agree with when a run is continued;
    ``<out>/victims/<victim_id>`` the attacked model, which other defenses share. Several hosts
    (`bdjax.devices.hosts.start`) all call this, with the same arguments and a folder that they share;
    the first writes.

    Args:
      config: of the run.
      execution: how, and where to.
      at_hand: what earlier runs of this process have left, of the same execution.

    Raises:
      InputError: something asked for cannot be, or the data have changed since the run was begun;
        nothing was compiled.
      bdjax.train.loop.Diverged: a loss was not finite; the last good checkpoint is kept.
      bdjax.train.loop.Stopped: `Execution.should_stop` said so; a later call continues.
    """
    hosts.check_same(config=config.run_id, devices=execution.devices)
    if (there := finished_record(config, execution)) is not None:
        return _as_it_is(there, execution)
    at_hand = at_hand or AtHand(execution)
    with execution.computing(config):
        plan = at_hand.plan(config)
        plans.tell_of_batches(plan)
        hosts.check_same(data=plan.inputs.fingerprint, versions=environment.versions())
        folder = folder_of(plan, execution)
        with hosts.held_by_first(folder.locked()):
            # Another process may have been faster
            if (there := finished_record(config, execution)) is not None:
                return _as_it_is(there, execution)
            (written,) = carry_out([plan], execution, at_hand, Alone(execution))
            return written


def run_with_controls(config: Config, execution: Execution) -> list[Plain]:
    """Carry out a run and, before it, its control rows; return the records of all, its own last.

    Raises as `run`; whatever is wrong with one of them does not wait for the others.
    """
    hosts.check_same(config=config.run_id, devices=execution.devices)
    rows, at_hand = with_controls(config), AtHand(execution)
    # The run that was asked for first, so that a mistake is told in its words
    for row in reversed(rows):
        if finished_record(row, execution) is None:
            at_hand.plan(row)
    return [run(row, execution, at_hand) for row in rows]


def with_controls(config: Config) -> list[Config]:
    """Return the control rows of a run and the run itself: no defense, plain fine-tuning with its options, it."""
    if config.defense.name == "none":
        return [config]
    rows = (config.with_defense(name="none"), config.control(), config)
    return list({row.run_id: row for row in rows}.values())


def finished_record(config: Config, execution: Execution) -> Plain | None:
    """Return the record of a run that is finished, if it is of the data that are there now; else None, or refuse.

    Raises:
      InputError: the data have changed, and `Execution.changed` is ``refuse``; or the record is of another run.
    """
    folder = execution.runs.run(config.run_id)
    there = hosts.from_first(folder.finished)
    if there is None or not provenance.is_of_these_data(folder, config, execution.changed):
        return None
    return there


def mark_diverged(config: Config, out: Path, reason: str) -> None:
    """Write the record of a run that has no result."""
    RunsFolder(out).run(config.run_id).write_record(record.diverged(config, reason))


def folder_of(plan: Plan, execution: Execution) -> RunFolder:
    """Return the folder of a run."""
    return execution.runs.run(plan.config.run_id)


def _as_it_is(there: Plain, execution: Execution) -> Plain:
    if hosts.is_first():
        _warn_of_no_curve(execution.runs.run(there["run_id"]), execution)
        if execution.on_finished is not None:
            execution.on_finished(there["run_id"])
    return there


def _warn_of_no_curve(folder: RunFolder, execution: Execution) -> None:
    if execution.smoothness and "curve" not in (folder.smoothness() or {}):
        text = "%s is finished and has no curve of its smoothness; delete it to run it with one."
        _log.warning(text, folder.path)
