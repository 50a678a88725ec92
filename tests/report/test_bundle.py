"""Records in one file: what is made of them is what is made of the runs, and every fault is told with its line."""

import json
import logging
import re

import pytest
from made_up import content, ft_sam, write

from bdjax import cli, report, saved
from bdjax.checks import InputError
from bdjax.report import bundle, paired, tables
from bdjax.report.grid import FORMATS


@pytest.fixture
def runs(tmp_path):
    """Runs with a history, a data folder, stealth and, some of them, smoothness."""
    made = [
        {
            **content(seed, {"name": attack}, defense, hits, data={"data_dir": "/somewhere/data"}),
            "history": [{"loss": 0.5}] * 3,
            "stealth": {
                "test": {
                    "psnr": 25.0 + seed,
                    "ssim": 0.1 / 3,
                    "linf": 0.5,
                    "l2": 1.0,
                    "changed_share": 0.1,
                }
            },
        }
        for attack in ("sig", "badnets")
        for defense, hits in ((ft_sam(2.0), 4), ({"name": "ft"}, 60))
        for seed in (1, 0)
    ]
    folder = write(tmp_path / "runs", *made)
    for number in (0, 1):
        measured = {"largest_eigenvalue": 0.1 + number, "hessian_trace": 2.0, "fisher_trace": 3.0}
        file = folder / f"run{number:03}" / "smoothness.json"
        file.write_text(json.dumps({"settings": {"images": 200}, "after": {"mixed": measured}}))
    return folder


def test_the_tables_of_a_bundle_are_those_of_the_runs(runs, tmp_path):
    records = report.load([runs])
    file = bundle.write(records, tmp_path / "records.jsonl")
    again = report.load([file])
    assert len(again) == 8
    for style in FORMATS:
        options = {"sharpness": True, "stealth": True, "intervals": True}
        first, second = (
            tables.table(report.summarize(found, **options), style) for found in (records, again)
        )
        assert first == second
    assert r"0.600 $\pm$ 0.707" in first  # eigenvalues 0.1 and 1.1
    assert (
        paired.compare(again, "ft_sam", "ft").comparisons
        == paired.compare(records, "ft_sam", "ft").comparisons
    )


def test_a_line_is_the_record_without_its_history_and_the_folder_of_its_data(runs, tmp_path):
    file = bundle.write(report.load([runs]), tmp_path / "records.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["config"]["attack"]["name"], line["config"]["seed"]) for line in lines] == [
        (attack, seed) for attack in ("badnets", "sig") for _ in range(2) for seed in (0, 1)
    ]
    original = json.loads((runs / "run000" / "record.json").read_text())
    (line,) = (line for line in lines if line["run_id"] == original["run_id"])
    assert line.pop("smoothness")["settings"] == {"images": 200}
    del original["history"]
    original["config"]["data"]["data_dir"] = None
    assert line == original
    assert "somewhere" not in file.read_text()


def test_the_same_runs_give_the_same_file_and_a_bundle_gives_itself(runs, tmp_path):
    records = report.load([runs])
    first = bundle.write(records, tmp_path / "a.jsonl").read_bytes()
    assert bundle.write(records[::-1], tmp_path / "b.jsonl").read_bytes() == first
    assert (
        bundle.write(report.load([tmp_path / "a.jsonl"]), tmp_path / "b.jsonl").read_bytes()
        == first
    )


def test_a_bundle_and_its_runs_count_once(runs, tmp_path, caplog):
    file = bundle.write(report.load([runs]), tmp_path / "records.jsonl")
    with caplog.at_level(logging.WARNING):
        assert len(report.load([runs, file])) == 8
    assert caplog.messages[0].startswith("Left out 8 records with the config and seed of another")


def edited(file, number, text):
    lines = file.read_text().split("\n")
    lines[number - 1] = (
        text if isinstance(text, str) else json.dumps(text(json.loads(lines[number - 1])))
    )
    file.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"records\.jsonl line 3 is not valid JSON"),
        ("[]", r"records\.jsonl line 3 lacks the key schema_version"),
        (lambda line: {**line, "schema_version": 9}, r"records\.jsonl line 3 has schema_version 9"),
        (
            lambda line: {**line, "run_id": 3},
            r"run_id in .*records\.jsonl line 3 must be a text, got 3",
        ),
        (
            lambda line: {**line, "metrics": {}},
            r"records\.jsonl line 3 lacks the key metrics\.before\.clean_correct",
        ),
    ],
)
def test_faults_are_told_with_their_line(runs, tmp_path, text, message):
    file = bundle.write(report.load([runs]), tmp_path / "records.jsonl")
    edited(file, 3, text)
    with pytest.raises(InputError, match=message) as caught:
        report.load([file])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("smoothness", [3]), ("smoothness", {"after": 3}), ("stealth", 3)]
)
def test_damaged_measurements_are_told_with_their_line(runs, tmp_path, key, value):
    file = bundle.write(report.load([runs]), tmp_path / "records.jsonl")
    edited(file, 2, lambda line: {**line, key: value})
    with pytest.raises(InputError, match=rf"{key} in .*records\.jsonl line 2 is damaged"):
        report.summarize(report.load([file]), sharpness=True, stealth=True)


def test_unfinished_lines_and_empty_ones_are_left_out(runs, tmp_path, caplog):
    file = bundle.write(report.load([runs]), tmp_path / "records.jsonl")
    edited(file, 1, "")
    edited(file, 2, lambda line: {**line, "status": "running"})
    edited(file, 3, lambda line: {**line, "status": "diverged"})
    with caplog.at_level(logging.WARNING):
        assert len(report.load([file])) == 5
    assert caplog.messages == [
        "Left out 1 run without a finished record.",
        "Left out 1 run that diverged.",
    ]
    file.write_text("")
    with pytest.raises(InputError, match=r"no record of a finished run under .*records\.jsonl"):
        report.load([file])


def test_the_networks_of_a_bundle_are_elsewhere(runs, tmp_path):
    (record, *_) = report.load([bundle.write(report.load([runs]), tmp_path / "records.jsonl")])
    with pytest.raises(
        InputError, match=r"records\.jsonl line 1 is a record alone; its networks are in the run"
    ):
        saved.restore(record)


def test_what_cannot_be_a_bundle_is_refused(runs, tmp_path):
    records = report.load([runs])
    for name in ("records.json", "records", ""):
        with pytest.raises(
            InputError, match=r"out must name a \.jsonl file, such as records\.jsonl; got '"
        ):
            bundle.write(records, name and tmp_path / name)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match=r"out must be a file; .*folder"):
        bundle.write(records, tmp_path / "folder.jsonl")
    records[0].content["metrics"]["after"]["robust_accuracy"] = float("nan")
    with pytest.raises(InputError, match=r"record\.json holds what is no JSON"):
        bundle.write(records, tmp_path / "records.jsonl")
    assert not (tmp_path / "records.jsonl").exists()


def test_the_command_exports_and_reports(runs, tmp_path, capsys):
    file = tmp_path / "below" / "records.jsonl"
    assert cli.main(["export", str(runs), "--out", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: 8 runs\n"
    texts = []
    for source in (runs, file):
        assert (
            cli.main(["report", str(source), "--format", "csv", "--smoothness", "--statistics"])
            == 0
        )
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    for words in (
        ["report", str(tmp_path / "none.jsonl")],
        ["export", str(runs), "--out", "x.csv"],
    ):
        assert cli.main(words) == 2
        assert re.fullmatch(r"bdjax: [^\n]+\n", capsys.readouterr().err)
