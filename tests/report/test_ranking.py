"""Defenses ranked over attacks, by hand."""

import csv
import io
from pathlib import Path

import pytest
from made_up import content, ft_sam, write

from bdjax import cli, report
from bdjax.report import ranking, tables
from bdjax.report.grid import FORMATS
from bdjax.report.records import Record


def rows_of(ratings):
    """Return rows with these ratings, given as {attack: {defense: rating}}."""
    made = [
        content(0, {"name": attack}, {"name": defense}, rating=rating)
        for attack, of in ratings.items()
        for defense, rating in of.items()
    ]
    return report.summarize([Record(Path(str(i)), one) for i, one in enumerate(made)])


THREE = {
    "badnets": {"none": 0.5, "ft": 0.7, "nft": 0.9},
    "blended": {"none": 0.5, "ft": 0.5, "nft": 0.4},
    "sig": {"none": 0.5, "nft": 0.9},  # without ft
}


def test_ranks_are_averaged_over_the_attacks_that_all_have():
    found = ranking.rank(rows_of(THREE))
    assert found.attacks == ("badnets", "blended")
    assert found.left_out == ("sig",)
    # badnets: nft, ft, none; blended: none and ft share 1 and 2, nft is third
    assert found.defenses == (("ft", 1.75, (2, 1.5)), ("nft", 2, (1, 3)), ("none", 2.25, (3, 1.5)))


def test_a_mean_rank_is_that_of_the_ranking():
    rows = ranking.with_mean_ranks(rows_of(THREE))
    assert [row.mean_rank for row in rows] == [2.25, 1.75, 2, 2.25, 1.75, 2, None, None]
    lines = list(csv.DictReader(io.StringIO(tables.table(rows, "csv"))))
    assert [line["mean_rank"] for line in lines] == ["2.25", "1.75", "2.0"] * 2 + ["", ""]


def test_the_table_marks_the_lowest_and_names_what_was_left_out():
    text = ranking.table(ranking.rank(rows_of(THREE)), "markdown")
    lines = text.splitlines()
    assert lines[0] == "| defense | mean rank | badnets | blended |"
    assert lines[2:5] == [
        "| ft | **1.75** | 2 | 1.5 |",
        "| nft | <u>2.00</u> | 1 | 3 |",
        "| none | 2.25 | 3 | 1.5 |",
    ]
    assert lines[-1] == (
        "Rank of 3 defenses by mean DER, 1 for the highest, ties averaged, and its mean over 2 attacks. Left out, "
        "without some of the defenses: sig. Bold: lowest mean rank, underlined: second lowest."
    )
    assert r"ft & \textbf{1.75} & 2 & 1.5 \\" in ranking.table(
        ranking.rank(rows_of(THREE)), "latex"
    )


def test_without_a_common_attack_there_is_no_ranking():
    rows = rows_of({"badnets": {"ft": 0.7}, "blended": {"nft": 0.9}})
    found = ranking.rank(rows)
    assert found == ((), (), ("badnets", "blended"), (), (), "DER")
    assert ranking.table(found) == (
        "No ranking: there is no attack that all of these defenses were run on. Left out, without some of the "
        "defenses: badnets, blended."
    )
    assert [row.mean_rank for row in ranking.with_mean_ranks(rows)] == [None, None]


@pytest.mark.parametrize("style", FORMATS)
def test_the_report_has_the_ranking_below(style, tmp_path, capsys):
    made = [
        content(seed, {"name": attack}, ft_sam(1.0 + seed))
        for attack in ("badnets", "sig")
        for seed in range(3)
    ]
    write(tmp_path, *made)
    assert cli.main(["report", str(tmp_path), "--statistics", "--format", style]) == 0
    text = capsys.readouterr().out
    if style == "csv":
        assert {len(line) for line in csv.reader(io.StringIO(text))} == {
            len(next(csv.reader(io.StringIO(text))))
        }
        assert "mean_rank" in text
    else:
        assert text.index("95 ") < text.index("mean rank")
        assert cli.main(["report", str(tmp_path), "--format", style]) == 0
        assert "mean rank" not in capsys.readouterr().out
