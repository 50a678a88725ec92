"""What is built for a run and for the points of a sweep, and how often: each part once."""

from __future__ import annotations

import functools
from collections import Counter

import pytest

from bdjax.runs import config as configs
from bdjax.runs import plans, run, schema, sweep
from bdjax.runs.at_hand import AtHand
from bdjax.runs.execution import Execution

NONE_TRAINED = ("--model.width", "2", "--training.epochs", "0", "--defense.epochs", "0")


@pytest.fixture
def built(monkeypatch) -> Counter[str]:
    """Count what is built."""
    counts: Counter[str] = Counter()

    def count(module, name, what):
        function = getattr(module, name)

        @functools.wraps(function)
        def counted(*args, **options):
            counts[what] += 1
            return function(*args, **options)

        monkeypatch.setattr(module, name, counted)

    count(plans, "prepare", "plan")
    count(configs.models, "create", "model")
    count(configs.attacks, "create", "attack")
    count(configs, "training", "training")
    count(configs, "_build_defense", "defense")
    return counts


def test_the_parts_of_a_run_and_its_controls_are_built_once(built, tmp_path):
    """The attack twice: without the data, to check its options before anything is loaded, and with them."""
    run.run_with_controls(configs.resolve(schema.overrides(NONE_TRAINED)), Execution(tmp_path))
    assert built == {"plan": 3, "model": 1, "attack": 2, "training": 1, "defense": 3}


def test_the_parts_of_each_point_of_a_sweep_are_built_once(built, tmp_path):
    """Of 4 points with 2 seeds, each with its controls: 8 rows on 2 victims."""
    wanted = sweep.points(
        schema.overrides(NONE_TRAINED), {"defense.rho": ["1", "2"], "seed": ["0", "1"]}
    )
    assert built == {"attack": 4, "training": 4, "defense": 4}
    rows = sweep.run(wanted, Execution(tmp_path), sweep.Sharing())
    assert len(rows) == 8
    assert built == {"plan": 8, "model": 2, "attack": 4 + 2, "training": 4, "defense": 8}


def test_runs_on_one_victim_share_what_its_attacker_needs(tmp_path):
    at_hand = AtHand(Execution(tmp_path))
    config = configs.resolve(schema.overrides(NONE_TRAINED))
    other = config.with_defense(name="ft", epochs=1)
    one, two = at_hand.plan(config), at_hand.plan(other)
    assert one.attack is two.attack
    assert one.model is two.model
    assert one.stages is two.stages
    assert at_hand.plan(config) is one
    assert two.config == other
    assert two.defense != one.defense
