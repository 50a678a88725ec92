"""Every attack from beginning to end on digits: its backdoor is there, and its trigger alone is not an adversary."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from bdjax import attacks, evaluate, run
from bdjax import config as configs
from bdjax.run import Execution

pytestmark = pytest.mark.slow


class Facts(NamedTuple):
    """What an attack needs on 8×8 digits, and what is true of it there."""

    options: Mapping[str, Any] = MappingProxyType({})
    training: Mapping[str, Any] = MappingProxyType({})
    most_accuracy_lost: float = 0.05
    fooled: float = 0.2  # a network without a backdoor, of images that show the trigger; chance is 0.1


FACTS: dict[str, Facts] = {}


def config(name: str, **options: Any) -> configs.Config:
    facts = FACTS.get(name, Facts())
    return configs.resolve(
        {
            "attack": {"name": name, **facts.options, **options},
            "training": {"epochs": 20, "batch_size": 64, "learning_rate": 0.05, **facts.training},
            "defense": "none",
        }
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def clean(out):
    """A network trained without poison, and its accuracy."""
    plan = run.prepare(config("badnets", poison_rate=0.0))
    victim = run.attack(plan, Execution(out))
    return victim.trained.variables, victim.metrics.clean_accuracy


@pytest.mark.parametrize("name", attacks.names())
def test_the_backdoor_is_planted_and_is_one(name, out, clean):
    facts, (variables, accuracy) = FACTS.get(name, Facts()), clean
    plan = run.prepare(config(name))
    victim = run.attack(plan, Execution(out))
    assert victim.metrics.attack_success_rate >= 0.9
    assert victim.metrics.clean_accuracy >= accuracy - facts.most_accuracy_lost
    without = evaluate.evaluate(plan.model, variables, plan.dataset.test, victim.triggered)
    assert without.attack_success_rate <= facts.fooled
