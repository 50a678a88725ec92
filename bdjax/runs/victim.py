"""The attacker's part of a run, told in order: train stage by stage, poison, test what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import evaluate, poison, stealth
from bdjax.defenses import stage_key
from bdjax.runs import plans
from bdjax.runs.execution import Execution
from bdjax.runs.folder import VictimFolder
from bdjax.runs.plans import Plan
from bdjax.runs.trainer import Outcome, Trainer, Work
from bdjax.train import attacker, loop
from bdjax.types import Metrics, PoisonedSplit, TriggerState, Variables

_COMPARED = 500  # images on which a trigger of training is compared, which may take long to put on
_KEYS = ("victim", "surrogate", "trigger")  # by the place here: training's own key for the victim


class Planted(NamedTuple):
    """What an attacker has trained so far: a network, whose history is of all of it, and the trigger."""

    fresh: Variables  # a new network's
    network: loop.Result
    trigger_state: TriggerState


class Guesses(NamedTuple):
    """What a network answers to the clean and the triggered test inputs (`bdjax.types.Task.answer`)."""

    clean: np.ndarray
    triggered: np.ndarray


class Victim(NamedTuple):
    """The attacked model, and what it does on the test images."""

    trained: loop.Result  # its history is that of all that the attacker trained
    trigger_state: TriggerState
    # images; where each batch is poisoned anew, of an epoch on average; None of a network that was trained elsewhere
    poisoned_count: int | None
    triggered: PoisonedSplit
    metrics: Metrics
    guesses: Guesses
    stealth: dict[str, Any]  # of the trigger, as the record has it


def plant(
    planned: Sequence[Plan], execution: Execution, trainer: Trainer, stages: int | None = None
) -> list[Planted | None]:
    """Train what the attackers of runs train, stage by stage, the victims last; None is of one that diverged.

    Args:
      planned: the runs, whose attackers train alike.
      execution: where to.
      trainer: of each stage.
      stages: how many of the first stages; None trains them all.
    """
    planted: list[Planted | None] = [_begin(plan) for plan in planned]
    for number in range(len(planned[0].stages) if stages is None else stages):
        works = _works(planned, planted, number, execution)
        outcomes = iter(trainer.train(works, number))
        for place, (plan, before) in enumerate(zip(planned, planted, strict=True)):
            if before is not None:
                planted[place] = _after(before, plan, next(outcomes), trainer)
    return planted


def _begin(plan: Plan) -> Planted:
    if plan.config.victim is not None:
        there = plan.config.victim.load(plan.model)
        return Planted(there, loop.Result(there, []), plan.trigger_state)
    fresh = plan.model.init(plans.key_for(plan.config, "init"))
    return Planted(fresh, loop.Result(fresh, []), plan.trigger_state)


def _works(
    planned: Sequence[Plan], planted: Sequence[Planted | None], number: int, execution: Execution
) -> Iterator[Work]:
    """Yield the work of a stage for each that is still there, one at a time as its images may be large."""
    for plan, before in zip(planned, planted, strict=True):
        if before is None:
            continue
        stage, config = plan.stages[number], plan.config
        images = plans.clean_training(plan)
        if stage.sees_poisoned:
            ready = dataclasses.replace(plan, trigger_state=before.trigger_state)
            images = plans.poison_training(ready).visible
        folder = execution.runs.victim(config.victim_id)
        yield Work(
            key=stage_key(plans.key_for(config, "training"), _KEYS.index(stage.name)),
            learner=stage.learner,
            model=plan.model,
            variables=attacker.start(
                stage, before.fresh, before.network.variables, before.trigger_state
            ),
            split=images,
            label=f"{config.attack.name} {stage.name}",
            folder=folder.stage(stage.name),
            owner={"victim": folder.name, "stage": stage.name, "seed": config.seed},
        )


def _after(before: Planted, plan: Plan, outcome: Outcome, trainer: Trainer) -> Planted | None:
    if isinstance(outcome.result, loop.Diverged):
        trainer.give_up(plan, outcome.result, victim=True)
        return None
    network, state = attacker.parts(outcome.result.variables, before.trigger_state)
    history = [*before.network.history, *outcome.result.history]
    return Planted(before.fresh, loop.Result(network, history), state)


def tested(plan: Plan, planted: Planted) -> Victim:
    """Return the attacked model with what it does on the test images, and how visible its trigger is there."""
    plan = plans.with_trigger(plan, planted.trigger_state)
    triggered = plans.triggered_test(plan)
    metrics, guesses = score(plan, planted.network.variables, triggered)
    count = None
    if plan.config.victim is None:
        count = poison.expected_count(plan.attack, plan.attackers)
    return Victim(
        trained=planted.network,
        trigger_state=planted.trigger_state,
        poisoned_count=count,
        triggered=triggered,
        metrics=metrics,
        guesses=guesses,
        stealth=_stealth(plan, triggered),
    )


def score(plan: Plan, variables: Variables, triggered: PoisonedSplit) -> tuple[Metrics, Guesses]:
    """Return the counts of a network on the test images, and what it answers to them."""
    test = plan.dataset.test
    on_clean = evaluate.predict(plan.model, variables, test.input)
    on_triggered = evaluate.predict(plan.model, variables, triggered.visible.input)
    metrics = evaluate.count(plan.inputs.spec.task, on_clean, on_triggered, test, triggered)
    return jax.device_get(metrics), Guesses(*jax.device_get((on_clean, on_triggered)))


def _stealth(plan: Plan, triggered: PoisonedSplit) -> dict[str, Any]:
    """Return how visible the trigger is on test images, and the one in training, if it is another, on some of those."""
    test, attack = plan.dataset.test, plan.attack
    visible = triggered.visible
    picture = plan.inputs.spec.modality.picture
    clean, triggered_ones = picture(np.asarray(test.input)), picture(visible.input)
    found = {"test": stealth.measure(clean, triggered_ones, visible.valid).plain()}
    if attack.test_trigger is not None:
        wanted = poison.candidates(attack, jnp.asarray(test.label), jnp.asarray(test.valid))
        rows = np.flatnonzero(wanted)[:_COMPARED]
        image = jnp.asarray(test.input)[rows]
        stamp = poison.trigger_source(
            attack, plan.trigger_state, rounding=plan.config.poison.rounding
        )
        changed = plans.stamped(stamp, plans.key_for(plan.config, "test"), image)
        everyone = np.ones(len(rows), bool)
        found["train"] = stealth.measure(picture(image), picture(changed), everyone).plain()
    return found


def folder_of(plan: Plan, execution: Execution) -> VictimFolder:
    """Return the folder of the victim of a run."""
    return execution.runs.victim(plan.config.victim_id)
