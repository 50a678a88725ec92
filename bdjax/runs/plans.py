"""The plan of a run: every part of it, built from its config and checked against the others; nothing is trained."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from bdjax import attacks, defenses, poison
from bdjax.checks import in_section, one_of
from bdjax.data import splits
from bdjax.defenses import Defense, DefenseStage, Given
from bdjax.devices import compilation, footprint, placement
from bdjax.runs import config as configs
from bdjax.runs import holdouts, inputs, plan_checks
from bdjax.runs.config import Config
from bdjax.runs.inputs import Inputs
from bdjax.train import attacker, batches, streamed
from bdjax.train.attacker import Stage
from bdjax.types import (
    Attack,
    Dataset,
    Learner,
    Model,
    PoisonedSplit,
    Split,
    TriggerSource,
    TriggerState,
)

# One key per purpose, folded from the seed's: a new purpose goes to the end and moves no other draw.
_PURPOSES = (
    *("trigger", "poison", "test", "init", "training", "holdout", "defense"),
    # Selection: not drawn any more, but it holds its place
    *("selection", "smoothness", "analysis", "wrong_labels"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class AttackPlan:
    """The data and the attack of a run: all that a trigger needs which is made by formula.

    The images are looked up where they are asked for, so that the plans of many runs are small.
    """

    config: Config
    inputs: Inputs
    attack: Attack
    trigger_state: TriggerState  # as it is before anything is trained, or as it was made since
    model: Model

    @property
    def dataset(self) -> Dataset:
        """The data, looked up."""
        return self.inputs.dataset


@dataclasses.dataclass(frozen=True, eq=False)
class Plan(AttackPlan):
    """Everything that a run needs, built and checked before anything is compiled."""

    # of the attacker's training; the last is the victim's, and a network that was trained elsewhere has none
    stages: list[Stage]
    defense: Defense
    holdout_rows: np.ndarray  # of `bdjax.runs.holdouts.pool`: the defender's
    data_on: str  # where the attacker's images are

    @property
    def attackers(self) -> Split:
        """The clean rows that the attacker poisons and trains on."""
        return _attackers(self.config, self.dataset, self.holdout_rows)

    @property
    def holdout(self) -> Split:
        """What the defense is given."""
        return self._divided()[0]

    @property
    def validation(self) -> Split | None:
        """The rest of the defender's images, where a strength is chosen by them."""
        return self._divided()[1]

    @property
    def defense_stages(self) -> tuple[DefenseStage, ...]:
        """The stages of the defense, in order."""
        return self.defense.stages

    def _divided(self) -> tuple[Split, Split | None]:
        config, dataset, rows = self.config, self.dataset, self.holdout_rows
        key, known = key_for(config, "wrong_labels"), self.inputs.another_digest
        whole = holdouts.taken(key, config, dataset, rows, known)
        return holdouts.divided(config, dataset, whole, rows)


def prepare(
    config: Config, devices: int = 1, data_on: str = "auto", beside: Plan | None = None
) -> Plan:
    """Load the data, build every part and check them against each other, the devices and where the data are to be.

    Nothing is compiled but what puts a trigger that is a formula on the test images, which the run needs as well.

    Args:
      config: of the run.
      devices: how many share each batch.
      data_on: where the attacker's images are to be, one of `bdjax.devices.placement.PLACES`.
      beside: the plan of another run on the same victim, made with the same devices and place: what the attacker needs
        is taken from there.

    Raises:
      InputError: something asked for cannot be.
    """
    planned = _prepare_attacker(config, devices, data_on) if beside is None else beside
    if config.holdout.another != planned.config.holdout.another:
        # The victim is the same, but not the fingerprint, which has the defender's images of another set
        found = inputs.load(config, on_disk=data_on == "disk")
        planned = dataclasses.replace(planned, inputs=found)
    dataset = planned.dataset
    rows = planned.holdout_rows
    if config.holdout != planned.config.holdout:
        rows = _holdout_rows(config, dataset)
    defense = configs.build_defense(config)
    plan = dataclasses.replace(planned, config=config, holdout_rows=rows, defense=defense)
    for path, stage, seen in _defense_fed(plan):
        what = "what the attacker delivers" if stage.sees == defenses.TRAINING else "the holdout"
        plan_checks.check_delivered(path, stage, config, plan.attack, plan.data_on)
        batches.check(stage.learner, seen, what)
        plan_checks.check_steps(path, stage.learner, seen)
        plan_checks.check_devices(path, stage.learner, devices)
        plan_checks.check_division(stage, seen.label.shape[0], dataset.spec.task.strata)
    if beside is None:
        check_trigger(plan)
    return plan


def _prepare_attacker(config: Config, devices: int, data_on: str) -> Plan:
    """Return the plan of a run but for its defense, which is still what the config has built."""
    one_of(placement.PLACES, data_on=data_on)
    of_attack = prepare_attack(config, on_disk=data_on == "disk")
    dataset, attack = of_attack.dataset, of_attack.attack
    holdout_rows = _holdout_rows(config, dataset)
    attackers = _attackers(config, dataset, holdout_rows)
    plan_checks.check_label_map(attack, dataset.test)
    place = placement.choose_place(data_on, attackers)
    stages: list[Stage] = []
    if config.victim is None:
        stages = attacker.stages(attack, *configs.build_training(config))
        _check_training(of_attack, stages, attackers, devices, place)
    else:
        plan_checks.check_given(config, attack, of_attack.model)
    return Plan(
        **vars(of_attack),
        stages=stages,
        defense=configs.build_defense(config),
        holdout_rows=holdout_rows,
        data_on=place,
    )


def _check_training(
    plan: AttackPlan, stages: list[Stage], attackers: Split, devices: int, place: str
) -> None:
    """Refuse what the attacker cannot train so, or on these images."""
    model, whole = plan.model, len(plan.dataset.train.label)
    rows = min(stages[-1].learner.batch_size or 1, whole) // devices
    footprint.check_network(model, max(rows, 1), placement.device_bytes())
    plan_checks.check_parametrization(plan.config, model)
    plan_checks.check_rate(plan.attack, attackers)
    for stage in stages:
        section = plan_checks.section(stage)
        batches.check(stage.learner, attackers, "what the holdout leaves the attacker")
        plan_checks.check_steps(section, stage.learner, attackers)
        plan_checks.check_devices(section, stage.learner, devices)
    if place == "device":
        return
    fresh = jax.eval_shape(model.init, jax.random.key(0))
    for stage in stages:
        begin = attacker.start(stage, fresh, fresh, plan.trigger_state)
        streamed.check(stage.learner, model, begin, attackers)


def prepare_attack(config: Config, *, on_disk: bool = False) -> AttackPlan:
    """Load the data and build the attack, without a question about training or defense.

    Raises:
      InputError: the data, the network, the attack or a file that it names cannot be.
    """
    found = inputs.load(config, on_disk)
    spec = found.spec
    model = configs.build_model(config, spec)
    memory = placement.device_bytes()
    footprint.check_network(model, 1, memory)
    attack = configs.build_attack(config, spec, model)
    with in_section("attack", config.attack.options):
        footprint.check_trigger(attack.trigger, spec, memory)
        trigger_state = attack.trigger.init(key_for(config, "trigger"), spec)
    plan_checks.tell_namesake(config, spec)
    return AttackPlan(config, found, attack, trigger_state, model)


def attackers_images(config: Config, dataset: Dataset) -> Split:
    """Return the clean images that the attacker poisons: those for training, without a held-out holdout."""
    rows = _holdout_rows(config, dataset) if config.holdout.held_out else None
    return _attackers(config, dataset, rows)


def _attackers(config: Config, dataset: Dataset, holdout_rows: np.ndarray | None) -> Split:
    if not config.holdout.held_out or holdout_rows is None:
        return dataset.train
    return splits.exclude(dataset.train, holdouts.withheld(config, dataset, holdout_rows))


def tell_of_batches(plan: Plan) -> None:
    """Warn of every batch size that there are too few images for; each step then takes all of them."""
    attackers = plan.attackers
    for stage in plan.stages:
        batches.tell(stage.learner, attackers, f"{plan_checks.section(stage)}.batch_size")
    for path, stage, seen in _defense_fed(plan):
        batches.tell(stage.learner, seen, f"{path}.batch_size")


def _defense_fed(plan: Plan) -> Iterator[tuple[str, DefenseStage, Split]]:
    """Yield the config's key of each stage of the defense, the stage, and images as many as it is fed."""
    holdout = plan.holdout
    for path, stage in zip(configs.stage_paths(plan.config), plan.defense_stages, strict=True):
        yield path, stage, plan.attackers if stage.sees == defenses.TRAINING else holdout


def given(plan: Plan, sees: Sequence[str]) -> Given:
    """Return what is seen: with the holdout the attack's own trigger, and the training set as it was delivered.

    Args:
      plan: with the trigger as the attacker has made it.
      sees: of a defense, or of one of its stages.
    """
    trigger = _trigger_of(plan) if defenses.TRIGGER in sees else None
    training = poison_training(plan).visible if defenses.TRAINING in sees else None
    return Given(plan.holdout, trigger, training)


def planned(plan: Plan, stage: DefenseStage) -> tuple[Learner, Split]:
    """Return a stage of the defense as the loop will feed it, and images as many as it will be fed, but clean."""
    return defenses.handed(stage, Given(plan.holdout, _trigger_of(plan), plan.attackers))


def with_trigger(plan: Plan, state: TriggerState) -> Plan:
    """Return the plan with the trigger as the attacker has made it; a defender who knows the trigger knows this one."""
    if plan.attack.by_formula:
        return plan
    return dataclasses.replace(plan, trigger_state=state)


def with_strength(plan: Plan, value: float) -> Plan:
    """Return the plan with this value for the strength that is ``auto``."""
    return dataclasses.replace(plan, defense=configs.build_defense(plan.config, value))


def key_for(config: Config, purpose: str) -> Key[Array, ""]:
    """Return the key of one purpose; it depends on the seed and on nothing else."""
    return jax.random.fold_in(jax.random.key(config.seed), _PURPOSES.index(purpose))


def target_class(plan: AttackPlan) -> str | None:
    """Return the name of the class that the attacker wants to see, None where that differs from class to class."""
    return attacks.target_class(plan.attack.label_map, plan.inputs.spec)


def clean_training(plan: Plan) -> Split:
    """Return the attacker's clean images, on the device or as a stream."""
    attackers = plan.attackers
    return attackers if plan.data_on == "device" else poison.clean_stream(attackers)


def poison_training(plan: Plan) -> PoisonedSplit:
    """Return the poisoned training split; the same bits for the same seed and trigger, so it is never stored."""
    return poisoned(plan, plan.attackers, plan.data_on)


def poisoned(plan: AttackPlan, attackers: Split, data_on: str) -> PoisonedSplit:
    """Return the attacker's images with the trigger in some of them, on the device or as a stream."""
    key, rounding = key_for(plan.config, "poison"), plan.config.poison.rounding
    if data_on == "device":
        return _poison_train(key, plan.attack, plan.trigger_state, attackers, rounding)
    return poison.poison_stream(key, plan.attack, plan.trigger_state, attackers, rounding=rounding)


def triggered_test(plan: AttackPlan) -> PoisonedSplit:
    """Return the test split with triggers; the same bits for the same seed and attack."""
    key, rounding = key_for(plan.config, "test"), plan.config.poison.rounding
    return _poison_test(key, plan.attack, plan.trigger_state, plan.dataset.test, rounding)


@functools.partial(compilation.jit, tuned=False)
def stamped(stamp: poison.Stamp, key: Any, image: Any) -> Any:
    """Return a batch of images with the trigger."""
    return stamp(key, image)


@functools.partial(compilation.jit, tuned=False, static_argnames="rounding")
def _poison_train(
    key: Key[Array, ""], attack: Attack, state: TriggerState, split: Split, rounding: str
) -> PoisonedSplit:
    return poison.poison_train(key, attack, state, split, rounding=rounding)


@functools.partial(compilation.jit, tuned=False, static_argnames="rounding")
def _poison_test(
    key: Key[Array, ""], attack: Attack, state: TriggerState, split: Split, rounding: str
) -> PoisonedSplit:
    return poison.poison_test(key, attack, state, split, rounding=rounding)


def check_trigger(plan: AttackPlan) -> None:
    """Refuse a trigger that changes no pixel of any test image that counts, where it is known before training.

    Raises:
      InputError: it changes none.
    """
    if plan.attack.by_formula:
        triggered = functools.partial(triggered_test, plan)
        test = plan.dataset.test
        plan_checks.check_trigger(plan.config, plan.inputs.fingerprint, test, triggered)


def _trigger_of(plan: AttackPlan) -> TriggerSource:
    rounding = plan.config.poison.rounding
    return poison.trigger_source(plan.attack, plan.trigger_state, rounding=rounding, at_test=True)


def _holdout_rows(config: Config, dataset: Dataset) -> np.ndarray:
    return holdouts.rows(key_for(config, "holdout"), config, dataset)


def holdout_size(config: Config) -> int:
    """Return how many images the defender has."""
    return int(_holdout_rows(config, inputs.load(config).dataset).size)
