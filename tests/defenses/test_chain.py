"""Chains in configs: what their stages become, and that a config file says the same as the command line."""

from __future__ import annotations

import pytest

from bdjax import defenses
from bdjax.checks import InputError
from bdjax.defenses.chain import chain
from bdjax.defenses.fine_pruning import FeaturePruning
from bdjax.parametrizations import Identity, KeptZeros
from bdjax.runs import config as configs
from bdjax.runs import plans, schema

WORDS = (
    *("--defense", "chain", "--defense.first", "chain", "--defense.first.first", "none"),
    *("--defense.first.second", "grad_prune"),
    *("--defense.second.name", "fine_pruning", "--defense.second.max_share", "0.5"),
)
FILE = """
defense:
  name: chain
  first: {name: chain, first: none, second: {name: grad_prune}}
  second: {name: fine_pruning, max_share: 0.5}
"""


def test_a_nested_chain_of_a_file_is_that_of_the_command_line(tmp_path):
    (tmp_path / "chain.yaml").write_text(FILE)
    config = configs.resolve(schema.read(tmp_path / "chain.yaml"))
    assert config == configs.resolve(schema.overrides(WORDS))
    made = configs.build_defense(config).stages
    assert [type(stage.learner).__name__ for stage in made] == [
        "Untouched",
        "GradPrune",
        "FeaturePruning",
        "Supervised",
    ]
    assert made[2].learner == FeaturePruning(max_share=0.5)
    assert configs.stage_paths(config) == [
        "defense.first.first",
        "defense.first.second",
        *["defense.second"] * 2,
    ]
    assert len(plans.prepare(config).defense_stages) == 4


def test_a_mistake_in_one_of_several_stages_is_named_by_its_path():
    with pytest.raises(
        InputError, match=r"^defense\.second\.max_share must lie between 0 and 1, got 2\.0"
    ):
        configs.resolve(schema.overrides([*WORDS[:-1], "2"]))
    with pytest.raises(
        InputError, match=r"^defense\.second\.batch_size must be a multiple of devices = 8; got 201"
    ):
        plans.prepare(
            configs.resolve(schema.overrides([*WORDS, "--defense.second.batch_size", "201"])),
            devices=8,
        )


@pytest.mark.parametrize("name", [name for name in defenses.names() if name != "chain"])
def test_zeros_are_kept_where_all_weights_are_tuned(name):
    second = defenses.create(name)
    kept, free = (
        chain(defenses.create("none"), second, keep).stages[-1].learner for keep in (True, False)
    )
    was = getattr(second.stages[-1].learner, "parametrization", None)
    assert free == second.stages[-1].learner
    assert getattr(kept, "parametrization", None) == (KeptZeros() if was == Identity() else was)


def test_keeping_zeros_can_be_switched_off_in_a_config():
    config = configs.resolve(
        {"defense": {"name": "chain", "first": "ft", "second": "ft", "keep_pruned": False}}
    )
    assert [stage.learner.parametrization for stage in configs.build_defense(config).stages] == [
        Identity()
    ] * 2
