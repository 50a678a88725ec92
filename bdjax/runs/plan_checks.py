"""What a plan must satisfy before anything is compiled: its parts against each other, and what would be no attack."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import attacks, poison
from bdjax.checks import LARGEST, InputError, in_section
from bdjax.data import validation
from bdjax.defenses import TRAINING, DefenseStage
from bdjax.devices import sharding
from bdjax.runs import config as configs
from bdjax.runs.config import Config
from bdjax.runs.inputs import Fingerprint
from bdjax.train import batches
from bdjax.train.attacker import Stage
from bdjax.types import Attack, Learner, Model, PoisonedSplit, Spec, Split

_log = logging.getLogger(__name__)


def tell_namesake(config: Config, spec: Spec) -> None:
    """Say which class a number means where the number is the name of another class."""
    for option in ("target_label", *attacks.class_options(config.attack.name)):
        number = config.attack.options[option]
        if not isinstance(number, int) or number >= len(spec.class_names):
            continue
        if remark := attacks.namesake(number, spec):
            named_so = f"is the class named {spec.class_names[number]!r}{remark}."
            _tell_once(f"attack.{option} {number} {named_so}")


@functools.cache  # a sweep prepares many runs of one attack
def _tell_once(text: str) -> None:
    _log.warning("%s", text)


def check_delivered(
    path: str, stage: DefenseStage, config: Config, attack: Attack, data_on: str
) -> None:
    """Refuse a stage that sees the training set where the attacker delivers none, or where it is a stream.

    Raises:
      InputError: what there is instead.
    """
    if stage.sees != TRAINING:
        return
    if config.victim is not None:
        unknown = "and of a network that was trained elsewhere nobody has it"
        raise InputError(f"{path} must see the attacker's training set, {unknown}.")
    if attack.controls_training:
        raise InputError(
            f"{path} must see a training set, and this attack delivers a network: its batches are poisoned one by one."
        )
    if data_on != "device":
        raise InputError(
            f"{path} must see the training set on the device; got data_on = {data_on!r}."
        )


def check_given(config: Config, attack: Attack, model: Model) -> None:
    """Refuse a network that was trained elsewhere, where that is not what is asked for; its file is read.

    Raises:
      InputError: the trigger is one that training makes, or the file cannot be read or is of another network.
    """
    assert config.victim is not None
    if not attack.by_formula:
        what = "must be one whose trigger is a formula, or a file, where victim names a network"
        raise InputError(f"attack {what}; that of {config.attack.name} is made in training.")
    config.victim.load(model)


def check_division(stage: DefenseStage, rows: int, strata: int) -> None:
    """Refuse a holdout that is too small for what a stage keeps of it for validation."""
    if (share := getattr(stage.learner, "aside", None)) is not None:
        validation.validation_size(rows, share, strata)


def check_parametrization(config: Config, model: Model) -> None:
    """Refuse to freeze more convolutions than the network has."""
    if config.training["frozen_convolutions"]:
        variables = jax.eval_shape(model.init, jax.random.key(0))
        with in_section("training", config.training):
            jax.eval_shape(
                functools.partial(
                    configs.build_training(config).learner.parametrization.init, model
                ),
                variables,
            )


def check_rate(attack: Attack, attackers: Split) -> None:
    """Refuse a poison rate for which there are too few images that the attack may poison, or that asks for none.

    Raises:
      InputError: what rate would do.
    """
    rows, wanted, whole = poison.reach(attack, attackers)
    which = "of the target class" if attack.clean_label else "whose label the map changes"
    of_class = attack.clean_label and attack.rate_of == "candidates"
    option = "attack.target_class_rate" if of_class else "attack.poison_rate"
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


def check_label_map(attack: Attack, test: Split) -> None:
    """Refuse a label map that leaves no test image whose label the attacker wants changed."""
    label = jnp.asarray(test.label)
    if not (jnp.asarray(test.valid) & poison.differ(attack.label_map(label), label)).any():
        raise InputError(
            f"attack must want another label for some test image, to be counted; it leaves those of all {len(label)}."
        )


_EFFECTIVE: set[tuple[str, str]] = set()  # triggers and test images that they are known to change


def check_trigger(
    config: Config, fingerprint: Fingerprint, test: Split, triggered: Callable[[], PoisonedSplit]
) -> None:
    """Refuse a trigger that changes no pixel of any test image that counts.

    Args:
      config: of the run.
      fingerprint: of its data.
      test: the clean test images.
      triggered: returns the same with the trigger; it is called once for all runs that share both.

    Raises:
      InputError: it changes none.
    """
    sections = config.to_dict()
    decisive = {section: sections[section] for section in ("seed", "data", "attack", "poison")}
    identity = (config.digest(decisive), json.dumps(fingerprint, sort_keys=True))
    if identity in _EFFECTIVE:
        return
    visible = triggered().visible
    counted = np.asarray(visible.valid)
    changed = np.asarray(visible.input) != np.asarray(test.input)
    if not changed[counted].any():
        raise InputError(
            f"attack must change the images, and the trigger of {config.attack.name} with these options leaves "
            f"each of the {int(counted.sum())} test images that count as it is: choose another pattern, place or "
            "strength."
        )
    _EFFECTIVE.add(identity)


def section(stage: Stage) -> str:
    """Return the section of the config that says how a stage of the attacker is fed."""
    return "attack" if stage.name == "trigger" else "training"


def check_steps(path: str, learner: Learner, split: Split) -> None:
    """Refuse more steps than their number can count."""
    steps = learner.epochs * batches.of_learner(learner, max(split.label.shape[0], 1)).steps
    if steps > LARGEST:
        raise InputError(
            f"{path}.epochs must make at most {LARGEST} steps in all; {learner.epochs} make {steps}."
        )


def check_devices(path: str, learner: Learner, devices: int) -> None:
    """Refuse devices that do not divide a batch."""
    if learner.epochs:
        with in_section(path, ("batch_size",)):
            sharding.batch_mesh(devices, learner.batch_size)
