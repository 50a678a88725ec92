"""Tasks that are measured otherwise than by the classes of images: their own tables, figures and pages, by role."""

import csv
import io
import logging
from pathlib import Path

import numpy as np
import pytest
from made_up import content, ft_sam, scenes, write

from bdjax import cli, report
from bdjax.checks import InputError
from bdjax.report import figures, grid, page, paired, ranking, samples, tables
from bdjax.report.curves import lines as curves
from bdjax.runs import soundness
from bdjax.runs.folder import SAMPLES

SWEPT = [
    scenes(seed, defense=ft_sam(rho), hits=int(8 / rho), precision=0.7)
    for rho in (1.0, 2.0, 4.0)
    for seed in (0, 1)
]
RUNS = [scenes(seed, hits=80, precision=0.8) for seed in (0, 1)] + SWEPT
CLASSES = [
    content(seed, defense=defense)
    for defense in (None, {"name": "ft"}, ft_sam(1.0))
    for seed in (0, 1)
]


def rows_of(*contents, **options):
    return report.summarize(
        [report.Record(Path(str(i)), one) for i, one in enumerate(contents)], **options
    )


def test_a_table_has_the_columns_that_the_records_describe():
    rows = curves.with_ranges(rows_of(*RUNS, intervals=True))
    head, _, *lines = tables.table(rows, "markdown").splitlines()
    heads = [cell.strip() for cell in head.strip("|").split("|")]
    assert heads[:5] == ["attack", "defense", "mAP", "ASR", "DER"]
    assert heads[8:] == [
        "mAP 95 %",
        "ASR 95 %",
        "DER 95 %",
        "ASR < 10 %",
        "mAP over ρ",
        "ASR over ρ",
    ]
    assert lines[0].startswith("| badnets | none | 80.0 ± 0.0 | 100.0 ± 0.0 |")
    assert lines[3].startswith("| badnets | ft_sam ρ=4 | 70.0 ± 0.0 | 2.5 ± 0.0 | **93.8 ± 0.0** |")
    latex = tables.table(rows, "latex")
    assert r"attack & defense & mAP & ASR & DER & n & seconds & gradients" in latex
    for text in (" ".join(tables.table(rows).split()), latex.replace("\\", "")):
        assert (
            "mAP: mean average precision (% on 100 test images). ASR: attack success rate (% of 80 trig"
            in text
        )
        assert "RA" not in text
        assert "ACC" not in text


def test_csv_has_the_names_that_the_records_describe():
    lines = list(csv.DictReader(io.StringIO(tables.table(rows_of(*RUNS), "csv"))))
    measured = [name for name in lines[0] if name.endswith("_mean")]
    assert measured[:3] == [
        "mean_average_precision_mean",
        "attack_success_rate_mean",
        "defense_effectiveness_rating_mean",
    ]
    assert len(measured) == 6  # and the costs
    assert [line["mean_average_precision_mean"] for line in lines] == ["0.8", "0.7", "0.7", "0.7"]
    assert {(line["clean_total"], line["attack_total"]) for line in lines} == {("100", "80")}


def test_the_curve_is_of_the_utility():
    (found,) = curves.find(rows_of(*RUNS))
    head, *_ = curves.as_csv(found).splitlines()
    assert head.startswith("defense.rho,attack,defense,n,mean_average_precision_mean")
    assert [metric.head for metric in found.drawn] == ["mAP", "ASR"]
    assert curves.with_ranges(rows_of(*RUNS))[1].ranges["defense.rho"].keys() == {
        "mean_average_precision",
        "attack_success_rate",
    }


# --- At chance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "chance", "told"),
    [
        (0.39, 0.4, ["network at chance after the defense (mAP 39.0 %)"]),
        (0.41, 0.4, []),
        (0.05, None, []),  # nobody knows what a guess gives
    ],
)
def test_chance_is_what_the_record_says(precision, chance, told):
    assert (
        soundness.told([soundness.of_defended(scenes(precision=precision, chance=chance))]) == told
    )


def test_an_attack_is_judged_as_everywhere():
    record = scenes()
    record["metrics"]["before"] |= {"attack_hits": 2, "attack_success_rate": 0.025}
    assert soundness.told([soundness.of_victim(record)]) == ["attack did not take (ASR 2.5 %)"]


def test_chance_of_an_attack_may_be_more_than_ten_percent():
    record = scenes()
    record["metrics"]["before"] |= {"attack_hits": 40, "attack_success_rate": 0.5}
    assert soundness.of_victim(record) == ()
    record["metrics"]["chance"]["attack_success_rate"] = 0.5
    assert soundness.told([soundness.of_victim(record)]) == ["attack did not take (ASR 50.0 %)"]


# --- Figures and page ------------------------------------------------------------------------------------------------


def with_images(folder, size=8):
    """Put test images beside the records of scenes, whose labels are texts, as a run with such a task does."""
    random = np.random.default_rng(0)
    label = np.array(["one + five", "two", "none"])
    arrays = {
        "label": label,
        "clean_before": label,
        "clean_after": np.array(["one", "two", "none"]),
    }
    arrays |= {
        "triggered_before": np.array(["zero + one", "zero", "zero"]),
        "triggered_after": label,
    }
    for name in samples.PREDICTIONS:
        arrays[f"{name}_hit"] = np.full(3, name == "triggered_before")
    for file in sorted(folder.rglob("record.json")):
        images = random.integers(0, 256, (3, size, size, 1), dtype=np.uint8)
        np.savez(file.with_name(SAMPLES), clean=images, triggered=255 - images, **arrays)


@pytest.fixture
def folder(tmp_path):
    runs = write(tmp_path / "runs", *RUNS)
    with_images(runs)
    return runs


def test_labels_that_are_texts_have_outcomes_and_names(folder):
    (sample,) = samples.read_samples(report.summarize(report.load(folder))).values()
    assert sample.class_name(sample.arrays["label"][0]) == "one + five"
    # zero + one is not all that the attacker wants of the label, and yet a hit, as the run says
    assert [sample.outcome(name, 0) for name in samples.PREDICTIONS] == [
        "right",
        "other",
        "hit",
        "right",
    ]
    assert samples.choose(sample, 5) == [0, 1, 2]


def test_hits_and_labels_of_another_kind_are_refused(folder):
    file = next(folder.rglob(SAMPLES))
    arrays = dict(np.load(file))
    for changed, held in (
        ({"clean_after": np.arange(3)}, "texts"),
        ({"clean_after_hit": np.arange(3)}, "truth values"),
    ):
        np.savez(file, **{**arrays, **changed})
        with pytest.raises(
            InputError,
            match=rf"{next(iter(changed))} in .* must hold {held} of the shape \(3,\), got",
        ):
            samples._read(report.load(file.parent)[0])


def test_figures_are_drawn_of_the_utility_and_the_attack(folder, tmp_path):
    pytest.importorskip("matplotlib")
    paths = figures.draw(report.load(folder), tmp_path / "figures", "svg")
    names = [
        "overview.svg",
        "summary.svg",
        "samples.svg",
        "sensitivity-defense.rho.svg",
        "summary.csv",
        "samples.csv",
    ]
    assert [path.name for path in paths] == [*names, "sensitivity-defense.rho.csv"]
    assert (
        paths[4]
        .read_text()
        .startswith("attack,defense,seed,run_id,mean_average_precision,attack_success_rate,")
    )


def test_a_page_says_what_was_measured(folder, tmp_path):
    text = page.write(report.load(folder), tmp_path / "report.html").read_text()
    for words in (
        "mAP: mean average precision (%)",  # an axis
        "Mean average precision against attack success",
        "<dt>mAP</dt>",
        "0.8000 → 0.7000",  # before and after, of a run
        "80 → 8 of 80",
        "highest mean DER",
        "the mean average precision is not",
        "one + five",
    ):
        assert words in text, words
    assert "ACC" not in text
    assert "accuracy" not in text.partition("<script>")[0].partition("</style>")[2]


# --- Several tasks ---------------------------------------------------------------------------------------------------

SAID = "These runs are of 2 tasks with different metrics, which share no table: ACC, ASR, RA, DER; mAP, ASR, DER."


def test_tasks_have_tables_of_their_own_and_a_line_says_so():
    rows = rows_of(*CLASSES, *RUNS)
    for format in ("console", "markdown", "latex"):
        said, rest = tables.table(rows, format).split("\n\n", 1)
        assert said == SAID
        assert rest == "\n\n".join(tables.table(own, format) for own in (rows[:3], rows[3:]))
    lines = list(csv.DictReader(io.StringIO(tables.table(rows, "csv"))))
    assert [bool(line["clean_accuracy_mean"]) for line in lines] == [True] * 3 + [False] * 4
    assert [bool(line["mean_average_precision_mean"]) for line in lines] == [False] * 3 + [True] * 4
    assert all(line["attack_success_rate_mean"] for line in lines)


def test_ranks_are_of_one_task():
    rows = rows_of(*CLASSES, *RUNS)
    said, first, second = ranking.tables(rows, "markdown").split("\n\n| ")
    assert said == SAID
    assert "ft_sam" in first
    assert "ft_sam ρ=4" in second
    assert [row.mean_rank for row in ranking.with_mean_ranks(rows)] == [
        2.0,
        2.0,
        2.0,
        4.0,
        3.0,
        2.0,
        1.0,
    ]


def test_pairs_of_several_tasks_are_compared_by_what_they_share():
    contents = [*CLASSES, *RUNS]
    records = [report.Record(Path(str(i)), one) for i, one in enumerate(contents)]
    found = paired.compare(records, "ft_sam rho=1", "none")
    heads = {}
    for one in found.comparisons:
        heads.setdefault(one.attack, []).append(one.metric.head)
    assert list(heads.values()) == [["DER", "ASR", "ACC"], ["DER", "ASR", "mAP"], ["DER", "ASR"]]
    assert list(heads)[-1] == paired.ALL
    own = paired.compare(records, "ft_sam rho=1", "none", ["mean_average_precision"])
    assert [(one.metric.head, one.n) for one in own.comparisons] == [("mAP", 2)]
    with pytest.raises(
        InputError, match="no run of 'ft' and 'none' has the metric mean_average_precision"
    ):
        paired.compare(records, "ft", "none", ["mean_average_precision"])
    assert "| mAP |" in paired.table(found, "markdown")


def test_figures_and_pages_of_several_tasks(tmp_path, caplog):
    pytest.importorskip("matplotlib")
    records = report.load(write(tmp_path / "runs", *CLASSES, *RUNS))
    with caplog.at_level(logging.WARNING):
        paths = figures.draw(records, tmp_path / "figures")
    assert SAID in caplog.messages
    drawn = [path.stem for path in paths if path.suffix == ".png"]
    assert drawn == [
        *(
            f"{page}-{kind}"
            for kind in ("clean_accuracy", "mean_average_precision")
            for page in ("overview", "summary")
        ),
        "sensitivity-defense.rho-mean_average_precision",
    ]
    file = page.write(records, tmp_path / "report.html")
    other = tmp_path / "report-mean_average_precision.html"
    assert f'<a href="{other.name}">mAP, ASR, DER</a>' in file.read_text()
    assert f'<a href="{file.name}">ACC, ASR, RA, DER</a>' in other.read_text()
    assert "mAP, ASR" not in file.read_text().replace(
        f'<a href="{other.name}">mAP, ASR, DER</a>', ""
    )
    with pytest.raises(InputError, match="records must be of one kind of task for one page"):
        page.html(records, tmp_path)


def test_the_commands_print_such_runs(tmp_path, capsys):
    write(tmp_path, *CLASSES, *RUNS)
    assert cli.main(["report", str(tmp_path), "--statistics"]) == 0
    printed = capsys.readouterr().out
    assert printed.count(SAID) == 2  # above the tables, and above the ranks
    assert (
        cli.main(
            ["compare", str(tmp_path), "--defenses", "ft_sam rho=1", "none", "--metric", "recall"]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert "defense_effectiveness_rating, mean_average_precision; got 'recall'" in error
    assert error.count("\n") == 1


# --- Descriptions from elsewhere -------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", grid.FORMATS)
def test_a_description_of_the_same_metrics_changes_nothing(format):
    described = [
        {**one, "metrics": {"description": DESCRIPTION, **one["metrics"]}} for one in CLASSES
    ]
    assert tables.table(rows_of(*described), format) == tables.table(rows_of(*CLASSES), format)
    assert tables.table(rows_of(*described[:3], *CLASSES[3:]), format) == tables.table(
        rows_of(*CLASSES), format
    )


DESCRIPTION = [metric.plain() for metric in report.Record(Path(), content()).metrics]
