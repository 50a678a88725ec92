"""Victims and methods of an accelerator's minutes: what they ask for, in which order, and what is left of a stop."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from bdjax import models, report
from bdjax.checks import InputError
from bdjax.runs import config, plans, run, schema
from bdjax.runs.victim import Victim
from bdjax.train import loop

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from accelerator import methods, runs, victims
from accelerator.session import Part, Session, Settings

CONFIG = Path(__file__).parents[2] / "configs" / "cifar10.yaml"
BADNETS = victims.MAIN[0]
FULL = Settings(Path("out"), Path("work"))
FT_SAM = methods.TUNING[1]


def resolved(method, settings=FULL, planted=BADNETS):
    return runs.resolve(
        runs.values(settings, planted, method.paper, method.defense, method.clean_data)
    )


# --- What is asked for -----------------------------------------------------------------------------------------------


def test_the_victim_is_that_of_the_config_in_bfloat16():
    own = schema.flatten(resolved(FT_SAM).to_dict())
    file = schema.flatten(config.resolve(schema.read(CONFIG)).to_dict())
    # a cosine over a run of 100 epochs has the period 100
    assert {key for key in own if own[key] != file.get(key)} == {
        "model.dtype",
        "training.schedule.period",
    }
    assert own["model.dtype"] == "bfloat16"


def test_every_method_has_its_papers_options_on_one_victim():
    every = (*methods.MAIN, *methods.REST)
    assert len({resolved(method).victim_id for method in every}) == 1
    sft, fast_sft, nft = map(resolved, methods.SMOOTHING)
    for smooth in (sft, fast_sft):
        chosen = smooth.defense.options
        assert (chosen["eta_f"], chosen["eta_r"], chosen["epochs"], chosen["batch_size"]) == (
            1e-3,
            5,
            100,
            128,
        )
        assert (smooth.holdout.share, smooth.holdout.held_out) == (0.01, False)
    assert (nft.defense.options["learning_rate"], nft.defense.options["augment"]) == (0.05, "mixup")
    pruned = {
        resolved(method).holdout.per_class
        for method in methods.REST
        if method.defense == "grad_prune"
    }
    assert pruned == {2, 10, 100}


def test_the_first_setting_is_the_papers():
    for method in (*methods.MAIN, *methods.REST):
        values = runs.values(FULL, BADNETS, method.paper, method.defense, method.clean_data)
        assert runs.resolve(values, method.settings[0]) == runs.resolve(values), method


@pytest.mark.parametrize(
    ("source", "defense", "clean_data", "found"),
    [
        ("ft-sam", "none", "", {"source": "ft-sam, Table 1", "acc": 91.82, "asr": 93.79}),
        (
            "ft-sam",
            "ft_sam",
            "5%",
            {"source": "ft-sam, Table 1", "acc": 92.21, "asr": 1.63, "der": 96.08},
        ),
        ("sft", "sft_theta", "1%", {"source": "sft, Table 6", "acc": 89.19, "asr": 1.72}),
        ("sft", "sft_theta", "5%", {}),
    ],
)
def test_published_values_are_those_of_the_same_thing(source, defense, clean_data, found):
    assert runs.published_of(BADNETS, source, defense, clean_data) == found


# --- Draws -----------------------------------------------------------------------------------------------------------


def test_draws_share_a_victim_and_say_so():
    of = resolved(FT_SAM)
    first, second = runs.drawn(of, 0), runs.drawn(of, 1)
    assert first.victim_id == second.victim_id == of.victim_id
    assert len({of.run_id, first.run_id, second.run_id}) == 3
    assert (second.to_dict()["seed"], second.to_dict()["victim_seed"]) == (1, 0)
    with pytest.raises(InputError, match="unknown key 'victim_seed'"):
        # So that nobody takes it for a run with a victim of its own
        config.resolve(second.to_dict())


def test_a_draw_has_the_holdout_of_its_own_seed():
    of = config.resolve({"holdout": {"per_class": 3}})
    plan = plans.prepare(of)
    first, second = (methods._with_draw(plan, runs.drawn(of, seed)).holdout for seed in (0, 1))
    np.testing.assert_array_equal(first.input, plan.holdout.input)
    other = plans.prepare(config.resolve({"holdout": {"per_class": 3}, "seed": 1})).holdout
    np.testing.assert_array_equal(second.input, other.input)


# --- Parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("debug", [False, True])
def test_parts_come_after_what_they_need(debug):
    settings = Settings(Path("out"), Path("work"), debug=debug)
    parts = [*victims.parts(settings), *methods.parts(settings)]
    names = [part.name for part in parts]
    assert len(set(names)) == len(names)
    for number, part in enumerate(parts):
        assert set(part.needs) <= set(names[:number])


def test_parts_are_of_what_bdjax_has():
    names = " ".join(part.name for part in methods.parts(FULL))
    assert ("vgg19_bn" in names) == ("vgg19_bn" in models.names())
    for attack in ("badnets", "blended", "wanet", "input_aware", "sig", "lf"):
        for seed in methods.SEEDS:
            assert f"methods/{attack}/ft_sam-5%-seed{seed}" in names


def test_estimates_follow_the_work():
    parts = {part.name: part.seconds for part in methods.parts(FULL)}
    first, again = (parts[f"methods/badnets/ft_sam-5%-seed{seed}"] for seed in (0, 1))
    assert first > again > 4 * 12.5  # four points of 250,000 images twice
    assert parts["methods/badnets/sft-5%-seed0"] > 2 * parts["methods/badnets/sft-1%-seed0"]
    assert all(part.seconds < 60 for part in victims.parts(FULL))  # they can be stopped


# --- A call that is cut short, and one that goes on ------------------------------------------------------------------


class Cut(Session):
    """A call whose time is up after an epoch."""

    def out_of_time(self) -> bool:
        return True


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "DEBUG", runs.DEBUG._replace(width=4, epochs=3, defense_epochs=2))
        patch.setattr("bdjax.devices.compilation.enable_cache", lambda folder: None)
        yield


def carry_out(session: Session, parts: list[Part]) -> list[dict]:
    session.carry_out(parts, lambda rows: victims.tables(rows) + methods.tables(rows))
    return session.rows


@pytest.fixture(scope="module")
def calls(small, tmp_path_factory):
    """Two calls of two parts: one that is stopped in the victim's training, and one that finishes both.

    Two programs are compiled, the victim's and that of four points of FT-SAM, of a network of width 4.
    """
    del small
    settings = Settings(tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("work"), debug=True)
    parts = [victims.part(settings, BADNETS)]
    parts += [methods._part(settings, BADNETS, FT_SAM, seed) for seed in (0, 1)]
    stopped = carry_out(Cut(settings), parts)
    table = victims.tables(stopped)
    return settings, parts, stopped, table, carry_out(Session(settings), parts)


def test_a_victim_that_was_stopped_is_not_taken_for_a_whole_one(calls):
    _, parts, stopped, table, _ = calls
    (row,) = stopped  # no rates, and no method was begun
    assert (row["part"], row["stopped"]) == (parts[0].name, "stopped after epoch 1 of 3")
    assert "done" not in row
    assert "not whole: stopped after epoch 1 of 3" in table


def test_a_second_call_goes_on_with_the_victim(calls):
    settings, parts, _, _, rows = calls
    assert [row["part"] for row in rows if row.get("done")] == [part.name for part in parts]
    (victim,) = (row for row in rows if "images_per_second" in row)
    assert (victim["epochs"], victim["images"], victim["clean_total"]) == (3, 1347, 450)
    of = runs.resolve(runs.values(settings, BADNETS))
    whole = run.run(of, run.Execution(settings.work / "afresh"))["metrics"]["before"]
    assert {name: victim[name] for name in runs.COUNTS} == {
        name: whole[name] for name in runs.COUNTS
    }


def test_seed_0_of_a_method_is_what_a_run_makes(calls):
    settings, _, _, _, rows = calls
    own = next(row for row in rows if row.get("setting") == {"rho": 2.0} and row["seed"] == 0)
    single = run.run(resolved(FT_SAM, settings), run.Execution(settings.work / "runs"))
    # Rounding
    assert single["metrics"]["after"]["attack_hits"] == pytest.approx(own["attack_hits"], abs=2)
    assert single["metrics"]["after"]["clean_correct"] == pytest.approx(own["clean_correct"], abs=2)


def test_the_records_of_all_runs_are_one_file(calls):
    settings, _, _, _, rows = calls
    found = report.load([settings.out / runs.RECORDS])
    assert {record.run_id for record in found} >= {row["run_id"] for row in rows if "run_id" in row}
    (row,) = (
        row
        for row in report.summarize(found)
        if row.settings.get("defense.rho") == 4 and "victim_seed" in row.settings
    )
    assert [record.seed for record in row.records] == [0, 1]
    assert {path.name for path in settings.out.iterdir()} == {
        "results.jsonl",
        "log.txt",
        "summary.md",
        runs.RECORDS,
    }


def test_records_of_folders_that_are_gone_are_kept(calls, tmp_path):
    settings, _, _, _, _ = calls
    file = settings.out / runs.RECORDS
    before = file.read_text(encoding="utf-8")
    runs.keep_records(Session(Settings(settings.out, tmp_path / "empty", debug=True)))
    assert file.read_text(encoding="utf-8") == before


def test_the_table_counts_draws_and_has_the_published_beside(calls):
    rows = calls[-1]
    (line,) = (
        line for line in methods.tables(rows).splitlines() if line.startswith("| ft_sam | ρ=2 |")
    )
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:4] == ["ft_sam", "ρ=2", "5%", "2"]
    assert "±" in cells[4]
    assert cells[-4:] == ["92.21", "1.63", "96.08", "ft-sam, Table 1"]


# --- Tables ----------------------------------------------------------------------------------------------------------


def test_there_is_no_table_of_nothing():
    assert (victims.tables([]), methods.tables([])) == ("", "")


def test_runs_that_diverged_are_counted():
    own = {
        "part": "methods/badnets/sft",
        "victim": "badnets",
        "method": "sft",
        "holdout": "1%",
        "published": {},
    }
    own["setting"] = {"eta_f": 1e-3, "eta_r": 5.0}
    rates = dict.fromkeys((*methods._RATES, *methods._SECONDS), 0.5)
    rows = [{**own, "seed": 0, "diverged": "it is not finite"}, {**own, "seed": 1, **rates}]
    surface = {**own, "surface": {"largest_eigenvalue": 12.3, "hessian_trace": None}}
    (line,) = (
        line for line in methods.tables([*rows, surface]).splitlines() if line.startswith("| sft")
    )
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:10] == [
        "η_F=0.001 η_r=5",
        "1%",
        "1, 1 diverged",
        "50.0",
        "50.0",
        "50.0",
        "50.0",
        "12.3",
        "–",
    ]
    (line,) = (line for line in methods.tables(rows[:1]).splitlines() if line.startswith("| sft"))
    assert line.count("| – |") + line.count(" – ") > 6
    assert "0, 1 diverged" in line


def test_a_method_that_diverges_has_a_row_and_a_record(calls, tmp_path):
    settings = calls[0]
    session = Session(Settings(tmp_path, settings.work, debug=True))
    draw = runs.drawn(resolved(FT_SAM, settings), 7)
    plan = dataclasses.replace(plans.prepare(resolved(FT_SAM, settings)), config=draw)
    victim: Victim = None  # type: ignore[assignment]  # of no use to a run without a result
    row = methods._concluded(session, plan, victim, loop.Diverged("it is not finite"))
    assert row["diverged"] == "it is not finite"
    content = (settings.work / "runs" / draw.run_id / "record.json").read_text(encoding="utf-8")
    assert '"status": "diverged"' in content
