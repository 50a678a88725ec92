"""The experiment on SFT, fast SFT and NFT: each cell changes what it says, rows are kept, batch norm's three modes."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from quick import quick_jit

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import _when_settings
import _when_variants
import when_does_it_work
from accelerator import when
from accelerator.session import Settings

from bdjax.report.labels import flatten
from bdjax.runs import plans

SECTIONS = {
    "victim": ("training", "holdout"),
    "network": ("model",),
    "images": ("data", "holdout"),
    "holdout": ("holdout",),
    "poison rate": ("attack",),
}


@pytest.fixture
def without_data(monkeypatch):
    """Cells are resolved without images: the holdout has 500."""
    monkeypatch.setattr(plans, "holdout_size", lambda config: 500)


@pytest.mark.parametrize("name", _when_settings.SIZES)
def test_a_cell_differs_from_the_base_in_what_it_says(without_data, name):
    size = _when_settings.SIZES[name]

    def flat(level, defense):
        return flatten(_when_settings.resolved(size, level, "badnets", defense, 0).to_dict())

    base, *others = size.levels
    assert len({level.title for level in size.levels}) == len(size.levels)
    for level in others:
        around = (
            base._replace(changes=size.levels[3].changes)
            if level.factor.startswith("both, ")
            else base
        )
        for defense in level.defenses:
            mine, usual = flat(level, defense), flat(around, defense)
            changed = {key for key in mine if mine[key] != usual[key]}
            beside = level.statistics != "train" or level.weight_decay or level.norms or level.knows
            assert changed or beside
            sections = (
                *SECTIONS.get(level.factor.removeprefix("both, "), ("defense",)),
                *(("training", "holdout") * (name == "debug")),
            )
            assert all(key.split(".")[0] in sections for key in changed), (level.title, defense)


def test_the_loss_as_a_sum_makes_the_penalties_small(without_data):
    size = _when_settings.SIZES["full"]
    (level,) = (level for level in size.levels if level.title == "loss: sum")
    options = _when_settings.resolved(size, level, "badnets", "sft", 0).defense.options
    assert options["eta_f"] == pytest.approx(0.001 / 500)
    assert options["eta_r"] == pytest.approx(5 / 500)
    assert options["batch_size"] == 125


def test_a_second_call_goes_on_with_what_is_missing(tmp_path, monkeypatch, capsys):
    """A cell that is there is not done again, one that diverged is counted, and a seed more is a cell more."""
    after = {"clean_accuracy": 0.5, "attack_success_rate": 0.25, "robust_accuracy": 0.5}
    done = []

    def carry_out(config, level, execution):
        done.append((level.title, config.defense.name, config.seed))
        outcome = {"diverged": True} if config.defense.name == "ft" else {"after": after}
        return {"before": {**after, "attack_success_rate": 1.0}, **outcome}

    monkeypatch.setattr(when_does_it_work, "carry_out", carry_out)
    words = ["--debug", "--factors", "base", "--out", str(tmp_path)]
    when_does_it_work.main(words)
    when_does_it_work.main(words)
    assert done == [("base", "ft", 0), ("base", "fast_sft", 0)]
    when_does_it_work.main([*words, "--seeds", "0", "1"])
    assert done[2:] == [("base", "ft", 1), ("base", "fast_sft", 1)]
    assert (
        "| badnets | base | 100.0 ± 0.0 (50.0) | 2 diverged | 25.0 ± 0.0 (50.0) | 2 |"
        in capsys.readouterr().out
    )
    assert (tmp_path / "debug.md").read_text(encoding="utf-8").count("\n| badnets") == 1


def test_which_statistics_normalize():
    model = networks.backwards()
    variables = networks.random_variables(model)
    image = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 6, 6, 2)), jnp.float32)

    def passed(name):
        return quick_jit(
            lambda: _when_variants.MODELS[name](model).apply(variables, image, train=True)
        )()

    logits, stats = passed("eval")
    np.testing.assert_allclose(
        logits, quick_jit(lambda: model.apply(variables, image)[0])(), rtol=1e-5
    )
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    logits, stats = passed("batch")
    plain, moved = passed("train")
    np.testing.assert_allclose(logits, plain, rtol=1e-5)
    # A hundred moves towards one batch are all of the way.
    again = quick_jit(
        lambda stats: model.apply({**variables, "batch_stats": stats}, image, train=True)[1]
    )
    for _ in range(100):
        moved = again(moved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), stats, moved)


def test_a_cell_is_carried_out(tmp_path):
    """One real run, with what `carry_out` can change: statistics, triggered images, the decay of masks."""
    level = _when_settings.DEBUG.levels[1]._replace(weight_decay=5e-4, knows=True)
    config = _when_settings.resolved(_when_settings.DEBUG, level, "badnets", "nft", 0)
    row = when_does_it_work.carry_out(config, level, when_does_it_work.run.Execution(tmp_path))
    assert set(row) == {"before", "after", "loss", "seconds"}
    assert 0 <= row["after"]["attack_success_rate"] <= 1


def test_batch_norms_are_tuned_beside_the_singular_values():
    model = networks.backwards()
    variables = networks.random_variables(model)
    space = _when_variants.SingularValuesAndRest()
    tuned, frozen = quick_jit(lambda: space.init(model, variables))()
    before = variables["params"]
    changed = jax.tree.map(lambda leaf: leaf + 0.25, tuned)
    for params in (space.apply(changed, frozen), space.factored(changed, frozen)):
        np.testing.assert_allclose(params["w"]["scale"], before["w"]["scale"] + 0.25, rtol=1e-6)
        np.testing.assert_allclose(params["a"]["bias"], before["a"]["bias"] + 0.25, rtol=1e-6)
    kernel = space.apply(changed, frozen)["a"]["kernel"]
    svd = [
        np.linalg.svd(np.asarray(matrix), compute_uv=False)
        for matrix in (kernel, before["a"]["kernel"])
    ]
    np.testing.assert_allclose(svd[0], svd[1] + 0.25, rtol=1e-4)
    unchanged = space.apply(tuned, frozen)
    jax.tree.map(np.testing.assert_array_equal, unchanged, before)


def test_the_parts_for_an_accelerator_are_cells_of_one_victim(without_data, tmp_path):
    """All of a victim's parts come after its pieces, and each defense has its cells."""
    settings = Settings(tmp_path, tmp_path)
    plan = when._plan(settings)
    assert [level.title for level in plan.cells] == list(when.CELLS)
    found = {
        _when_settings.resolved(plan.size, level, "badnets", defense, 0).victim_id
        for level in plan.cells
        for defense in level.defenses
    }
    assert len(found) == 1
    parts = when.parts(settings)
    names = [part.name for part in parts]
    assert len(set(names)) == len(names) == 2 * (when.PIECES + 5)
    for part in parts:
        assert all(names.index(needed) < names.index(part.name) for needed in part.needs)
        assert part.seconds < 9 * 60
