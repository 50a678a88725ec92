"""The demonstration: which runs it plans, and a small one from beginning to end."""

import itertools

import pytest

from bdjax import cli
from bdjax.checks import InputError
from bdjax.cli import _demo
from bdjax.cli._demo import Story

TINY = Story(
    common={"data": "digits", "model": {"width": 2}, "training": {"epochs": 1}},
    defenses=({"name": "none"}, {"name": "ft", "epochs": 1}),
    seeds=1,
)


@pytest.mark.parametrize("dataset", _demo.STORIES)
def test_the_plan_is_the_grid_of_seeds_attacks_and_defenses(dataset):
    story = _demo.STORIES[dataset]
    runs = _demo.plan(dataset)
    grid = itertools.product(range(story.seeds), _demo.ATTACKS, story.defenses)
    for config, (seed, attack, defense) in zip(runs, grid, strict=True):
        options = {"name": config.defense.name, **config.defense.options}
        assert (config.data.name, config.seed, config.attack.name) == (dataset, seed, attack)
        assert defense.items() <= options.items()
    assert len({config.run_id for config in runs}) == len(runs)


def test_the_runs_of_a_seed_and_an_attack_share_one_victim_and_come_together():
    runs = _demo.plan("digits", seeds=3)
    victims = [victim for victim, _ in itertools.groupby(config.victim_id for config in runs)]
    assert len(victims) == len(set(victims)) == 3 * len(_demo.ATTACKS)


def test_more_seeds_only_add_runs():
    assert (
        _demo.plan("digits", seeds=2)
        == _demo.plan("digits", seeds=3)[: 2 * len(_demo.plan("digits", seeds=1))]
    )


def test_the_data_folder_reaches_every_run():
    assert {config.data.data_dir for config in _demo.plan("cifar10", data_dir="/data")} == {"/data"}


def test_the_controls_are_part_of_every_story():
    for story in _demo.STORIES.values():
        assert [defense["name"] for defense in story.defenses][:2] == ["none", "ft"]


def test_a_data_set_without_a_story_is_refused_with_the_nearest_that_has_one():
    with pytest.raises(
        InputError,
        match=r"^dataset must be one of digits, cifar10; got 'digit'.*did you mean 'digits'",
    ):
        _demo.plan("digit")
    with pytest.raises(InputError, match=r"^seeds must be 1 or more, got 0\.$"):
        _demo.plan(seeds=0)


def test_a_tiny_demo_writes_table_and_figures_and_is_not_repeated(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("bdjax.devices.compilation.enable_cache", lambda: None)
    monkeypatch.setitem(_demo.STORIES, "digits", TINY)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("\nft: 1 epochs, loss ") == len(_demo.ATTACKS)
    for attack in _demo.ATTACKS:
        assert f"{attack}\n" in printed.out
        assert f"{attack} victim: 1 epochs, loss " in printed.err
    assert printed.out.splitlines()[-1].startswith(f"4 runs in {tmp_path} in ")
    figures = list((tmp_path / "figures").glob("*.png"))
    assert figures
    assert all(str(figure) in printed.out and figure.stat().st_size > 10_000 for figure in figures)
    records = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    assert len(records) == 4

    # Whatever loads data or trains would fail
    monkeypatch.setattr("bdjax.runs.plans.prepare", None)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    again = capsys.readouterr()
    assert again.err == "finished already: 4 runs\n"
    assert again.out.splitlines()[:-1] == printed.out.splitlines()[:-1]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")} == records
