"""A result from elsewhere on the victim of a finished run, and its row in the table."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest
from made_up import ATTACK_TOTAL, CLEAN_TOTAL, content, scenes, write

from bdjax import cli, evaluate, report, saved
from bdjax.checks import InputError
from bdjax.report import bundle, page, tables
from bdjax.runs import plans
from bdjax.tasks.metrics import names
from bdjax.types import Metrics

SIZES = ("--model.width", "2", "--training.epochs", "1", "--defense", "none")
AFTER = Metrics(95, CLEAN_TOTAL, 8, 60, ATTACK_TOTAL)


@pytest.fixture
def attacked(tmp_path):
    (record,) = report.load([write(tmp_path, content(3, defense={"name": "none"}, hits=80))])
    (record.folder / "smoothness.json").write_text('{"after": {"mixed": {"fisher_trace": 3.0}}}')
    return record


def test_a_result_of_ones_own_stands_among_the_others(attacked):
    mine = saved.with_defense(attacked, "mine", AFTER, run_seconds=1.5)
    none, own = report.summarize([mine, attacked])
    assert (own.defense, own.seeds, own.n) == ("mine", (3,), 1)
    assert [one.mean for one in own.statistics.values()][:3] == [0.95, 0.1, 0.75]
    # before: 99 of 100 and 80 of 80
    assert own.rating.mean == pytest.approx((0.9 - 0.04 + 1) / 2)
    assert list(report.victims([none, own])) == ["badnets"]
    text = tables.table([none, own], "markdown")
    assert "| badnets | mine | 95.0 | 10.0 | 75.0 | **93.0** | 1 | 1.5 |" in text
    assert "| – |" in tables.table(
        report.summarize([saved.with_defense(attacked, "mine", AFTER)]), "markdown"
    )


def test_nothing_of_the_run_itself_is_taken_for_the_defense(attacked):
    mine = saved.with_defense(attacked, "mine", AFTER)
    assert mine.smoothness() == {}
    assert attacked.smoothness() != {}
    assert attacked.config["defense"] == {"name": "none"}
    assert attacked.content["metrics"]["after"]["attack_hits"] == 80


def test_a_result_of_ones_own_stands_on_the_page_without_a_link(attacked, tmp_path):
    mine = saved.with_defense(attacked, "mine", AFTER)
    text = page.html([attacked, mine], tmp_path)
    assert '<a href="run000/record.json">' in text
    assert "mine/record.json" not in text
    assert "nan" not in text
    assert page.html([mine], tmp_path).count("records of") == 0  # nobody knows when


def test_a_record_of_a_bundle_takes_another_defense_too(attacked, tmp_path):
    (record,) = report.load([bundle.write([attacked], tmp_path / "records.jsonl")])
    mine = saved.with_defense(record, "mine", AFTER)
    assert mine.smoothness() == {}
    assert record.smoothness() != {}
    assert [row.defense for row in report.summarize([record, mine], sharpness=True)] == [
        "none",
        "mine",
    ]


def test_options_tell_rows_apart(attacked):
    swept = [
        saved.with_defense(attacked, "mine", AFTER, options={"strength": value}) for value in (1, 2)
    ]
    assert [row.defense for row in report.summarize(swept)] == [
        "mine strength=1",
        "mine strength=2",
    ]


@pytest.mark.parametrize(
    ("name", "after", "message"),
    [
        ("ft_sam", AFTER, "name must not be that of a defense of bdjax, got 'ft_sam'"),
        ("mine", AFTER._replace(clean_total=90), "clean_total is 100, got 90"),
        ("mine", AFTER._replace(attack_total=81), "attack_total is 80, got 81"),
    ],
)
def test_what_would_mislead_is_refused(attacked, name, after, message):
    with pytest.raises(InputError, match=message):
        saved.with_defense(attacked, name, after)


def test_a_run_is_loaded_and_measured_in_its_own_precision(tmp_path, monkeypatch):
    written = content(3, defense={"name": "none"})
    written["config"]["matmul_precision"] = "float32"
    (record,) = report.load([write(tmp_path, written)])
    monkeypatch.setattr(saved, "_restore", lambda *_: jax.config.jax_default_matmul_precision)
    assert saved.restore(record) == "float32"
    with saved.computing(record.folder):
        assert jax.config.jax_default_matmul_precision == "float32"
    monkeypatch.setattr(saved._Measure, "__call__", lambda *_: saved.restore(record))
    assert saved.smoothness([tmp_path], settings=saved.Settings()) == ["float32"]


def test_a_path_is_as_good_as_a_record(attacked):
    for path in (attacked.folder, str(attacked.folder), attacked.folder / "record.json"):
        assert (saved.one(path).folder, saved.one(path).content) == (
            attacked.folder,
            attacked.content,
        )
        mine, same = (saved.with_defense(of, "mine", AFTER) for of in (path, attacked))
        assert (mine.folder, mine.after) == (same.folder, same.after)
    assert saved.one(attacked) is attacked


@pytest.mark.parametrize("function", [saved.restore, saved.subject, saved.one])
@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"run_id": "x"},
            "record must be a record of bdjax.report.load, or the path of a run's folder; got dict",
        ),
        (None, "record must be .*; got NoneType"),
        ([], "record must be .*; got list"),
        ("nowhere", "There is no file or folder nowhere"),
    ],
)
def test_what_is_no_run_is_refused_in_one_sentence(function, record, message):
    with pytest.raises(InputError, match=message):
        function(record)


def test_a_folder_of_several_runs_is_not_one(tmp_path):
    write(tmp_path, *(content(seed) for seed in range(3)))
    with pytest.raises(InputError, match=f"record must be one run; there are 3 under {tmp_path}"):
        saved.restore(tmp_path)


def test_the_network_of_a_run_as_a_function_gives_its_record(tmp_path, monkeypatch):
    monkeypatch.setattr("bdjax.devices.compilation.enable_cache", lambda: None)
    assert cli.main(["run", *SIZES, "--quiet", "--out", str(tmp_path)]) == 0
    (record,) = report.load([tmp_path])
    networks = saved.restore(record.folder)
    jax.tree.map(np.testing.assert_array_equal, networks.victim, saved.restore(record).victim)
    plan = networks.plan

    @jax.jit
    def logits(image):
        return plan.model.apply(networks.victim, image)[0]

    measure = functools.partial(
        evaluate.evaluate_function, clean=plan.dataset.test, triggered=plans.triggered_test(plan)
    )
    mine = saved.with_defense(record, "mine", measure(logits))
    assert mine.after == record.after
    assert mine.value("defense_effectiveness_rating") == 0.5


class Scenes(NamedTuple):
    """What a task might count of images with several classes."""

    mean_average_precision: float
    clean_total: int
    attack_hits: int
    attack_total: int

    @property
    def attack_success_rate(self):
        return self.attack_hits / self.attack_total


def test_a_result_of_another_task_stands_in_its_table(tmp_path):
    (record,) = report.load(write(tmp_path, scenes(hits=80, precision=0.8)))
    own = saved.with_defense(record, "mine", Scenes(0.7, 100, 8, 80))
    assert own.metrics == record.metrics
    assert [own.value(name) for name in names(own.metrics)] == pytest.approx(
        [0.7, 0.1, (0.9 - 0.1 + 1) / 2]
    )
    assert own.content["metrics"]["chance"] == {"mean_average_precision": 0.4}
    assert [row.defense for row in report.summarize([record, own])] == ["none", "mine"]
    with pytest.raises(
        InputError, match=r"after must count the run's test images: clean_total is 100, got 99\."
    ):
        saved.with_defense(record, "mine", Scenes(0.7, 99, 8, 80))
    with pytest.raises(
        InputError, match="after must have the run's metric mean_average_precision, got Metrics"
    ):
        saved.with_defense(record, "mine", Metrics(90, 100, 4, 60, 80))
