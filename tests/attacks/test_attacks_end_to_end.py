"""Every attack from beginning to end: its backdoor is there, and its trigger alone is not an adversary.

On the 8×8 digits; what they are too small for, on a slice of CIFAR-10.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from bdjax import attacks, evaluate
from bdjax.runs import config as configs
from bdjax.runs import schema
from bdjax.runs.at_hand import AtHand
from bdjax.runs.execution import Execution

pytestmark = pytest.mark.slow


class Facts(NamedTuple):
    """What an attack needs on so few and small images, and what is true of it there."""

    options: Mapping[str, Any] = MappingProxyType({})
    epochs: int = 20
    data: str = "digits"
    least_success: float = 0.9
    most_accuracy_lost: float = 0.05
    fooled: float = (
        0.2  # a network without a backdoor, of images that show the trigger; chance is 0.1
    )


_SSBA = {
    "width": 8,
    "bits": 8,
    "epochs": 80,
    "learning_rate": 0.003,
    "delay": 50,
    "ramp": 300,
    "image_weight": 20.0,
}
_INPUT_AWARE = {"width": 8, "poison_rate": 0.3, "cover_rate": 0.05, "learning_epochs": 20}
FACTS: dict[str, Facts] = {
    "bpp": Facts({"levels": 2}),  # the digits have 17 levels only: 8 change them too little
    # Of 45 images; SFT's weakest attack as well
    "cba": Facts({"poison_rate": 0.08}, epochs=60, least_success=0.8),
    # The paper takes many times the steps; in so few, rounding alone moved it from 0.82 to 0.95.
    "input_aware": Facts(_INPUT_AWARE, epochs=60, least_success=0.6),
    "lc": Facts({"epsilon": 0.3, "step_size": 0.03}),  # ± 8 / 255 do not hide a digit
    "lira": Facts({"learning_rate": 0.002}),
    # Six waves do not fit into 8 pixels. In so few steps rounding alone moved it from above 0.9 to 0.89.
    "sig": Facts(epochs=15, data="cifar10", least_success=0.8),
    "ssba": Facts(_SSBA),
    "wanet": Facts(epochs=60),
}
CIFAR = {
    "data": {"name": "cifar10", "train_count": 2000, "crop_padding": 0, "flip": False},
    "model": {"name": "preact_resnet18", "width": 8},
    "training": {"batch_size": 125, "learning_rate": 0.1},
}
DIGITS = {"training": {"batch_size": 64, "learning_rate": 0.05}}


def config(name: str, **options: Any) -> configs.Config:
    facts = FACTS.get(name, Facts())
    own = {
        "attack": {"name": name, **facts.options, **options},
        "training": {"epochs": facts.epochs},
    }
    return configs.resolve(
        schema.merge(CIFAR if facts.data == "cifar10" else DIGITS, {**own, "defense": "none"})
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("name", attacks.names())
def test_the_backdoor_is_planted_and_is_one(name, out):
    facts, at_hand = FACTS.get(name, Facts()), AtHand(Execution(out))
    if facts.data == "cifar10" and "BDJAX_DATA_DIR" not in os.environ:
        pytest.skip("needs CIFAR-10: set BDJAX_DATA_DIR")
    like = name if facts.data == "cifar10" else "badnets"
    # Restored but for the first time
    clean = at_hand.victim(at_hand.plan(config(like, poison_rate=0.0)))
    plan = at_hand.plan(config(name))
    victim = at_hand.victim(plan)
    assert victim.metrics.attack_success_rate >= facts.least_success
    assert victim.metrics.clean_accuracy >= clean.metrics.clean_accuracy - facts.most_accuracy_lost
    without = evaluate.evaluate(
        plan.model, clean.trained.variables, plan.dataset.test, victim.triggered
    )
    assert without.attack_success_rate <= facts.fooled
