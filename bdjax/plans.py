"""The plan of a run: every part of it, built from its config and checked against the others; nothing is trained."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from bdjax import attacker, data, defenses, footprint, poison
from bdjax import config as configs
from bdjax.attacker import Stage
from bdjax.checks import LARGEST, InputError, named, one_of
from bdjax.config import Config, DataConfig
from bdjax.data import aside, splits
from bdjax.defenses.chain import Chain, stages
from bdjax.train import loop, residence, sharding, streamed
from bdjax.types import (
    Attack,
    Dataset,
    Defense,
    FittedTrigger,
    LearnedTrigger,
    Model,
    PoisonedSplit,
    Split,
    TriggerState,
)

# One key per purpose, folded from the seed's: a new purpose goes to the end and moves no other draw.
_PURPOSES = (
    *("trigger", "poison", "test", "init", "training", "holdout", "defense"),
    *("selection", "smoothness", "analysis"),  # selection: not drawn any more, but it holds its place
)


class Plan(NamedTuple):
    """Everything that a run needs, built and checked before anything is compiled."""

    config: Config
    dataset: Dataset
    fingerprint: dict[str, str]
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

    Raises:
      InputError: something asked for cannot be.
    """
    one_of(residence.PLACES, data_on=data_on)
    dataset, fingerprint = _load(config.data, data_on == "disk")
    spec = dataset.spec
    model = configs.build_model(config, spec)
    attack = configs.build_attack(config, spec, model)
    training, defense = attacker.stages(attack, configs.build_training(config)), configs.build_defense(config)
    _check_memory(config, model, attack, min(training[-1].learner.batch_size or 1, len(dataset.train.label)) // devices)
    _check_parametrization(config, model)
    rows = _holdout_rows(config, dataset)
    holdout, kept_aside = _divide(config, splits.take(dataset.train, rows), spec.num_classes)
    attackers = splits.exclude(dataset.train, rows) if config.holdout.held_out else dataset.train
    _check_rate(attack, attackers)
    for stage in training:
        _check_batches("attack" if stage.name == "trigger" else "training", stage.learner, attackers, devices)
    for path, stage in zip(configs.stage_paths(config), stages(defense), strict=True):
        _check_batches(path, stage, holdout, devices)
        _check_division(stage, holdout.label.shape[0], spec.num_classes)
    with named("attack", config.attack.options):
        trigger_state = attack.trigger.init(key_for(config, "trigger"), spec)
    if (data_on := residence.choose(data_on, attackers)) != "device":
        fresh = jax.eval_shape(model.init, jax.random.key(0))
        for stage in training:
            streamed.check(stage.learner, model, attacker.start(stage, fresh, fresh, trigger_state), attackers)
    defense = _with_trigger(defense, config, attack, trigger_state)
    return Plan(
        config=config,
        dataset=dataset,
        fingerprint=fingerprint,
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


def arm(plan: Plan, state: TriggerState) -> Plan:
    """Return the plan with the trigger as the attacker has made it; a defender who knows the trigger knows this one."""
    if learns_nothing(plan):
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


def clean_training(plan: Plan) -> Split:
    """Return the attacker's clean images, on the device or as a stream."""
    return plan.attackers if plan.data_on == "device" else poison.clean_stream(plan.attackers)


def poison_training(plan: Plan) -> PoisonedSplit:
    """Return the poisoned training split; the same bits for the same seed and trigger, so it is never stored."""
    key, rounding = key_for(plan.config, "poison"), plan.config.poison.rounding
    if plan.data_on == "device":
        return _poison_train(key, plan.attack, plan.trigger_state, plan.attackers, rounding)
    return poison.poison_stream(key, plan.attack, plan.trigger_state, plan.attackers, rounding=rounding)


def triggered_test(plan: Plan) -> PoisonedSplit:
    """Return the test split with triggers; the same bits for the same seed and attack."""
    key, rounding = key_for(plan.config, "test"), plan.config.poison.rounding
    return _poison_test(key, plan.attack, plan.trigger_state, plan.dataset.test, rounding)


@jax.jit
def stamped(stamp: poison.Stamp, key: Any, image: Any) -> Any:
    """Return a batch of images with the trigger."""
    return stamp(key, image)


@functools.partial(jax.jit, static_argnames="rounding")
def _poison_train(key: Any, attack: Attack, state: TriggerState, split: Split, rounding: Any) -> PoisonedSplit:
    return poison.poison_train(key, attack, state, split, rounding=rounding)


@functools.partial(jax.jit, static_argnames="rounding")
def _poison_test(key: Any, attack: Attack, state: TriggerState, split: Split, rounding: Any) -> PoisonedSplit:
    return poison.poison_test(key, attack, state, split, rounding=rounding)


def _with_trigger(defense: Defense | Chain, config: Config, attack: Attack, state: TriggerState) -> Defense | Chain:
    return defenses.with_trigger(defense, poison.Stamp(attack.trigger_at_test, state, config.poison.rounding))


def learns_nothing(plan: Plan) -> bool:
    """Return whether the trigger is made by formula alone, so that its state is known before anything is trained."""
    return not isinstance(plan.attack.trigger, FittedTrigger | LearnedTrigger)


@functools.lru_cache(maxsize=2)
def _load(wanted: DataConfig, on_disk: bool) -> tuple[Dataset, dict[str, str]]:
    """Load data with the config's changes; the runs of one process share the arrays."""
    dataset = data.load(wanted.name, data_dir=wanted.data_dir, image_size=wanted.image_size, on_disk=on_disk)
    changes = {name: getattr(wanted, name) for name in ("crop_padding", "flip") if getattr(wanted, name) is not None}
    spec = dataclasses.replace(dataset.spec, **changes)
    if changes.get("crop_padding", 0) > (side := max(spec.shape[:2])):
        raise InputError(f"data.crop_padding must be at most {side}, the images' side; got {wanted.crop_padding}.")
    if wanted.train_count is not None:
        available = dataset.train.label.shape[0]
        if wanted.train_count > available:
            raise InputError(f"data.train_count must be at most {available}; got {wanted.train_count}.")
        rows = splits.subset(jax.random.key(0), dataset.train, wanted.train_count, num_classes=spec.num_classes)
        dataset = dataset._replace(train=splits.take(dataset.train, rows))
    return dataset._replace(spec=spec), data.fingerprint(dataset)


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
        )


def holdout_size(config: Config) -> int:
    """Return how many images the defender has."""
    return int(_holdout_rows(config, _load(config.data, False)[0]).size)


def _divide(config: Config, holdout: Split, num_classes: int) -> tuple[Split, Split | None]:
    """Return what the defense is given, and what is kept aside of it where its strength is to be chosen."""
    if config.selection is None:
        return holdout, None
    return jax.tree.map(np.asarray, aside.keep_aside(holdout, holdout.label, config.selection.aside, num_classes))


def _check_division(stage: Defense, rows: int, num_classes: int) -> None:
    """Refuse a holdout that is too small for what a stage keeps aside of it."""
    if (share := getattr(stage, "aside", None)) is not None:
        aside.count(rows, share, num_classes)


def _check_memory(config: Config, model: Model, attack: Attack, rows: int) -> None:
    """Refuse a network and a trigger that the device could not hold."""
    memory = residence.device_bytes()
    footprint.check_network(model, max(rows, 1), memory)
    with named("attack", config.attack.options):
        footprint.check_trigger(attack.trigger, model.spec, memory)


def _check_parametrization(config: Config, model: Model) -> None:
    """Refuse to freeze more convolutions than the network has."""
    if config.training["frozen_convolutions"]:
        variables = jax.eval_shape(model.init, jax.random.key(0))
        with named("training", config.training):
            jax.eval_shape(functools.partial(configs.build_training(config).parametrization.init, model), variables)


def _check_rate(attack: Attack, attackers: Split) -> None:
    """Refuse a poison rate for which there are too few images that the attack may poison."""
    rows, wanted, whole = poison.reach(attack, attackers)
    if wanted > rows:
        which = "of the target class" if attack.clean_label else "whose label the map changes"
        raise InputError(
            f"attack.poison_rate must be at most {math.floor(rows / whole * 1e4) / 1e4}: those are the {rows} images "
            f"{which} among {whole}; got {float(attack.poison_rate)}."
        )


def _check_batches(path: str, learner: Defense, split: Split, devices: int) -> None:
    loop.check_batch(learner, split, f"{path}.batch_size")
    steps = learner.epochs * -(-split.label.shape[0] // (learner.batch_size or split.label.shape[0] or 1))
    if steps > LARGEST:
        raise InputError(f"{path}.epochs must make at most {LARGEST} steps in all; {learner.epochs} make {steps}.")
    if learner.epochs:
        with named(path, ("batch_size",)):
            sharding.batch_mesh(devices, learner.batch_size)
