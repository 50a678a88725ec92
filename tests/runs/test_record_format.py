"""What a record must hold: numbers that are finite, in range and agree; the fault names file and key."""

from __future__ import annotations

import copy
import json
import math

import pytest
from made_up import content, rates, rating_of, scenes

from bdjax import cli, report
from bdjax.checks import InputError
from bdjax.runs import record_format


def changed(values):
    """Return a record with other values at dotted keys."""
    record = copy.deepcopy(content())
    for key, value in values.items():
        *sections, last = key.split(".")
        inner = record
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return record


def test_a_record_that_agrees_with_itself_is_taken():
    record_format.check(content(), "x")
    after = "metrics.after.attack_success_rate"
    record_format.check(changed({after: 0.05 + 1e-7}), "x")  # of an older bdjax, in float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"metrics.after.attack_success_rate": 2.0**70},
            "metrics.after.attack_success_rate in x must lie between 0",
        ),
        (
            {"metrics.after.attack_hits": 2**70},
            "metrics.after.attack_hits in x must lie between 0 and 80, got 118059",
        ),
        (
            {"metrics.after.attack_hits": 10**4000},
            "metrics.after.attack_hits in x must lie between 0 and 80, got 1000",
        ),
        (
            {"metrics.after.clean_accuracy": math.nan},
            "metrics.after.clean_accuracy in x must lie between 0 and 1, got",
        ),
        (
            {"metrics.before.clean_total": -100},
            "metrics.before.clean_total in x must lie between 0 and 9007199254",
        ),
        (
            {"metrics.before.clean_correct": -1},
            "metrics.before.clean_correct in x must lie between 0 and 100, got -1",
        ),
        (
            {"metrics.before.clean_correct": 101},
            "metrics.before.clean_correct in x must lie between 0 and 100, got",
        ),
        (
            {"metrics.after.clean_accuracy": 0.91},
            "metrics.after.clean_accuracy in x must be 0.9, as clean_correct / ",
        ),
        (
            {"metrics.after.robust_accuracy": 0.7},
            "metrics.after.robust_accuracy in x must be 0.75, as robust_",
        ),
        (
            {"metrics.defense_effectiveness_rating": 0.996},
            "metrics.defense_effectiveness_rating in x must be 0.93, by",
        ),
        (
            {"metrics.defense_effectiveness_rating": 1.5},
            "rating in x must lie between 0 and 1, got 1.5",
        ),
        ({"cost.run_seconds": -1.0}, "cost.run_seconds in x must lie between 0 and"),
        ({"cost.compile_seconds": math.inf}, "cost.compile_seconds in x must lie between 0 and"),
        (
            {"cost.gradient_evaluations": math.nan},
            "cost.gradient_evaluations in x must lie between 0 and",
        ),
        ({"data.num_classes": 0}, "data.num_classes in x must be 1 or more, got 0"),
        ({"data.fingerprint": 3}, "data.fingerprint in x must map names to digests, got 3"),
        ({"data.fingerprint.train": None}, "data.fingerprint in x must map names to digests"),
        (
            {"data.fingerprint.files": {"attack.path": 3}},
            "data.fingerprint in x must map names to digests",
        ),
        ({"stealth": 3}, "stealth in x is damaged"),
        ({"stealth.test": 3}, "stealth in x is damaged"),
        ({"stealth.test.psnr": "x"}, "stealth in x is damaged"),
        ({"stealth.test.ssim": math.nan}, "stealth in x is damaged"),
        (
            {"stealth.test.changed_share": 1.5},
            "stealth in x is damaged: changed_share must lie between 0 and 1",
        ),
    ],
)
def test_a_wrong_value_is_named_with_file_and_key(values, message):
    with pytest.raises(InputError) as caught:
        record_format.check(changed(values), "x")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("total", ["clean_total", "attack_total"])
def test_a_rate_of_nothing_is_none(total):
    nothing = dict.fromkeys(("clean_correct", "attack_hits", "robust_correct"), 0)
    values = {f"metrics.after.{name}": value for name, value in {**nothing, total: 0}.items()}
    with pytest.raises(
        InputError, match=rf"^metrics\.after\.{total} in x must be 1 or more, got 0\.$"
    ):
        record_format.check(changed(values), "x")


def test_a_gain_in_accuracy_and_a_rise_of_the_attack_are_no_part_of_the_rating():
    before, after = rates(80, 40, 30), rates(90, 60, 10)
    metrics = {"before": before, "after": after, "defense_effectiveness_rating": 0.5}
    assert rating_of(before, after) == 0.5
    record_format.check({**content(), "metrics": metrics}, "x")


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_report_of_a_number_that_is_none_is_one_line(tmp_path, capsys, word):
    file = tmp_path / "run" / "record.json"
    file.parent.mkdir()
    text = json.dumps(content())
    file.write_text(text.replace('"run_seconds": 2.0', f'"run_seconds": {word}'))
    assert text != file.read_text()
    assert cli.main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert (error.count("\n"), str(file) in error) == (1, True)


def test_a_renamed_folder_is_reported(tmp_path):
    file = tmp_path / "renamed" / "record.json"
    file.parent.mkdir()
    file.write_text(json.dumps(content()))
    assert [record.run_id for record in report.load([tmp_path])] == ["badnets-none-0"]


# --- Descriptions of metrics ---


def described(number=0, **values):
    """Return a record of another task, one of whose metrics is described otherwise."""
    record = scenes()
    description = record["metrics"]["description"]
    description[number] = {
        key: value for key, value in {**description[number], **values}.items() if value is not ...
    }
    return record


def test_a_record_of_another_task_is_taken():
    record_format.check(scenes(), "x")
    assert [metric.head for metric in record_format.metrics_of(scenes())] == ["mAP", "ASR", "DER"]
    assert [metric.head for metric in record_format.metrics_of(content())] == [
        "ACC",
        "ASR",
        "RA",
        "DER",
    ]
    # Of a later version, and of a shorter one
    record_format.check(described(unit="share", definition=...), "x")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (described(name=...), "metrics.description in x: metric 0 must have a name like [a-z]"),
        (described(name="=HYPERLINK(1)"), "metric 0 must have a name like"),
        (described(name="run_seconds"), "must have another name than run_seconds, which is taken"),
        (
            described(1, name="mean_average_precision"),
            "must have each name once, got mean_average_precision again",
        ),
        (described(head="\x1b[31m"), "metric 0 must have a head like"),
        (described(words="<script>"), "metric 0 must have a words like"),
        (described(short="a\nb"), "metric 0 must have a short like"),
        (
            described(role="best"),
            "must have a role of utility, attack, restored, rating, got 'best'",
        ),
        (described(role="restored"), "must have a metric of the role utility"),
        (described(1, total=""), "metric 1 must have a total, as it has a part"),
        (described(total=3), "metric 0 must have a total like"),
        (described(definition="\x00"), "must have a definition of printable characters"),
        (described(definition="x" * 1001), "must have a definition of printable characters"),
        (described(total="elsewhere"), "x lacks the key metrics.before.elsewhere"),
        (
            {**scenes(), "metrics": {"description": 3}},
            "metrics.description in x must be a list of mappings, got 3",
        ),
        (
            {**scenes(), "metrics": {"description": [3]}},
            "metrics.description in x must be a list of mappings, got [3]",
        ),
        (
            scenes(chance=1.5),
            "metrics.chance in x must map metrics to numbers from 0 to 1, got {'mean",
        ),
        (scenes(chance=math.nan), "metrics.chance in x must map metrics to numbers from 0 to 1"),
        (
            scenes(precision=1.5),
            "metrics.after.mean_average_precision in x must lie between 0 and 1, got 1.5",
        ),
    ],
)
def test_a_wrong_description_is_named(record, message):
    with pytest.raises(InputError) as caught:
        record_format.check(record, "x")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_rating_of_another_task_must_agree_with_it():
    record = scenes()
    record["metrics"]["defense_effectiveness_rating"] += 0.01
    with pytest.raises(
        InputError, match=r"defense_effectiveness_rating in x must be 0\.95, by the rates before"
    ):
        record_format.check(record, "x")
