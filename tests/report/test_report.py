"""Records to rows to tables to figures, on small made-up records whose statistics are known by hand."""

import csv
import errno
import io
import json
import logging
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from made_up import ATTACK_TOTAL, CLEAN_TOTAL, content, ft_sam, rates, rating_of, write

from bdjax import report
from bdjax.checks import InputError
from bdjax.report import figures, grid, layout, samples, tables
from bdjax.runs.record_format import COSTS
from bdjax.tasks.metrics import SINGLE_LABEL, names


def rows_of(folder, *records):
    return report.summarize(report.load([write(folder, *records)]))


def labels(rows):
    return [row.defense for row in rows]


@pytest.fixture
def several(tmp_path):
    """Two attacks, each with none, ft and ft_sam at two rhos, over three seeds."""
    plans = [
        ({"name": "none"}, 80, 0.5),
        ({"name": "ft"}, 60, 0.6),
        (ft_sam(2.0), 8, 0.9),
        (ft_sam(10.0), 4, 0.93),
    ]
    made = [
        content(seed, {"name": attack}, defense, hits - 2 * seed, rating)
        for attack in ("blended", "badnets")
        for defense, hits, rating in reversed(plans)
        for seed in (2, 0, 1)
    ]
    return write(tmp_path / "runs", *made)


def add_samples(folder, channels=1, size=8):
    random = np.random.default_rng(0)
    for file in folder.rglob("record.json"):
        images = random.integers(0, 256, (12, size, size, channels), dtype=np.uint8)
        label = np.arange(12, dtype=np.uint8) % 10
        attacked = np.zeros_like(label)
        np.savez(
            file.with_name("samples.npz"),
            clean=images,
            triggered=255 - images,
            label=label,
            clean_before=label,
            clean_after=label,
            triggered_before=attacked,
            triggered_after=label,
        )


# --- Reading ---


def test_load_takes_a_run_a_record_and_a_tree(tmp_path):
    write(tmp_path / "a", content(0))
    write(tmp_path / "b" / "deep", content(1))
    run = tmp_path / "a" / "run000"
    assert [record.seed for record in report.load([tmp_path])] == [0, 1]
    assert [record.run_id for record in report.load([run])] == ["badnets-none-0"]
    assert report.load([run / "record.json"])[0].folder == run
    assert len(report.load([run, tmp_path, run / "record.json"])) == 2, "the same file counts once"
    assert len(report.load(str(run))) == 1, "one path is not an iterable of letters"


def test_load_does_not_look_inside_a_run(tmp_path):
    write(tmp_path, content(0))
    write(tmp_path / "run000" / "inner", content(1))
    assert [record.seed for record in report.load([tmp_path])] == [0]


def test_unfinished_runs_are_counted(tmp_path, caplog):
    write(tmp_path, content(0), {**content(1), "status": "running"})
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / "config.yaml").write_text("")
    with caplog.at_level(logging.WARNING):
        assert len(report.load([tmp_path])) == 1
    assert [record.message for record in caplog.records] == [
        "Left out 2 runs without a finished record."
    ]


def test_repeated_records_are_told(tmp_path, caplog):
    first, again = content(0), content(0, hits=70, data={"data_dir": "elsewhere"})
    with caplog.at_level(logging.WARNING):
        (row,) = rows_of(tmp_path, first, again)
    assert row.n == 1
    assert row.statistics["attack_success_rate"].mean == 4 / ATTACK_TOTAL
    assert [record.message for record in caplog.records] == [
        "Left out 1 record with the config and seed of another: badnets-none-0."
    ]


def test_nothing_to_load(tmp_path):
    with pytest.raises(InputError, match=r"no file or folder .*nowhere"):
        report.load([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="no record of a finished run under"):
        report.load([tmp_path])
    write(tmp_path, {**content(0), "status": "running"})
    with pytest.raises(InputError, match=r"\(1 unfinished\)"):
        report.load([tmp_path])
    write(tmp_path / "more", {**content(1), "status": "diverged"})
    with pytest.raises(InputError, match=r"run000, .*run000 \(1 unfinished, 1 diverged\)"):
        report.load([tmp_path / "run000", tmp_path / "more" / "run000"])


def test_a_run_that_is_named_and_has_no_finished_record_is_left_out(tmp_path, caplog):
    """As the shell names it where it puts in all folders for ``runs/*``."""
    write(
        tmp_path,
        content(0),
        {**content(1), "status": "running"},
        {**content(2), "status": "diverged"},
    )
    with caplog.at_level(logging.WARNING):
        (record,) = report.load(sorted(tmp_path.iterdir()))
    assert record.seed == 0
    assert caplog.messages == [
        "Left out 1 run without a finished record.",
        "Left out 1 run that diverged.",
    ]


@pytest.mark.parametrize("hidden", ["", "run001"])
def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch, hidden):
    """Nothing of it would be in the table, and nobody would know."""
    write(tmp_path, content(0), content(1))
    scandir = os.scandir

    def refusing(path):
        if os.fspath(path) == os.fspath(tmp_path / hidden):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError) as caught:
        report.load([tmp_path])
    assert str(caught.value) == f"{tmp_path / hidden} cannot be read: Permission denied."


def test_a_folder_that_is_removed_meanwhile_is_none(tmp_path, monkeypatch):
    write(tmp_path, content(0), content(1))
    scandir = os.scandir

    def removed(path):
        if os.fspath(path).endswith("run001"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", removed)
    assert [record.seed for record in report.load([tmp_path])] == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"record\.json is not valid JSON"),
        ("\udcff", r"record\.json is not valid JSON"),
        ("[]", r"record\.json lacks the key schema_version"),
        (
            json.dumps({**content(), "schema_version": 2}),
            r"schema_version 2, and this bdjax reads only 1",
        ),
    ],
)
def test_unreadable_records(tmp_path, text, message):
    write(tmp_path, content())
    (tmp_path / "run000" / "record.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message) as caught:
        report.load([tmp_path])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        "run_id",
        "config.seed",
        "config.attack.name",
        "metrics.before.clean_total",
        "metrics.after.attack_success_rate",
        "metrics.defense_effectiveness_rating",
        "cost.run_seconds",
        "data.class_names",
    ],
)
@pytest.mark.parametrize("change", ["missing", "wrong"])
def test_required_keys_are_named(tmp_path, key, change):
    record = content()
    *sections, last = key.split(".")
    inner = record
    for section in sections:
        inner = inner[section]
    if change == "missing":
        del inner[last]
    else:
        inner[last] = True
    write(tmp_path, record)
    with pytest.raises(InputError, match=rf"{re.escape(key)}\b") as caught:
        report.load([tmp_path])
    assert str(tmp_path / "run000" / "record.json") in str(caught.value)


# --- Rows ---


def test_statistics_by_hand(tmp_path):
    made = [
        content(seed, defense=ft_sam(2.0), hits=hits, rating=rating, seconds=seconds)
        for seed, hits, rating, seconds in [(0, 4, 0.6, 1.0), (1, 8, 0.7, 2.0), (2, 24, 0.8, 6.0)]
    ]
    (row,) = rows_of(tmp_path, *made)
    # hits / 80 = .05, .1, .3: mean .15; deviations -.1, -.05, .15; squares sum to .035; over n - 1 = 2
    assert row.n == 3
    assert row.seeds == (0, 1, 2)
    assert row.statistics["attack_success_rate"] == pytest.approx((0.15, 0.0175**0.5))
    assert row.statistics["defense_effectiveness_rating"] == pytest.approx((0.7, 0.1))
    assert row.run_seconds == pytest.approx((3.0, 7.0**0.5))
    assert row.costs["compile_seconds"] == pytest.approx((1.5, 0.0))
    assert row.statistics["clean_accuracy"] == pytest.approx((0.9, 0.0))
    assert row.statistics["robust_accuracy"] == pytest.approx((0.75, 0.0))
    assert row.gradient_evaluations == pytest.approx((200, 0))
    assert row.low_attack_success_share == pytest.approx(1 / 3), "exactly 10 % is not below it"
    assert (row.totals("clean_total"), row.totals("attack_total")) == (
        (CLEAN_TOTAL,),
        (ATTACK_TOTAL,),
    )


def test_groups_differ_in_anything_but_seed_and_data_folder(tmp_path):
    rows = rows_of(
        tmp_path,
        content(0, defense=ft_sam(2.0)),
        content(1, defense=ft_sam(2), data={"data_dir": "/elsewhere"}),
        content(0, defense=ft_sam(4.0)),
        content(0, defense=ft_sam(2.0), training={"epochs": 30}),
        content(0, defense=ft_sam(2.0), holdout={"share": 0.1}),
    )
    assert sorted(row.n for row in rows) == [1, 1, 1, 2]


def test_labels_show_what_tells_rows_apart(tmp_path):
    rows = rows_of(
        tmp_path,
        content(0),
        content(0, defense={"name": "anp"}),
        content(0, defense={"name": "ft", "epochs": 7}),
        content(0, defense=ft_sam(10.0)),
        content(0, defense=ft_sam(2.0)),
        content(0, defense=ft_sam(0.5)),
    )
    assert labels(rows) == ["none", "ft", "anp", "ft_sam ρ=0.5", "ft_sam ρ=2", "ft_sam ρ=10"]
    assert {(row.data, row.model, row.attack) for row in rows} == {
        ("digits", "preact_resnet18", "badnets")
    }
    assert rows[3].settings == {"defense.rho": 0.5}


def test_the_precision_of_products_stands_with_the_network_where_it_differs(tmp_path):
    tf32 = content(0)
    tf32["config"]["matmul_precision"] = "tensorfloat32"
    rows = rows_of(tmp_path, content(0), content(1), tf32)
    assert [(row.model, row.n) for row in rows] == [
        ("preact_resnet18", 2),
        ("preact_resnet18 matmul_precision=tensorfloat32", 1),
    ]
    assert [row.model for row in rows_of(tmp_path / "alone", tf32)] == ["preact_resnet18"]


def test_labels_of_victims_and_holdouts(tmp_path):
    rows = rows_of(
        tmp_path,
        content(0),
        content(0, attack={"poison_rate": 0.01}),
        content(0, training={"epochs": 30}),
        content(0, holdout={"share": 0.1}),
        content(0, attack={"name": "blended", "alpha": 0.2}),
        content(0, data={"name": "cifar10", "image_size": 32}, model={"width": 64}),
    )
    named = [(row.data, row.model, row.attack, row.defense) for row in rows]
    slow, fast, share = "training.epochs=30", "training.epochs=20", "none holdout.share="
    narrow = ("digits", "preact_resnet18 width=8")
    assert named == [
        ("cifar10", "preact_resnet18 width=64", "badnets poison_rate=0.1", "none"),
        (*narrow, f"badnets poison_rate=0.01 {fast}", f"{share}0.05"),
        (*narrow, f"badnets poison_rate=0.1 {fast}", f"{share}0.05"),
        (*narrow, f"badnets poison_rate=0.1 {fast}", f"{share}0.1"),
        (*narrow, f"badnets poison_rate=0.1 {slow}", f"{share}0.05"),
        (*narrow, f"blended {fast}", f"{share}0.05"),
    ]


def test_order_does_not_depend_on_the_records(several):
    records = report.load([several])
    forward, backward = report.summarize(records), report.summarize(records[::-1])
    assert [row.attack for row in forward] == ["badnets"] * 4 + ["blended"] * 4
    assert labels(forward) == ["none", "ft", "ft_sam ρ=2", "ft_sam ρ=10"] * 2
    for format in grid.FORMATS:
        assert tables.table(forward, format) == tables.table(backward, format)


def test_best_of_each_victim(several):
    rows = report.summarize(report.load([several]))
    assert [row.defense for row in rows if row in report.best(rows)] == ["ft_sam ρ=10"] * 2


def test_runner_up_is_the_second_rating(tmp_path):
    ratings = {"ft": 0.7, "nft": 0.9, "sft": 0.7, "none": 0.5}
    hits = {"none": 80}
    made = (
        content(defense={"name": name}, hits=hits.get(name, 4), rating=value)
        for name, value in ratings.items()
    )
    write(tmp_path, *made)
    rows = report.summarize(report.load([tmp_path]))
    assert {row.defense for row in report.runners_up(rows)} == {"ft", "sft"}
    assert not report.runners_up([row for row in rows if row.defense in ("ft", "sft")])


def test_no_defense_is_best_where_all_do_harm(tmp_path):
    rows = rows_of(
        tmp_path,
        content(hits=80, rating=0.5),
        content(defense={"name": "ft"}, hits=80, rating=0.46),
    )
    assert [row.defense for row in report.best(rows)] == ["none"]


# --- Tables ---


def test_console(several):
    rows = report.summarize(report.load([several]))
    text = tables.table(rows, "console")
    lines = text.splitlines()
    assert lines[0] == "badnets"
    assert lines[1].split() == ["defense", "ACC", "ASR", "RA", "DER", "n", "seconds", "gradients"]
    # hits 8, 6, 4 of 80: 7.5 ± 2.5 %
    assert (
        re.sub(" +", " ", lines[5])
        == "ft_sam ρ=2 90.0 ± 0.0 7.5 ± 2.5 75.0 ± 0.0 90.0 ± 0.0 + 3 2.0 ± 0.0 200"
    )
    assert [line.split()[1] for line in lines if " * " in line] == ["ρ=10", "ρ=10"]
    caption = " ".join(text.split())
    assert "% of 100 test images" in caption
    assert "% of 80 triggered ones" in caption
    assert "\x1b" not in text, "no color codes where nobody looks at a terminal"
    assert len({line.index("±") for line in lines if line.startswith(("none", "ft"))}) == 1


def test_markdown(several):
    rows = report.summarize(report.load([several]))
    grid, _, caption = tables.table(rows, "markdown").partition("\n\n")
    lines = grid.splitlines()
    assert {line.count("|") for line in lines} == {10}
    assert len(lines) == 2 + len(rows)
    rates = "90.0 ± 0.0 | 7.5 ± 2.5 | 75.0 ± 0.0 | <u>90.0 ± 0.0</u>"
    assert lines[4] == f"| badnets | ft_sam ρ=2 | {rates} | 3 | 2.0 ± 0.0 | 200 |"
    assert "| **93.0 ± 0.0** |" in lines[5]
    assert caption.startswith(
        "digits, preact_resnet18: mean ± sample standard deviation over n seeds."
    )


def test_markdown_keeps_its_columns(tmp_path):
    rows = rows_of(tmp_path, content(0, attack={"name": "a|b"}))
    assert tables.table(rows, "markdown").splitlines()[2].startswith("| a\\|b | none |")


def test_latex(several):
    rows = report.summarize(report.load([several]))
    text = tables.table(rows, "latex")
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {8}
    assert body[3] == (
        r" & ft\_sam $\rho$=2 & 90.0 $\pm$ 0.0 & 7.5 $\pm$ 2.5 & 75.0 $\pm$ 0.0 & \underline{90.0 $\pm$ 0.0}"
        r" & 3 & 2.0 $\pm$ 0.0 & 200 \\"
    )
    assert r"\textbf{93.0 $\pm$ 0.0}" in body[4]
    assert text.count(r"\midrule") == 2
    assert text.isascii()
    assert text.count("{") == text.count("}")
    assert not re.search(r"(?<!\\)[_%#]", text)


def test_latex_escapes(tmp_path):
    rows = rows_of(tmp_path, content(0, attack={"name": r"a_b%c&d#e$f{g}~^\h"}))
    escaped = r"a\_b\%c\&d\#e\$f\{g\}\textasciitilde{}\textasciicircum{}\textbackslash{}h"
    assert tables.table(rows, "latex").splitlines()[6].startswith(escaped + " & none &")


def test_csv_is_exact(several):
    rows = report.summarize(report.load([several]))
    read = list(csv.DictReader(io.StringIO(tables.table(rows, "csv"))))
    assert [line["attack"] for line in read] == [row.attack for row in rows]
    assert [line["defense.rho"] for line in read] == ["", "", "2.0", "10.0"] * 2
    assert {line["seeds"] for line in read} == {"0 1 2"}
    assert {(line["clean_total"], line["attack_total"]) for line in read} == {("100", "80")}
    for line, row in zip(read, rows, strict=True):
        for name in names(SINGLE_LABEL) + COSTS:
            assert float(line[f"{name}_mean"]) == {**row.statistics, **row.costs}[name].mean
            assert float(line[f"{name}_std"]) == {**row.statistics, **row.costs}[name].std
        assert float(line["low_attack_success_share"]) == row.low_attack_success_share


@pytest.mark.parametrize("format", grid.FORMATS)
def test_one_run_has_no_deviation(tmp_path, format):
    text = tables.table(rows_of(tmp_path, content(0, defense=ft_sam(2.0))), format)
    assert "±" not in text
    assert r"\pm" not in text
    if format == "csv":
        (line,) = csv.DictReader(io.StringIO(text))
        assert line["clean_accuracy_std"] == ""
        assert line["clean_accuracy_mean"] == "0.9"
    else:
        assert "one seed" in text


def test_decimals_and_undefined_values(tmp_path):
    made = content(0, hits=1, rating=0.9)
    # In memory alone: no record that is read has it
    made["metrics"]["after"]["robust_accuracy"] = float("nan")
    text = tables.table(report.summarize([report.Record(tmp_path, made)]), "markdown", decimals=2)
    assert "| 90.00 | 1.25 | – | **90.00** | 1 | 2.0 |" in text


def test_denominators_that_differ_are_both_named(tmp_path):
    other = content(0, attack={"name": "blended"})
    victim, defended = (rates(99, 90, 0, 90), rates(90, 4, 60, 90))
    metrics = {
        "before": victim,
        "after": defended,
        "defense_effectiveness_rating": rating_of(victim, defended),
    }
    other["metrics"] = metrics
    text = tables.table(rows_of(tmp_path, content(0), other), "markdown")
    assert "(% of 80 for badnets; 90 for blended triggered ones)" in text


def test_table_refuses(several):
    rows = report.summarize(report.load([several]))
    with pytest.raises(InputError, match=r"got 'markdwn' \(did you mean 'markdown'\?\)"):
        tables.table(rows, "markdwn")
    with pytest.raises(InputError, match="no rows"):
        tables.table([], "csv")


# --- Smoothness ---


def add_smoothness(record, **values):
    mixed = {"largest_eigenvalue": 500.0, "hessian_trace": 0.0251, "fisher_trace": 3e-5, **values}
    record.folder.joinpath("smoothness.json").write_text(json.dumps({"after": {"mixed": mixed}}))


def test_smoothness_is_summed_over_seeds(tmp_path):
    write(
        tmp_path,
        *(
            content(seed, defense=defense)
            for defense in (ft_sam(2.0), {"name": "ft"})
            for seed in (0, 1)
        ),
    )
    records = report.load([tmp_path])
    measured = [record for record in records if record.config["defense"]["name"] == "ft_sam"]
    for record, eigenvalue in zip(measured, (500.0, 700.0), strict=True):
        add_smoothness(record, largest_eigenvalue=eigenvalue)
    ft, sam = report.summarize(records, sharpness=True)
    assert sam.sharpness["largest_eigenvalue"] == pytest.approx((600, 2**0.5 * 100))
    assert np.isnan(ft.sharpness["fisher_trace"].mean)
    lines = {style: tables.table([ft, sam], style).splitlines() for style in grid.FORMATS}
    assert lines["markdown"][2].endswith("| – | – | – |")
    assert lines["markdown"][3].endswith("| 600 ± 141 | 0.0251 ± 0.0000 | 3.00e-05 ± 0.00e+00 |")
    assert r"$\lambda_{\max}$ & Tr(H) & Tr(F) \\" in lines["latex"][4]
    assert [line.split()[-3:] for line in lines["console"][1:4:2]] == [
        ["λ_max", "Tr(H)", "Tr(F)"],
        ["–"] * 3,
    ]
    unmeasured, row = csv.DictReader(lines["csv"])
    assert float(row["largest_eigenvalue_mean"]) == 600
    assert unmeasured["hessian_trace_mean"] == unmeasured["hessian_trace_std"] == ""


def test_smoothness_of_some_seeds_is_none(tmp_path):
    write(tmp_path, content(0), content(1), content(2))
    records = report.load([tmp_path])
    add_smoothness(records[0])
    add_smoothness(records[1], hessian_trace=None)
    records[2].folder.joinpath("smoothness.json").write_text('{"curve": {}}')
    (row,) = report.summarize(records, sharpness=True)
    assert all(np.isnan(statistic.mean) for statistic in row.sharpness.values())
    (two,) = report.summarize(records[:2], sharpness=True)
    assert [np.isnan(statistic.mean) for statistic in two.sharpness.values()] == [
        False,
        True,
        False,
    ]
    (plain,) = report.summarize(records)
    assert "λ" not in tables.table([plain])


@pytest.mark.parametrize(
    "text", ["{", '{"after": 3}', '{"after": {"mixed": {"largest_eigenvalue": "x"}}}']
)
def test_damaged_smoothness(tmp_path, text):
    (record,) = report.load([write(tmp_path, content(0))])
    record.folder.joinpath("smoothness.json").write_text(text)
    with pytest.raises(InputError, match=r"smoothness\.json is damaged"):
        report.summarize([record], sharpness=True)


# --- Stealth ---


def seen(**values):
    return {
        "test": {"psnr": 30.0, "ssim": 0.9, "linf": 0.2, "l2": 1.5, "changed_share": 0.05, **values}
    }


def test_stealth_is_summed_over_seeds(tmp_path):
    write(tmp_path, content(0) | {"stealth": seen()}, content(1) | {"stealth": seen(psnr=32.0)})
    (row,) = report.summarize(report.load([tmp_path]), stealth=True)
    assert row.stealth["psnr"] == pytest.approx((31, 2**0.5))
    lines = {style: tables.table([row], style).splitlines() for style in grid.FORMATS}
    assert lines["markdown"][0].endswith("| PSNR | SSIM | ℓ∞ | ℓ2 | changed |")
    assert lines["markdown"][2].endswith(
        "| 31.0 ± 1.4 | 0.900 ± 0.000 | 0.200 ± 0.000 | 1.50 ± 0.00 | 5.0 ± 0.0 |"
    )
    assert r"$\ell$$\infty$" in lines["latex"][4]
    (only,) = csv.DictReader(lines["csv"])
    assert float(only["psnr_mean"]) == 31
    (plain,) = report.summarize(report.load([tmp_path]))
    assert "PSNR" not in tables.table([plain])


@pytest.mark.parametrize(
    "given", [{}, {"stealth": seen(psnr=None)}], ids=["of an older bdjax", "nothing changed"]
)
def test_stealth_without_a_value_is_a_dash(tmp_path, given):
    write(tmp_path, content(0) | given)
    (row,) = report.summarize(report.load([tmp_path]), stealth=True)
    assert "| – |" in tables.table([row], "markdown")


@pytest.mark.parametrize("damaged", [3, {"test": 3}, {"test": {"psnr": "x"}}])
def test_damaged_stealth(tmp_path, damaged):
    write(tmp_path, content(0) | {"stealth": damaged})
    with pytest.raises(InputError, match=r"stealth in .*record\.json is damaged"):
        report.summarize(report.load([tmp_path]), stealth=True)


# --- Figures ---


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("channels", [1, 3])
def test_figures(several, tmp_path, channels):
    image = pytest.importorskip("matplotlib.image")
    add_samples(several, channels)
    paths = figures.draw(report.load([several]), tmp_path / "deep" / "figures")
    names = ["overview.png", "summary.png", "samples.png", "summary.csv", "samples.csv"]
    assert [path.name for path in paths] == names
    for path in paths[:3]:
        pixels = image.imread(path)
        assert pixels.shape[1] == 1600
        assert pixels[..., :3].std() > 0.05, "something is drawn"
    runs = read_csv(paths[3])
    assert len(runs) == 24
    assert runs[6] | {"run_id": ""} == {
        "attack": "badnets",
        "defense": "ft_sam ρ=2",
        "seed": "0",
        "run_id": "",
        "clean_accuracy": "0.9",
        "attack_success_rate": "0.1",
        "robust_accuracy": "0.75",
        "defense_effectiveness_rating": "0.9",
    }
    images = read_csv(paths[4])
    assert len(images) == 24
    assert {(line["seed"], line["defense"]) for line in images} == {("0", "ft_sam ρ=10")}


def test_figures_are_the_same_twice(tmp_path):
    pytest.importorskip("matplotlib")
    runs = write(
        tmp_path / "runs",
        content(0),
        content(0, defense=ft_sam(2.0)),
        content(1, defense=ft_sam(2.0)),
    )
    add_samples(runs)
    records = report.load([runs])
    for format in layout.FORMATS:
        first = figures.draw(records, tmp_path / "first", format)
        second = figures.draw(records[::-1], tmp_path / "second", format)
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_figures_without_images(several, tmp_path, caplog):
    pytest.importorskip("matplotlib")
    with caplog.at_level(logging.WARNING):
        paths = figures.draw(report.load([several]), tmp_path)
    assert [path.name for path in paths] == ["overview.png", "summary.png", "summary.csv"]
    assert [record.message for record in caplog.records] == [
        "No test images are drawn of badnets, blended: no run of theirs has a samples.npz."
    ]


def test_pictured_run_falls_back_to_one_with_images(several):
    add_samples(several)
    records = report.load([several])
    for record in records:
        if record.config["defense"].get("rho") == 10.0:
            (record.folder / "samples.npz").unlink()
    sample = samples.read_samples(report.summarize(records))["badnets"]
    assert (sample.row.defense, sample.record.seed, sample.best) == ("ft", 0, False)


@pytest.mark.parametrize(
    ("label_map", "expected"), [("all_to_one", [3, 3, 3, 3]), ("all_to_all", [4, 0, 6, 6])]
)
def test_outcomes(tmp_path, label_map, expected):
    record = report.Record(tmp_path, content(0, attack={"label_map": label_map, "target_label": 3}))
    label = np.array([3, 9, 5, 5])
    attacker = samples.attacker_label(record, label)
    assert attacker.tolist() == expected
    arrays = {"label": label, "triggered_after": np.array([3, expected[1], 5, 8])}
    sample = samples.Sample(None, record, True, arrays, attacker)  # type: ignore[arg-type]
    assert [sample.outcome("triggered_after", i) for i in range(4)] == [
        "right",
        "hit",
        "right",
        "other",
    ]


def test_a_target_by_name_is_drawn_as_its_number(tmp_path):
    record = report.Record(tmp_path, content(0, attack={"target_label": "class 7"}))
    assert samples.attacker_label(record, np.array([3, 9])).tolist() == [7, 7]
    record.content["data"]["target_class"] = (
        "class 8"  # as the run found it, in whatever spelling of Unicode
    )
    assert samples.attacker_label(record, np.array([3])).tolist() == [8]
    record = report.Record(tmp_path, content(0, attack={"target_label": "nowhere"}))
    assert samples.attacker_label(record, np.array([3])).tolist() == [-1]


def test_columns_show_many_classes_and_no_target(several):
    add_samples(several)
    sample = samples.read_samples(report.summarize(report.load([several])))["badnets"]
    assert samples.choose(sample, 5) == [1, 2, 3, 4, 5]  # image 0 is of the target class
    assert samples.choose(sample, 99) == [*range(1, 10), 11]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "lacks the array label"),
        (
            {"label": np.zeros(3, np.int32)},
            r"label in .*samples\.npz must hold whole numbers of the shape \(12,\)",
        ),
        ({"clean": np.zeros((12, 8, 8), np.uint8)}, r"clean in .*samples\.npz must have the shape"),
        (
            {"triggered": np.zeros((12, 8, 8, 1), np.float32)},
            "triggered in .* must hold whole numbers",
        ),
        ({"label": np.array([{}] * 12)}, r"samples\.npz is damaged"),
    ],
)
def test_damaged_images(tmp_path, change, message):
    pytest.importorskip("matplotlib")
    write(tmp_path / "runs", content(0))
    add_samples(tmp_path)
    file = tmp_path / "runs" / "run000" / "samples.npz"
    arrays = {**np.load(file), **change}
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=message):
        figures.draw(report.load([tmp_path]), tmp_path / "figures")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"samples\.npz is damaged"):
        figures.draw(report.load([tmp_path]), tmp_path / "figures")


def test_draw_refuses(several, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    records = report.load([several])
    with pytest.raises(InputError, match="no records"):
        figures.draw([], tmp_path)
    with pytest.raises(InputError, match="format must be one of png, pdf, svg"):
        figures.draw(records, tmp_path, "bmp")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        figures.draw(records, tmp_path / "file")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'bdjax\[plots\]'"):
        figures.draw(records, tmp_path)


def test_imports_are_light():
    code = "import sys, bdjax.report, bdjax.report.figures; print(*{'jax', 'matplotlib', 'pandas'} & set(sys.modules))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
        == "\n"
    )
