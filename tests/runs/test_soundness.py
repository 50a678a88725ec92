"""What is no attack or no network, by hand, and what every table and the page make of it."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
from made_up import content, ft_sam, rates, rating_of, write

from bdjax import cli, report
from bdjax.report import comparison, page, paired, published, ranking, tables
from bdjax.report.grid import FORMATS
from bdjax.report.records import Record
from bdjax.runs import soundness
from bdjax.runs.soundness import Fault


def made(victim, defended, defense=None, seed=0, attack=None, **data):
    """Return the record of a run with these rates before and after."""
    record = content(seed, attack, defense)
    metrics = {
        "before": victim,
        "after": defended,
        "defense_effectiveness_rating": rating_of(victim, defended),
    }
    return {**record, "metrics": metrics, "data": {**record["data"], **data}}


def summed(*contents):
    return report.summarize([Record(Path(str(number)), one) for number, one in enumerate(contents)])


def words(record):
    return soundness.told([soundness.of_victim(record) + soundness.of_defended(record)])


SOUND, CLEAN, CONSTANT = rates(99, 80, 0), rates(95, 2, 70), rates(10, 0, 8)
UNTAKEN = rates(99, 1, 70)
GOOD, BAD = ft_sam(1.0), ft_sam(9.0)
# an attack that took, with a defense that works and one that ruins the network; and one that did not take
RUNS = [
    *(made(SOUND, SOUND, seed=seed) for seed in (0, 1)),
    *(made(SOUND, CLEAN, GOOD, seed=seed) for seed in (0, 1)),
    made(SOUND, CLEAN, BAD),
    made(SOUND, CONSTANT, BAD, seed=1),
    *(
        made(UNTAKEN, UNTAKEN, defense, seed, {"name": "sig"})
        for defense in (None, GOOD, BAD)
        for seed in (0, 1)
    ),
]
SIG = "sig: attack did not take (ASR 1.2 %)"
RUINED = "badnets, ft_sam ρ=9: network at chance after the defense in 1 of 2 seeds (ACC 10.0 %)"


# --- The rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correct", "told"),
    [
        (10, ["victim at chance (ACC 10.0 %)"]),
        (14, ["victim at chance (ACC 14.0 %)"]),  # 10 + 1.645 · √(100 · 0.1 · 0.9) = 14.9
        (15, []),
        (0, ["victim at chance (ACC 0.0 %)"]),
    ],
)
def test_a_victim_is_at_chance_that_is_not_above_a_guess(correct, told):
    assert words(made(rates(correct, 80, 0), rates(correct, 80, 0))) == told


def test_a_guess_may_be_the_most_frequent_class():
    """Of 100 images 60 are of one class: always naming it is right on 60 %, and no more than a guess."""
    always = rates(60, 80, 0)
    assert words(made(always, always)) == []
    assert words(made(always, always, test_majority_count=60)) == ["victim at chance (ACC 60.0 %)"]


@pytest.mark.parametrize(
    ("hits", "classes", "told"),
    [
        (8, 10, True),
        (12, 10, True),  # 8 + 1.645 · √(80 · 0.1 · 0.9) = 12.4
        (13, 10, False),
        (13, 1000, False),
        (40, 2, True),  # a guess hits one of two classes half of the time
        (47, 2, True),  # 40 + 1.645 · √(80 · 0.5 · 0.5) = 47.4
        (48, 2, False),
    ],
)
def test_an_attack_took_that_hits_more_than_ten_percent_and_than_a_guess(hits, classes, told):
    victim = rates(99, hits, 0)
    expected = [f"attack did not take (ASR {hits / 0.8:.1f} %)"] if told else []
    assert words(made(victim, victim, num_classes=classes)) == expected


@pytest.mark.parametrize(
    ("stealth", "told"),
    [
        ({"test": {"changed_share": 0.0}}, ["the trigger changes no pixel"]),
        (
            {"test": {"changed_share": 0.1}, "train": {"changed_share": 0}},
            ["the trigger in training changes no pixel"],
        ),
        ({"test": {"changed_share": 1e-9}}, []),
        ({}, []),
    ],
)
def test_a_trigger_that_changes_no_pixel_is_told(stealth, told):
    assert words({**made(SOUND, CLEAN), "stealth": stealth}) == told


def test_a_network_is_ruined_by_the_defense_only_if_it_was_none_before():
    assert words(made(SOUND, CONSTANT)) == ["network at chance after the defense (ACC 10.0 %)"]
    assert words(made(CONSTANT, CONSTANT)) == [
        "victim at chance (ACC 10.0 %)",
        "attack did not take (ASR 0.0 %)",
    ]


@pytest.mark.parametrize(
    "attack",
    [{"poison_rate": 0.0}, {"poison_rate": 0}, {"poison_rate": None, "target_class_rate": 0.0}],
)
def test_of_an_attack_that_was_not_asked_for_nothing_is_told(attack):
    assert words(made(UNTAKEN, UNTAKEN, attack=attack)) == []
    assert words(made(CONSTANT, CONSTANT, attack=attack)) == ["victim at chance (ACC 10.0 %)"]
    (row,) = summed(made(UNTAKEN, UNTAKEN, attack=attack))
    assert (row.is_benign, row.is_marked, row.competes, row.has_attack) == (
        True,
        False,
        False,
        False,
    )


def test_a_rate_of_the_target_class_counts_only_where_no_other_is_given():
    assert not soundness.is_benign({"poison_rate": 0.1, "target_class_rate": 0})
    assert not soundness.is_benign({"poison_rate": None, "target_class_rate": 0.8})


def test_seeds_are_counted_and_the_rate_is_the_mean_of_those_it_is_wrong_with():
    fault = [Fault("victim at chance", "ACC", rate) for rate in (0.1, 0.12)]
    assert soundness.told([[fault[0]], [fault[1]], []]) == [
        "victim at chance in 2 of 3 seeds (ACC 11.0 %)"
    ]
    assert soundness.told([[Fault("x", "", math.nan)]] * 2) == ["x"]
    assert soundness.told([[], []]) == []


# --- Tables ----------------------------------------------------------------------------------------------------------


def test_neither_a_ruined_network_nor_a_victim_without_a_backdoor_has_a_best():
    rows = summed(*RUNS)
    assert [(row.attack, row.defense) for row in rows if row in report.best(rows)] == [
        ("badnets", "ft_sam ρ=1")
    ]
    assert [(row.attack, row.defense) for row in rows if row in report.runners_up(rows)] == [
        ("badnets", "none")
    ]
    assert report.notes(rows) == [RUINED, SIG]


def test_a_victim_at_chance_has_no_star_for_a_rating_of_a_hundred():
    """It names the attacker's class for everything, and after the defense another: DER is 100 %."""
    rows = summed(made(rates(10, 80, 0), rates(10, 80, 0)), made(rates(10, 80, 0), CONSTANT, GOOD))
    assert [row.rating.mean for row in rows] == [0.5, 1.0]
    text = tables.table(rows, "markdown")
    assert "**" not in text
    assert "| 100.0 ‡ |" in text
    assert "\n‡ badnets: victim at chance (ACC 10.0 %).\n" in text


def test_each_format_has_the_mark_and_the_notes():
    rows = summed(*RUNS)
    console, markdown, latex = (
        tables.table(rows, style) for style in ("console", "markdown", "latex")
    )
    for text, notes in (
        (console, (f"‡ {RUINED}.", f"‡ {SIG}.")),
        (markdown, (f"\n\n‡ {SIG}.\n\n", f"‡ {RUINED}.")),
    ):
        assert all(note in text for note in notes)
        assert "‡: no place among the best or in ranks" in " ".join(text.split())
        assert text.count(" ‡") >= 4
    lines = [line for line in console.splitlines() if line.startswith(("none", "ft_sam"))]
    assert [" ‡" in line for line in lines] == [False, False, True, True, True, True]
    assert latex.count(r"$^\ddagger$ &") == 4
    assert r"$^\ddagger$ sig: attack did not take (ASR 1.2 \%)." in latex
    assert latex.count("{") == latex.count("}")
    table = list(csv.DictReader(io.StringIO(tables.table(rows, "csv"))))
    ruined = RUINED.partition(": ")[2]
    assert [line["notes"] for line in table] == ["", "", ruined] + [
        "attack did not take (ASR 1.2 %)"
    ] * 3


def test_a_table_of_sound_rows_has_neither_mark_nor_notes():
    rows = summed(*RUNS[:4])
    for style in FORMATS:
        text = tables.table(rows, style)
        assert "‡" not in text
        assert "ddagger" not in text
        assert "notes" not in text


def test_ranks_leave_out_the_attack_that_is_none_and_the_defense_that_ruins():
    found = ranking.rank(summed(*RUNS))
    assert [(one.defense, one.mean_rank) for one in found.defenses] == [
        ("ft_sam ρ=1", 1.0),
        ("none", 2.0),
    ]
    assert (found.attacks, found.unattacked, found.collapsed) == (
        ("badnets",),
        ("sig",),
        ("ft_sam ρ=9",),
    )
    text = ranking.table(found, "markdown")
    assert (
        "Left out, without an attack that took: sig. Left out, at chance after the defense: ft_sam ρ=9."
        in text
    )
    ranks = [row.mean_rank for row in ranking.with_mean_ranks(summed(*RUNS))]
    assert ranks == [2.0, 1.0, None, None, None, None]


def test_the_mean_over_attacks_of_two_defenses_is_of_attacks_that_took():
    more = [
        made(SOUND, after, defense, 0, {"name": "blended"})
        for after, defense in ((CLEAN, GOOD), (SOUND, BAD))
    ]
    records = [Record(Path(str(number)), one) for number, one in enumerate([*RUNS, *more])]
    found = paired.compare(records, "ft_sam rho=1", "ft_sam rho=9", ["clean_accuracy"])
    assert [(one.attack, one.n) for one in found.comparisons] == [
        ("badnets", 2),
        ("blended", 1),
        ("sig", 2),
        ("all", 3),
    ]
    assert found.apart == 2
    text = paired.table(found, "markdown")
    assert "Left out of it, without an attack that took: 2." in text
    assert f"\n‡ {SIG}.\n" in text
    assert f"\n‡ {RUINED}.\n" in text
    assert "| sig | ACC ‡ |" in text
    assert "| blended | ACC |" in text
    lines = list(csv.DictReader(io.StringIO(paired.table(found, "csv"))))
    assert [line["notes"] for line in lines] == [RUINED, "", SIG, ""]


def test_of_one_attack_that_took_there_is_no_mean_over_all():
    records = [Record(Path(str(number)), one) for number, one in enumerate(RUNS)]
    found = paired.compare(records, "ft_sam rho=1", "ft_sam rho=9", ["clean_accuracy"])
    assert [one.attack for one in found.comparisons] == ["badnets", "sig"]


def test_a_published_mean_stands_beside_that_of_the_attacks_that_took():
    (value,) = published.select(
        paper="ft-sam",
        table="Table 1",
        attack="blended",
        defense="ft_sam",
        metric="asr",
        dataset="cifar10",
    )
    took, untaken = ([Record(Path("x"), one) for one in group] for group in (RUNS[2:4], RUNS[8:10]))
    cell = comparison.fill(value, [took, untaken])
    assert cell.ours == (2.5, 2.5)
    assert cell.why == "mean without 1 of 2 attacks: attack did not take (ASR 1.2 %)"
    assert comparison.fill(value, [untaken]).why == "attack did not take (ASR 1.2 %)"
    assert comparison.fill(value, [untaken, untaken]).ours == ()
    ruined = [Record(Path("x"), RUNS[5])]
    assert (
        comparison.fill(value, [ruined]).why == "network at chance after the defense (ACC 10.0 %)"
    )


# --- The page --------------------------------------------------------------------------------------------------------


def test_the_page_says_it_in_findings_cards_and_below_the_table(tmp_path):
    text = page.html(report.load([write(tmp_path / "runs", *_named(RUNS))]), tmp_path)
    assert f"<li>Not counted: {RUINED}; {SIG}.</li>" in text
    assert '<p class="winner">‡ attack did not take (ASR 1.2 %)</p>' in text
    assert f"<li>‡ {SIG}</li>" in text
    assert text.count('class="sign">') == 4
    assert text.count("<strong") == 1
    assert "2 of 2 runs with a defense end with an ASR below" in text
    assert "Over all victims" not in text


def test_a_page_of_victims_without_a_backdoor_names_no_winner(tmp_path):
    runs = [
        made(UNTAKEN, UNTAKEN, defense, attack={"poison_rate": 0.0}) for defense in (None, GOOD)
    ]
    text = page.html(report.load([write(tmp_path / "runs", *_named(runs))]), tmp_path)
    assert '<p class="winner">no image was poisoned</p>' in text
    assert "<strong" not in text
    assert "Not counted" not in text


def _named(contents):
    return [{**one, "run_id": f"run{number:03}"} for number, one in enumerate(contents)]


# --- A run -----------------------------------------------------------------------------------------------------------


def test_a_victim_that_was_not_trained_is_told_below_the_table_of_its_run(tmp_path, capsys):
    sizes = ["--model.width", "4", "--training.epochs", "0", "--defense", "none"]
    assert cli.main(["run", *sizes, "--quiet", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "‡ badnets: victim at chance (ACC " in text
    assert " * " not in text
    (record,) = report.load([tmp_path])
    assert record.content["data"]["test_majority_count"] == 46  # of 450 digits
