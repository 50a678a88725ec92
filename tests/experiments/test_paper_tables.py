"""The scripts of the papers' tables: each table has one, every config resolves, a mistake is one line."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import pytest

from bdjax.checks import InputError
from bdjax.report import comparison, published
from bdjax.runs import plans, run

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import _paper_configs
import _paper_table

SCRIPTS = {
    "ft_sam_tables": "FT_SAM",
    "sft_tables": "SFT",
    "nft_tables": "NFT",
    "grad_prune_tables": "GRAD_PRUNE",
}
SHORT = {"ft_sam_table1": "ft_sam_tables", "sft_table1": "sft_tables"}
ALL = [(script, name) for script in SCRIPTS for name in importlib.import_module(script).TABLES]
SIZES = {"full": _paper_configs.FULL, **_paper_configs.DEBUG}


def paper_and_values(script, name):
    module = importlib.import_module(script)
    source, table = module.TABLES[name]
    return getattr(module, SCRIPTS[script]), published.select(
        paper=source, table=table, task=published.TASK
    )


def planned(script, name, size):
    paper, values = paper_and_values(script, name)
    options = argparse.Namespace(data_dir=None)
    return [_paper_table._plan(paper, values, value, [0], SIZES[size], options) for value in values]


def test_every_published_table_has_a_script():
    printed = {
        (value.paper, value.table) for value in published.load() if value.task == published.TASK
    }
    listed = [importlib.import_module(script).TABLES[name] for script, name in ALL]
    assert sorted(listed) == sorted(printed)


@pytest.mark.parametrize(("script", "name"), ALL)
def test_every_value_has_a_run_of_the_same_thing_or_a_reason(script, name):
    paper, _ = paper_and_values(script, name)
    for plan in planned(script, name, "full"):
        assert bool(plan.groups) != bool(plan.why)
        assert plan.why.startswith(("no ", "a holdout of")) or not plan.why
        for (config,) in plan.groups:
            resolved = config.to_dict()
            found = published.names(resolved)
            assert published.method(found.defense) == published.method(plan.value.defense)
            assert found.dataset == plan.value.dataset
            named = paper.networks.get(plan.value.dataset, "preact_resnet18")
            assert found.model == (plan.value.model or named)
            assert plan.value.attack in (found.attack, "avg")


@pytest.mark.parametrize("size", ["cifar10", "digits"])
@pytest.mark.parametrize(("script", "name"), ALL)
def test_every_value_has_a_run_at_the_debug_size_too(script, name, size):
    for plan in planned(script, name, size):
        assert {config.data.name for group in plan.groups for config in group} <= {size}


@pytest.mark.parametrize(("script", "name"), ALL)
def test_every_value_has_a_place_of_its_own(script, name):
    _, values = paper_and_values(script, name)
    groups = comparison._groups([comparison.fill(value, []) for value in values])
    assert sum(len(of) for group in groups.values() for of in group.values()) == len(values)


def first(script, name, **columns):
    """Return the resolved config of the first value with these columns."""
    plans = planned(script, name, "full")
    plan = next(
        p for p in plans if all(getattr(p.value, key) == column for key, column in columns.items())
    )
    return plan.groups[0][0].to_dict()


def test_protocols_are_those_of_the_papers():
    ft_sam = first("ft_sam_tables", "table1", attack="blended", defense="ft_sam")
    assert (
        ft_sam["attack"]["alpha"],
        ft_sam["attack"]["poison_rate"],
        ft_sam["defense"]["rho"],
    ) == (0.1, 0.1, 2)
    assert (ft_sam["training"]["epochs"], ft_sam["training"]["learning_rate"]) == (100, 0.01)
    assert (ft_sam["holdout"]["share"], ft_sam["holdout"]["held_out"]) == (0.05, False)
    plain = first("ft_sam_tables", "s8", defense="ft_sam:no_adaptive")["defense"]
    assert (plain["adaptive"], plain["rho"]) == (False, 0.5)
    pruned = first("ft_sam_tables", "table4", defense="fp_prune+ft_sam")["defense"]
    assert (pruned["first"]["epochs"], pruned["second"]["rho"], pruned["second"]["epochs"]) == (
        0,
        2,
        100,
    )
    sft = first("sft_tables", "table1", dataset="cifar10", attack="sig", defense="fsft")
    sig = [sft["attack"][key] for key in ("target_class_rate", "poison_rate", "alpha")]
    assert sig == [0.8, None, 0.2]
    assert (sft["training"]["epochs"], sft["training"]["schedule"]["period"]) == (250, 100)
    assert (sft["holdout"]["share"], sft["holdout"]["held_out"]) == (0.01, True)
    few = first("sft_tables", "table18", defense="ft_sam", clean_data="n=10")
    assert (few["holdout"]["per_class"], few["defense"]["batch_size"]) == (1, 10)
    warped = first("nft_tables", "s9", attack="wanet", poison_rate="50%", defense="none")["attack"]
    assert (warped["poison_rate"], warped["cover_ratio"]) == (0.5, 1.0)
    signs = first("ft_sam_tables", "s1", dataset="gtsrb", attack="badnets_a2o", defense="ft_sam")
    assert (signs["defense"]["rho"], signs["defense"]["epochs"]) == (8, 50)
    assert (signs["training"]["epochs"], signs["training"]["schedule"]["period"]) == (50, 100)
    tiny = first("ft_sam_tables", "table2", attack="badnets_a2o", defense="ft_sam")
    assert (tiny["defense"]["rho"], tiny["defense"]["epochs"]) == (8, 100)
    assert (tiny["training"]["epochs"], tiny["training"]["schedule"]["kind"]) == (200, "plateau")
    hidden = first("nft_tables", "s13", attack="adaptive:bpp")
    assert (hidden["training"]["start"], hidden["training"]["frozen_convolutions"]) == ("clean", 5)


def test_a_mean_is_taken_over_the_attacks_of_its_table():
    paper, values = paper_and_values("ft_sam_tables", "table1")
    (average,) = (v for v in values if (v.attack, v.defense, v.metric) == ("avg", "ft_sam", "asr"))
    assert len(_paper_table._averaged(paper, values, average)) == 10
    paper, values = paper_and_values("nft_tables", "s14")  # which prints nothing but means
    assert len(_paper_table._averaged(paper, values, values[0])) == 14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel1"], "table must be one of table1, .*did you mean 'table1'"),
        (["table1", "--attacks", "badnets"], "attacks must be one of .*did you mean 'badnets_a2o'"),
        (["table1", "--defenses", "ft-sam"], "defenses must be one of .*did you mean 'ft_sam'"),
        (["table1", "--seeds", "-1"], "seeds must be 0 or more, got -1"),
        (["table1", "--format", "html"], "format must be one of console"),
        (["table1", "--data-dir", "/nowhere"], "data_dir /nowhere is not a folder"),
        (["table1", "--debug", "--data-dir", "/nowhere"], "data_dir /nowhere is not a folder"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, message):
    module = importlib.import_module("ft_sam_tables")
    with pytest.raises(SystemExit, match=message) as end:
        _paper_table.main(module.FT_SAM, module.TABLES, [*arguments, "--out", str(tmp_path)])
    assert "\n" not in str(end.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", [*SCRIPTS, *SHORT])
def test_help_has_the_command_and_the_protocol(script, capsys):
    module = importlib.import_module(script)
    paper = getattr(module, SCRIPTS[SHORT.get(script, script)])
    with pytest.raises(SystemExit) as end:
        _paper_table.main(paper, module.TABLES, ["--help"], module.__doc__)
    assert end.value.code == 0
    assert f"python experiments/{script}.py" in capsys.readouterr().out
    assert paper.protocol.startswith("Protocol (")


def test_a_run_that_diverged_or_cannot_be_marks_its_cell(tmp_path, monkeypatch):
    plan = next(
        p for p in planned("ft_sam_tables", "table1", "digits") if p.value.defense == "ft_sam"
    )
    (config,) = plan.groups[0]
    assert _paper_table._cell(plan, tmp_path, {}).why == "not run"
    run.mark_diverged(config, tmp_path, "the loss is not finite")
    assert _paper_table._cell(plan, tmp_path, {}).why == "1 of 1 diverged"

    def refuse(one):
        if one is config:
            raise InputError("attack.poison_rate must be lower.")

    monkeypatch.setattr(plans, "prepare", refuse)
    other = config.with_defense(name="none")
    refused = _paper_table._refused([config, other])
    assert list(refused) == [config.run_id]
    assert (
        _paper_table._cell(plan, tmp_path / "empty", refused).why
        == "attack.poison_rate must be lower."
    )
    with pytest.raises(InputError, match="must be lower"):
        _paper_table._refused([config])


@pytest.mark.slow
def test_a_table_from_one_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BDJAX_DATA_DIR", str(tmp_path))  # no CIFAR-10 there, so the digits stand in
    module = importlib.import_module("ft_sam_table1")
    arguments = [
        "--debug",
        "--attacks",
        "badnets_a2o",
        "--out",
        str(tmp_path / "runs"),
        "--format",
        "csv",
    ]

    def printed(*more):
        _paper_table.main(module.FT_SAM, {"table1": module.TABLES["table1"]}, [*arguments, *more])
        return capsys.readouterr()

    assert "To run: victims: 1, runs: 8" in printed("--estimate").out
    assert not (tmp_path / "runs").exists()
    table = printed()
    lines = [line.split(",") for line in table.out.splitlines()]
    ours = {(line[8], line[9]): line[12] for line in lines[1:] if line[12]}
    assert {defense for defense, _ in ours} == {
        *("none", "ft", "fp", "abl", "ft_sam", "anp", "i_bau", "nc")
    }
    assert float(ours["none", "asr"]) > 90 > 30 > float(ours["ft_sam", "asr"])
    assert "no defense nad" in table.out
    again = printed()
    assert "Nothing is left to run." in again.err
    assert again.out == table.out
