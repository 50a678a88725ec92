"""The plan of a run: every part of it, built from its config and checked against the others; nothing is trained."""

from __future__ import annotations

import functools
import json
import logging
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from bdjax import attacks, defenses, poison
from bdjax.checks import LARGEST, InputError, named, one_of
from bdjax.data import aside, splits
from bdjax.defenses.chain import Chain, stages
from bdjax.devices import compilation, footprint, placement, sharding
from bdjax.runs import config as configs
from bdjax.runs import inputs
from bdjax.runs.config import Config
from bdjax.runs.inputs import Fingerprint
from bdjax.train import attacker, batches, streamed
from bdjax.train.attacker import Stage
from bdjax.types import (
    Attack,
    Dataset,
    Defense,
    FittedTrigger,
    LearnedTrigger,
    Model,
    PoisonedSplit,
    Spec,
    Split,
    TriggerState,
)

_log = logging.getLogger(__name__)

# One key per purpose, folded from the seed's: a new purpose goes to the end and moves no other draw.
_PURPOSES = (
    *("trigger", "poison", "test", "init", "training", "holdout", "defense"),
    *("selection", "smoothness", "analysis"),  # selection: not drawn any more, but it holds its place
)


class AttackPlan(NamedTuple):
    """The data and the attack of a run: all that a trigger needs which is made by formula."""

    config: Config
    dataset: Dataset
    fingerprint: Fingerprint
    stamp: str  # of the files that this is the fingerprint of
    attack: Attack
    trigger_state: TriggerState  # as it is before anything is trained, or as it was made since
    model: Model


class Plan(NamedTuple):
    """Everything that a run needs, built and checked before anything is compiled."""

    config: Config
    dataset: Dataset
    fingerprint: Fingerprint
    stamp: str  # of the files that this is the fingerprint of
    attack: Attack
    trigger_state: TriggerState  # as it is before anything is trained, or as `arm` was given it
    model: Model
    stages: list[Stage]  # of the attacker's training; the last is the victim's
    defense: Defense | Chain
    attackers: Split  # clean rows that the attacker poisons and trains on
    holdout: Split  # what the defense is given
    aside: Split | None  # the rest of the defender's images, where a strength is chosen by them
    data_on: str  # where those of the attacker are


def prepare(config: Config, devices: int = 1, data_on: str = "auto") -> Plan:
    """Load the data, build every part and check them against each other, the devices and where the data are to be.

    Nothing is compiled but what puts a trigger that is a formula on the test images, which the run needs as well.

    Raises:
      InputError: something asked for cannot be.
    """
    one_of(placement.PLACES, data_on=data_on)
    _, dataset, fingerprint, stamp, attack, trigger_state, model = prepare_attack(config, on_disk=data_on == "disk")
    spec = dataset.spec
    training, defense = attacker.stages(attack, *configs.build_training(config)), configs.build_defense(config)
    rows = min(training[-1].learner.batch_size or 1, len(dataset.train.label)) // devices
    footprint.check_network(model, max(rows, 1), placement.device_bytes())
    _check_parametrization(config, model)
    rows = _holdout_rows(config, dataset)
    holdout, kept_aside = _divide(config, splits.take(dataset.train, rows), spec.num_classes)
    attackers = attackers_images(config, dataset)
    check_rate(attack, attackers)
    _check_label_map(attack, dataset.test)
    for stage in training:
        batches.check(stage.learner, attackers, "what the holdout leaves the attacker")
        _check_steps(_section(stage), stage.learner, attackers)
        _check_devices(_section(stage), stage.learner, devices)
    for path, stage in zip(configs.stage_paths(config), stages(defense), strict=True):
        batches.check(stage, holdout, "the holdout")
        _check_steps(path, stage, holdout)
        _check_devices(path, stage, devices)
        _check_division(stage, holdout.label.shape[0], spec.num_classes)
    if (data_on := placement.choose(data_on, attackers)) != "device":
        fresh = jax.eval_shape(model.init, jax.random.key(0))
        for stage in training:
            streamed.check(stage.learner, model, attacker.start(stage, fresh, fresh, trigger_state), attackers)
    defense = _with_trigger(defense, config, attack, trigger_state)
    plan = Plan(
        config=config,
        dataset=dataset,
        fingerprint=fingerprint,
        stamp=stamp,
        attack=attack,
        trigger_state=trigger_state,
        model=model,
        stages=training,
        defense=defense,
        attackers=attackers,
        holdout=holdout,
        aside=kept_aside,
        data_on=data_on,
    )
    check_trigger(plan)
    return plan


def prepare_attack(config: Config, *, on_disk: bool = False) -> AttackPlan:
    """Load the data and build the attack, without a question about training or defense.

    Raises:
      InputError: the data, the network, the attack or a file that it names cannot be.
    """
    dataset, fingerprint, stamp = inputs.load(config, on_disk)
    spec = dataset.spec
    model = configs.build_model(config, spec)
    memory = placement.device_bytes()
    footprint.check_network(model, 1, memory)
    attack = configs.build_attack(config, spec, model)
    with named("attack", config.attack.options):
        footprint.check_trigger(attack.trigger, spec, memory)
        trigger_state = attack.trigger.init(key_for(config, "trigger"), spec)
    _tell_namesake(config, spec)
    return AttackPlan(config, dataset, fingerprint, stamp, attack, trigger_state, model)


def attackers_images(config: Config, dataset: Dataset) -> Split:
    """Return the clean images that the attacker poisons: those for training, without a held-out holdout."""
    if not config.holdout.held_out:
        return dataset.train
    return splits.exclude(dataset.train, _holdout_rows(config, dataset))


def tell_of_batches(plan: Plan) -> None:
    """Warn of every batch size that there are too few images for; each step then takes all of them."""
    for stage in plan.stages:
        batches.tell(stage.learner, plan.attackers, f"{_section(stage)}.batch_size")
    for path, stage in zip(configs.stage_paths(plan.config), stages(plan.defense), strict=True):
        batches.tell(stage, plan.holdout, f"{path}.batch_size")


def arm(plan: Plan, state: TriggerState) -> Plan:
    """Return the plan with the trigger as the attacker has made it; a defender who knows the trigger knows this one."""
    if learns_nothing(plan.attack):
        return plan
    defense = _with_trigger(configs.build_defense(plan.config), plan.config, plan.attack, state)
    return plan._replace(trigger_state=state, defense=defense)


def with_strength(plan: Plan, value: float) -> Plan:
    """Return the plan with this value for the strength that is ``auto``."""
    defense = configs.build_defense(plan.config, value)
    return plan._replace(defense=_with_trigger(defense, plan.config, plan.attack, plan.trigger_state))


def key_for(config: Config, purpose: str) -> Key[Array, ""]:
    """Return the key of one purpose; it depends on the seed and on nothing else."""
    return jax.random.fold_in(jax.random.key(config.seed), _PURPOSES.index(purpose))


def target_class(plan: Plan | AttackPlan) -> str | None:
    """Return the name of the class that the attacker wants to see, None where that differs from class to class."""
    return attacks.target_class(plan.attack.label_map, plan.dataset.spec)


def clean_training(plan: Plan) -> Split:
    """Return the attacker's clean images, on the device or as a stream."""
    return plan.attackers if plan.data_on == "device" else poison.clean_stream(plan.attackers)


def poison_training(plan: Plan) -> PoisonedSplit:
    """Return the poisoned training split; the same bits for the same seed and trigger, so it is never stored."""
    return poisoned(plan, plan.attackers, plan.data_on)


def poisoned(plan: Plan | AttackPlan, attackers: Split, data_on: str) -> PoisonedSplit:
    """Return the attacker's images with the trigger in some of them, on the device or as a stream."""
    key, rounding = key_for(plan.config, "poison"), plan.config.poison.rounding
    if data_on == "device":
        return _poison_train(key, plan.attack, plan.trigger_state, attackers, rounding)
    return poison.poison_stream(key, plan.attack, plan.trigger_state, attackers, rounding=rounding)


def triggered_test(plan: Plan | AttackPlan) -> PoisonedSplit:
    """Return the test split with triggers; the same bits for the same seed and attack."""
    key, rounding = key_for(plan.config, "test"), plan.config.poison.rounding
    return _poison_test(key, plan.attack, plan.trigger_state, plan.dataset.test, rounding)


@functools.partial(compilation.jit, tuned=False)
def stamped(stamp: poison.Stamp, key: Any, image: Any) -> Any:
    """Return a batch of images with the trigger."""
    return stamp(key, image)


@functools.partial(compilation.jit, tuned=False, static_argnames="rounding")
def _poison_train(key: Any, attack: Attack, state: TriggerState, split: Split, rounding: Any) -> PoisonedSplit:
    return poison.poison_train(key, attack, state, split, rounding=rounding)


@functools.partial(compilation.jit, tuned=False, static_argnames="rounding")
def _poison_test(key: Any, attack: Attack, state: TriggerState, split: Split, rounding: Any) -> PoisonedSplit:
    return poison.poison_test(key, attack, state, split, rounding=rounding)


def _with_trigger(defense: Defense | Chain, config: Config, attack: Attack, state: TriggerState) -> Defense | Chain:
    return defenses.with_trigger(defense, poison.Stamp(attack.trigger_at_test, state, config.poison.rounding))


def learns_nothing(attack: Attack) -> bool:
    """Return whether the trigger is made by formula alone, so that its state is known before anything is trained."""
    return not isinstance(attack.trigger, FittedTrigger | LearnedTrigger)


def _tell_namesake(config: Config, spec: Spec) -> None:
    """Say which class a number means where the number is the name of another class."""
    for option in ("target_label", *attacks.class_options(config.attack.name)):
        number = config.attack.options[option]
        if isinstance(number, int) and number < len(spec.class_names) and (remark := attacks.namesake(number, spec)):
            _tell_once(f"attack.{option} {number} is the class named {spec.class_names[number]!r}{remark}.")


@functools.cache  # a sweep prepares its runs again and again
def _tell_once(text: str) -> None:
    _log.warning("%s", text)


def _holdout_rows(config: Config, dataset: Dataset) -> np.ndarray:
    wanted = config.holdout
    with named("holdout", ("share", "per_class")):
        return splits.holdout(
            key_for(config, "holdout"),
            dataset.train,
            share=wanted.share,
            per_class=wanted.per_class,
            balanced=wanted.balanced,
            num_classes=dataset.spec.num_classes,
            class_names=dataset.spec.class_names,
        )


def holdout_size(config: Config) -> int:
    """Return how many images the defender has."""
    return int(_holdout_rows(config, inputs.load(config).dataset).size)


def _divide(config: Config, holdout: Split, num_classes: int) -> tuple[Split, Split | None]:
    """Return what the defense is given, and what is kept aside of it where its strength is to be chosen."""
    if config.selection is None:
        return holdout, None
    return jax.tree.map(np.asarray, aside.keep_aside(holdout, holdout.label, config.selection.aside, num_classes))


def _check_division(stage: Defense, rows: int, num_classes: int) -> None:
    """Refuse a holdout that is too small for what a stage keeps aside of it."""
    if (share := getattr(stage, "aside", None)) is not None:
        aside.count(rows, share, num_classes)


def _check_parametrization(config: Config, model: Model) -> None:
    """Refuse to freeze more convolutions than the network has."""
    if config.training["frozen_convolutions"]:
        variables = jax.eval_shape(model.init, jax.random.key(0))
        parametrization = configs.build_training(config).learner.parametrization
        with named("training", config.training):
            jax.eval_shape(functools.partial(parametrization.init, model), variables)


def check_rate(attack: Attack, attackers: Split) -> None:
    """Refuse a poison rate for which there are too few images that the attack may poison, or that asks for none.

    Raises:
      InputError: what rate would do.
    """
    rows, wanted, whole = poison.reach(attack, attackers)
    which = "of the target class" if attack.clean_label else "whose label the map changes"
    option = "attack.target_class_rate" if attack.rate_of == "candidates" else "attack.poison_rate"
    rate = float(attack.poison_rate)
    if wanted > rows:
        raise InputError(
            f"{option} must be at most {math.floor(rows / whole * 1e4) / 1e4}: those are the {rows} images "
            f"{which} among {whole}; got {rate}."
        )
    if rate > 0 and not rows:
        raise InputError(f"{option} must be 0, as there is no training image {which}; got {rate}.")
    if rate > 0 and not wanted:
        raise InputError(
            f"{option} must be 0, for no attack, or at least {_least_rate(whole):.6g}, for one of {whole} images; "
            f"got {rate}, which rounds to none."
        )


def _least_rate(whole: int) -> float:
    """Return the least rate, to two digits, that asks for one of so many images."""
    step = 10.0 ** (math.floor(math.log10(0.5 / whole)) - 1)
    number = math.floor(0.5 / whole / step)
    while not poison.rounded(number * step, whole):
        number += 1
    return number * step


def _check_label_map(attack: Attack, test: Split) -> None:
    """Refuse a label map that leaves no test image whose label the attacker wants changed."""
    label = jnp.asarray(test.label)
    if not (jnp.asarray(test.valid) & (attack.label_map(label) != label)).any():
        raise InputError(
            f"attack must want another label for some test image, to be counted; it leaves those of all {len(label)}."
        )


_EFFECTIVE: set[tuple[str, str]] = set()  # triggers and test images that they are known to change


def check_trigger(plan: Plan | AttackPlan) -> None:
    """Refuse a trigger that changes no pixel of any test image that counts, where it is known before training.

    Raises:
      InputError: it changes none.
    """
    if not learns_nothing(plan.attack):
        return
    sections = plan.config.to_dict()
    decisive = {section: sections[section] for section in ("seed", "data", "attack", "poison")}
    identity = (plan.config.digest(decisive), json.dumps(plan.fingerprint, sort_keys=True))
    if identity in _EFFECTIVE:
        return  # the control rows of a run and the points of a sweep share it
    visible = triggered_test(plan).visible
    counted = np.asarray(visible.valid)
    changed = np.asarray(visible.input) != np.asarray(plan.dataset.test.input)
    if not changed[counted].any():
        raise InputError(
            f"attack must change the images, and the trigger of {plan.config.attack.name} with these options leaves "
            f"each of the {int(counted.sum())} test images that count as it is: choose another pattern, place or "
            "strength."
        )
    _EFFECTIVE.add(identity)


def _section(stage: Stage) -> str:
    """Return the section of the config that says how a stage of the attacker is fed."""
    return "attack" if stage.name == "trigger" else "training"


def _check_steps(path: str, learner: Defense, split: Split) -> None:
    """Refuse more steps than their number can count."""
    steps = learner.epochs * batches.of_learner(learner, max(split.label.shape[0], 1)).steps
    if steps > LARGEST:
        raise InputError(f"{path}.epochs must make at most {LARGEST} steps in all; {learner.epochs} make {steps}.")


def _check_devices(path: str, learner: Defense, devices: int) -> None:
    if learner.epochs:
        with named(path, ("batch_size",)):
            sharding.batch_mesh(devices, learner.batch_size)
