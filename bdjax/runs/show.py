"""What triggers look like: an attack's trigger on a few test images, however it is made."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bdjax import poison, stealth
from bdjax.runs import plans
from bdjax.runs.at_hand import AtHand
from bdjax.runs.config import Config
from bdjax.runs.execution import Execution
from bdjax.runs.plans import AttackPlan
from bdjax.runs.samples import sample_rows
from bdjax.stealth import Stealth

IMAGES = 8


class Shown(NamedTuple):
    """Test images with and without the trigger at test time, uint8 [k, h, w, c], and how visible it is on them."""

    attack: str
    clean: np.ndarray
    triggered: np.ndarray
    stealth: Stealth
    target: str | None = (
        None  # the class that the attacker wants, unless it differs from class to class
    )


def show(config: Config, execution: Execution, images: int = IMAGES) -> Shown:
    """Return what the trigger does to test images, one of each class first, whatever the attack aims at.

    Raises:
      InputError, Stopped, Diverged: as for `attack_of`.
    """
    with execution.computing(config):
        return _show(attack_of(config, execution), images)


def _show(plan: AttackPlan, images: int) -> Shown:
    config = plan.config
    test = plan.dataset.test
    spec = plan.inputs.spec
    strata = np.asarray(spec.task.stratum(test.label))
    rows = sample_rows(strata, np.asarray(test.valid), images)
    clean = np.asarray(test.input)[rows]
    stamp = poison.trigger_source(
        plan.attack, plan.trigger_state, rounding=config.poison.rounding, at_test=True
    )
    triggered = np.asarray(plans.stamped(stamp, plans.key_for(config, "test"), jnp.asarray(clean)))
    clean, triggered = (np.asarray(spec.modality.picture(some)) for some in (clean, triggered))
    seen = stealth.measure(clean, triggered, np.ones(len(rows), bool))
    return Shown(config.attack.name, clean, triggered, seen, plans.target_class(plan))


def attack_of(config: Config, execution: Execution) -> AttackPlan:
    """Return the data and the attack of a config, its trigger as the attacker has made it.

    A trigger that is learned is restored from the victim of that config, which is trained first if there is none. One
    that is made by formula asks nothing of the training, the holdout or the defense.

    Raises:
      InputError, Stopped, Diverged: as for `bdjax.runs.run.run`.
    """
    planned = plans.prepare_attack(config, on_disk=execution.data_on == "disk")
    if planned.attack.by_formula:
        return planned
    at_hand = AtHand(execution)
    state = at_hand.trigger_state(at_hand.plan(config))
    return dataclasses.replace(planned, trigger_state=state)
