"""Published values beside made-up records: differences by hand, missing cells, every format."""

from __future__ import annotations

import csv
import json

import made_up
import pytest

from bdjax.checks import InputError
from bdjax.report import comparison, published
from bdjax.report.records import Record

BLENDED = {"paper": "ft-sam", "table": "Table 1", "attack": "blended"}


def value(metric, defense="ft_sam", **columns):
    (found,) = published.select(**{**BLENDED, "defense": defense, "metric": metric, **columns})
    return found


def runs(folder, hits=(4, 8), **options):
    """Runs whose rates after the defense are ACC 90 %, ASR hits / 80, RA 75 %, rating 90 %."""
    content = [made_up.content(seed, hits=hit, **options) for seed, hit in enumerate(hits)]
    made_up.write(folder, *content)
    return [Record(folder / f"run{i:03}", record) for i, record in enumerate(content)]


def test_a_cell_has_mean_deviation_and_difference_in_the_published_unit(tmp_path):
    cell = comparison.fill(value("asr"), [runs(tmp_path)])
    assert cell.ours == (5.0, 10.0)  # of 80 triggered images
    assert cell.seeds == (0, 1)
    assert cell.statistic == pytest.approx((7.5, 12.5**0.5))
    assert cell.difference == pytest.approx(7.5 - 4.91)


MEASURED = {
    "acc": 90,
    "asr": 5,
    "ra": 75,
    "lcr": 75,
    "der": 93,
    "acc_drop": 9,
    "asr_drop": 95,
    "runtime_s": 2,
}


@pytest.mark.parametrize(("metric", "measured"), MEASURED.items())
def test_every_metric_of_a_record(tmp_path, metric, measured):
    assert comparison.measure(runs(tmp_path)[0], metric) == pytest.approx(measured)


def test_sharpness_is_that_of_the_mixed_images_where_it_was_measured(tmp_path):
    (record,) = runs(tmp_path, hits=(4,))
    sharp = published.select(
        paper="sft", table="Table 15", attack="blended", defense="fsft", metric="lambda_max"
    )[0]
    assert comparison.fill(sharp, [[record]]).why == comparison.NOT_MEASURED
    measured = {"after": {"mixed": {"largest_eigenvalue": 3.0, "hessian_trace": 20.0}}}
    (record.folder / "smoothness.json").write_text(json.dumps(measured))
    assert comparison.fill(sharp, [[record]]).ours == (3.0,)
    assert comparison.measure(record, "trace_h") == 20


def test_a_mean_over_attacks_is_taken_seed_by_seed_where_all_have_the_seed(tmp_path):
    first, second = runs(tmp_path / "a", hits=(4, 8)), runs(tmp_path / "b", hits=(12, 16, 20))
    average = value("asr", attack="avg")
    cell = comparison.fill(average, [first, second])
    assert (cell.ours, cell.seeds) == ((10.0, 15.0), (0, 1))
    assert comparison.fill(average, [first, []]) == comparison.Cell(average, why=comparison.NOT_RUN)


@pytest.fixture
def cells(tmp_path):
    found = runs(tmp_path)
    noted = published.select(
        paper="ft-sam", table="Table 3", attack="ssba", defense="none", metric="acc"
    )[0]
    return [
        comparison.fill(value("acc"), [found]),
        comparison.fill(value("asr"), [found], "1 of 3 diverged"),
        comparison.fill(value("acc", "anp"), [], "no defense anp"),
        comparison.fill(value("asr", "anp"), [], "no defense anp"),
        comparison.fill(value("acc", "ft"), [[]]),
        comparison.fill(noted._replace(table="Table 1"), [found]),
    ]


def test_the_console_table_shows_every_value_and_says_what_is_missing(cells):
    text = comparison.table(cells, "DEBUG SIZE.")
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
    ours = "92.44 90.0 ± 0.0 (2) -2.4 4.91 7.5 ± 3.5 (2) +2.6 1 of 3 diverged"
    assert lines["ft_sam"][2:] == ours.split()
    assert lines["anp"] == ["anp", "5%", "93.00", "–", "57.38", "–", "no", "defense", "anp"]
    assert lines["none"][:2] == ["none", "84.49†"]
    assert lines["ft"][-2:] == ["not", "run"]
    table = [line for line in text.splitlines() if line.startswith(("anp", "ft "))]
    places = [
        line.index(why) for line, why in zip(table, ("no defense anp", "not run"), strict=True)
    ]
    assert len(set(places)) == 1  # words begin below each other
    caption = " ".join(text.split())
    assert "ft-sam, Table 1. Ours: DEBUG SIZE." in caption
    assert "3 of 6 values have ours. Missing: no defense anp (2); not run (1)." in caption
    assert "†: doubtful" in caption


def test_csv_has_a_line_for_each_value(cells):
    rows = list(csv.DictReader(comparison.table(cells, "", "csv").splitlines()))
    assert [row["metric"] for row in rows] == ["acc", "asr", "acc", "asr", "acc", "acc"]
    asr = rows[1]
    assert [
        float(asr[name]) for name in ("published", "ours", "ours_std", "difference")
    ] == pytest.approx([4.91, 7.5, 12.5**0.5, 2.59])
    assert (asr["n"], asr["seeds"], asr["missing"]) == ("2", "0 1", "1 of 3 diverged")
    assert (rows[2]["ours"], rows[2]["missing"]) == ("", "no defense anp")
    assert rows[5]["note"].startswith("shifted baseline row")


def test_markdown_and_latex_have_the_same_cells(cells):
    markdown = comparison.table(cells, "full size.", "markdown").splitlines()
    bars = {line.count("|") for line in markdown[:-2]}
    assert len(bars) == 1  # every line has as many columns
    ours = "92.44 | 90.0 ± 0.0 (2) | -2.4 | 4.91 | 7.5 ± 3.5 (2) | +2.6 | 1 of 3 diverged"
    assert f"| blended | ft_sam 5% | {ours} |" in markdown
    assert markdown[1] == "| --- | --- |" + " ---: |" * 6 + " --- |"
    latex = comparison.table(cells, "full size.", "latex")
    assert r"\begin{tabular}{llrrrrrrl}" in latex
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in body} == {8}
    assert r"blended & ft\_sam 5\% & 92.44 & 90.0 $\pm$ 0.0 (2) & -2.4 & 4.91" in latex
    assert r"84.49$^\dagger$" in latex
    assert not set("†–−±") & set(latex)


def test_settings_that_differ_within_a_table_are_in_the_names():
    both = published.select(
        paper="sft", table="Table 16", attack="blended", defense="fsft", metric="acc"
    )
    text = comparison.table([comparison.fill(value, []) for value in both], "full size.")
    assert [line for line in text.splitlines() if line.startswith("blended")] == [
        "blended 25%",
        "blended 35%",
        "blended 50%",
    ]


def test_mistakes_are_refused_in_one_line(cells, tmp_path):
    for call, message in (
        (lambda: comparison.table([], "x"), "no published values"),
        (
            lambda: comparison.table(cells, "x", "html"),
            "format must be one of console, .*; got 'html'",
        ),
        (
            lambda: comparison.measure(runs(tmp_path / "more")[0], "bleu"),
            "metric must be one of acc",
        ),
    ):
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
