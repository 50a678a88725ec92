"""Paired comparisons of made-up runs, by hand: what is paired, what is left out, and which defense a label names."""

import csv
import io
import logging
import re
from pathlib import Path

import pytest
from made_up import content, ft_sam, write

from bdjax import cli
from bdjax.checks import InputError
from bdjax.report import paired
from bdjax.report.records import Record


def records_of(*contents):
    found = []
    for made in contents:
        rho, share = made["config"]["defense"].get("rho", ""), made["config"]["holdout"]["share"]
        run_id = f"{made['run_id']}-{rho}-{share}"
        found.append(Record(Path(run_id), {**made, "run_id": run_id}))
    return found


SAM, NFT = ft_sam(2.0), {"name": "nft", "alpha": 1.0}
# differences in ASR: -4 -16 +8 of 80, on badnets; -8 on blended
RUNS = [
    *(content(seed, defense=SAM, hits=hits) for seed, hits in enumerate((4, 8, 16))),
    *(content(seed, defense=NFT, hits=hits) for seed, hits in enumerate((8, 24, 8))),
    content(0, {"name": "blended"}, SAM, hits=0),
    content(0, {"name": "blended"}, NFT, hits=8),
    content(0, defense={"name": "none"}, hits=80),
]


def test_pairs_share_victim_holdout_and_seed():
    found = paired.compare(records_of(*RUNS), "ft_sam", "nft", ["attack_success_rate"])
    assert (found.first, found.second, found.unpaired) == ("ft_sam", "nft", ())
    badnets, blended, everything = found.comparisons
    assert [one.attack for one in found.comparisons] == ["badnets", "blended", "all"]
    assert [one.n for one in found.comparisons] == [3, 1, 4]
    assert badnets.difference == pytest.approx((-0.05, 0.15))
    assert badnets.first.mean - badnets.second.mean == pytest.approx(badnets.difference.mean)
    assert badnets.interval == pytest.approx((-0.2, 0.1))
    # |±4 ±16 ±8| of 8 assignments: 28 20 12 4, twice each; observed 12
    assert badnets.test == (0.75, 0.25, True)
    assert (blended.difference, blended.interval, blended.test) == (
        (-0.1, None),
        None,
        (1, 1, True),
    )
    # with ±8 beside: 36 20 28 12 20 4 12 4, each twice; observed 20
    assert everything.test == (0.5, 0.125, True)


def test_runs_without_a_counterpart_are_named(caplog):
    lonely = [content(3, defense=SAM), content(7, {"name": "sig"}, NFT)]
    with caplog.at_level(logging.WARNING):
        found = paired.compare(records_of(*RUNS, *lonely), "ft_sam", "nft")
    assert [one.n for one in found.comparisons] == [3] * 3 + [1] * 3 + [4] * 3
    assert [record.run_id for record in found.unpaired] == [
        "badnets-ft_sam-3-2.0-0.05",
        "sig-nft-7--0.05",
    ]
    names = "badnets-ft_sam-3-2.0-0.05, sig-nft-7--0.05"
    assert caplog.messages == [
        f"Left out, without a counterpart of the other defense: 2 ({names})."
    ]
    assert "Left out without a counterpart: 2." in paired.table(found, "markdown")


def test_holdouts_are_compared_each_with_its_own():
    small = [
        content(0, defense=defense, hits=hits, holdout={"share": 0.01})
        for defense, hits in ((SAM, 0), (NFT, 40))
    ]
    found = paired.compare(records_of(*RUNS[:6], *small), "ft_sam", "nft", ["attack_success_rate"])
    compared = {one.attack: (one.n, one.difference.mean) for one in found.comparisons}
    assert compared == {
        "badnets · holdout.share=0.05": (3, pytest.approx(-0.05)),
        "badnets · holdout.share=0.01": (1, -0.5),
        "all": (4, pytest.approx(-0.1625)),
    }


def test_a_label_may_carry_settings():
    runs = records_of(*RUNS, *(content(seed, defense=ft_sam(4.0), hits=0) for seed in range(3)))
    for label in ("ft_sam ρ=4", "ft_sam rho=4", "ft_sam rho=4.0"):
        found = paired.compare(runs, label, "ft_sam rho=2", ["attack_success_rate"])
        assert (found.first, found.second) == ("ft_sam ρ=4", "ft_sam ρ=2")
        assert [(one.n, one.second.mean) for one in found.comparisons] == [
            (3, pytest.approx(28 / 240))
        ]


def test_options_that_differ_between_victims_are_no_ambiguity():
    runs = records_of(content(0, defense=ft_sam(4.0)), content(0, defense=NFT))
    runs += records_of(content(0, {"name": "sig"}, SAM), content(0, {"name": "sig"}, NFT))
    found = paired.compare(runs, "ft_sam", "nft", ["clean_accuracy"])
    assert [(one.attack, one.n) for one in found.comparisons] == [
        ("badnets", 1),
        ("sig", 1),
        ("all", 2),
    ]
    assert found.first == "ft_sam"


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            "ft_sam",
            "nft",
            r"the defense 'ft_sam' may be any of 'ft_sam ρ=2', 'ft_sam ρ=4'; name one of them",
        ),
        (
            "ntf",
            "nft",
            r"no run of the defense 'ntf' \(did you mean 'nft'\?\); there are 'none', 'ft_sam ρ=2'",
        ),
        ("ft_sam rho=8", "nft", r"no run of the defense 'ft_sam rho=8'"),
        ("sam rho=2", "nft", r"no run of the defense 'sam rho=2'"),
        ("", "nft", r"no run of the defense ''"),
        ("nft", "nft alpha=1", r"no run of the defense 'nft alpha=1'"),
        ("nft", "nft", r"'nft' and 'nft' name the same defense"),
        ("ft_sam rho=4", "none", r"no run of 'ft_sam rho=4' has a counterpart of 'none'"),
    ],
)
def test_labels_that_name_no_pair_are_refused(first, second, message):
    runs = records_of(*RUNS, content(1, defense=ft_sam(4.0)))  # where no run of none has that seed
    with pytest.raises(InputError, match=message) as caught:
        paired.compare(runs, first, second)
    assert "\n" not in str(caught.value)


def test_an_unknown_metric_is_refused():
    with pytest.raises(InputError, match=r"metric must be one of clean_accuracy, .*; got 'ASR'"):
        paired.compare(records_of(*RUNS), "ft_sam", "nft", ["ASR"])


def test_tables_say_the_same():
    found = paired.compare(
        records_of(*RUNS), "ft_sam", "nft", ["attack_success_rate", "clean_accuracy"]
    )
    markdown = paired.table(found, "markdown").splitlines()
    assert (
        markdown[0]
        == "| attack | metric | ft_sam | nft | difference | 95 % | p | smallest p | pairs |"
    )
    assert markdown[2] == (
        "| badnets | ASR | 11.7 ± 7.6 | 16.7 ± 11.5 | -5.0 ± 15.0 | [-20.0, 10.0] | 0.75 | 0.25 | 3 |"
    )
    assert markdown[4] == "| blended | ASR | 0.0 | 10.0 | -10.0 | – | 1 | 1 | 1 |"
    assert "all: the pairs of all attacks, as if independent." in markdown[-1]
    assert "in all ways." in markdown[-1]
    assert r"badnets & ASR & 11.7 $\pm$ 7.6" in paired.table(found, "latex")
    first, _, third, *_ = csv.DictReader(io.StringIO(paired.table(found, "csv")))
    assert (first["attack"], first["first"], first["metric"], first["n"]) == (
        "badnets",
        "ft_sam",
        "attack_success_rate",
        "3",
    )
    assert float(first["difference_mean"]) == pytest.approx(-0.05)
    assert (first["p"], first["smallest_p"], first["exact"]) == ("0.75", "0.25", "True")
    assert third["difference_std"] == third["difference_low"] == third["difference_high"] == ""
    console = paired.table(found).splitlines()
    assert console[0] == "badnets"
    assert console[1].split() == [
        "metric",
        "ft_sam",
        "nft",
        "difference",
        "95",
        "%",
        "p",
        "smallest",
        "p",
        "pairs",
    ]
    with pytest.raises(InputError, match="format must be one of"):
        paired.table(found, "pdf")


def test_one_pair_prints_no_deviation_and_no_interval():
    found = paired.compare(records_of(RUNS[0], RUNS[3]), "ft_sam", "nft")
    for style in ("console", "markdown", "latex"):
        text = paired.table(found, style)
        assert "±" not in text
        assert r"\pm" not in text
        assert "[" not in text.replace(r"\[", "")
        assert "interval" not in text


def test_of_many_pairs_the_signs_are_drawn():
    runs = [
        content(seed, defense=defense, hits=hits)
        for seed in range(24)
        for defense, hits in ((SAM, 1), (NFT, 2))
    ]
    found = paired.compare(records_of(*runs), "ft_sam", "nft", ["attack_success_rate"])
    assert found.comparisons[0].test == (1e-4, 1e-4, False)
    assert "of more than 20, 9999 times at random" in paired.table(found, "markdown")


def test_the_command_compares_and_complains_in_one_line(tmp_path, capsys):
    write(tmp_path, *RUNS)
    assert (
        cli.main(["compare", str(tmp_path), "--defenses", "ft_sam", "nft", "--format", "markdown"])
        == 0
    )
    assert "| badnets | DER | " in capsys.readouterr().out
    for words in (
        ["ft_sam", "anp"],
        ["ft_sam"],
        ["ft_sam", "nft", "--metric", "ASR"],
        ["ft", "nft", "--format", "pdf"],
    ):
        assert cli.main(["compare", str(tmp_path), "--defenses", *words]) == 2
        assert re.fullmatch(r"bdjax: [^\n]+\n", capsys.readouterr().err)
