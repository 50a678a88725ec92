"""Analyses of finished runs: what every analysis keeps to, and that nothing is measured twice."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

from bdjax import cli, registry, report, saved
from bdjax.analysis import _analyze, _findings
from bdjax.checks import InputError
from bdjax.runs import config, run
from bdjax.runs.subject import Analysis
from bdjax.tasks.metrics import MULTI_LABEL, SINGLE_LABEL, names, to_text

VALUES = {
    "data": "digits",
    "model": {"name": "small_cnn", "width": 4},
    "training": {"epochs": 2},
    "defense": {"name": "ft_sam", "epochs": 2, "batch_size": 50},
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a run of two epochs and its control rows."""
    out = tmp_path_factory.mktemp("runs")
    run.run_with_controls(config.resolve(VALUES), run.Execution(out))
    return out


@pytest.fixture(scope="session")
def subject(finished):
    (record,) = [
        record for record in report.load([finished]) if record.config["defense"]["name"] == "ft_sam"
    ]
    return saved.subject(record)


def test_replay_ends_where_the_run_did(subject):
    seen = {}
    subject.replay(lambda epoch, variables: seen.update({epoch: jax.device_get(variables())}))
    assert list(seen) == [0, 1, 2]
    jax.tree.map(np.testing.assert_array_equal, seen[0], subject.victim)
    jax.tree.map(np.testing.assert_array_equal, seen[2], subject.defended)


def test_history_begins_and_ends_with_the_rates_of_the_record(finished, tmp_path):
    figure, *files = _analyze.analyze("history", [finished], tmp_path)
    assert figure.name == "history.png"
    assert figure.stat().st_size > 10_000
    runs = report.load([finished])
    titles = _findings.titles(runs)
    found = {title: _findings.read_findings(record, "history") for title, record in titles.items()}
    assert [len(one.arrays["epoch"]) for one in found.values()] == [1, 3, 3]  # none, ft, ft_sam
    for title, record in titles.items():
        for rate in names(SINGLE_LABEL)[:3]:
            assert found[title].arrays[rate][0] == pytest.approx(record.before[rate])
            assert found[title].arrays[rate][-1] == pytest.approx(record.after[rate])
    assert len(files) == 3


def test_what_was_measured_is_not_measured_again_but_with_other_options(finished, tmp_path):
    def measured(every: int) -> int:
        seen = []
        options = {"every": every}
        _analyze.analyze(
            "history", [finished], tmp_path, options=options, on_run=lambda *what: seen.append(what)
        )
        return len(seen)

    measured(1)
    assert [measured(1), measured(2), measured(2), measured(1)] == [0, 3, 0, 3]


def test_a_victim_that_runs_share_is_measured_once(finished):
    known, measured = {}, []
    for record in report.load([finished]):
        subject = saved.subject(record, known=known)
        subject.once("victim", lambda name=record.run_id: measured.append(name))
    assert len(measured) == 1
    assert list(known) == [finished / "victims" / record.content["victim_id"]]
    saved.subject(record).once("victim", lambda: measured.append("again"))  # in another memory
    assert len(measured) == 2


def test_what_was_found_is_drawn_for_the_page(finished, tmp_path):
    _analyze.analyze("history", [finished], tmp_path)
    captions = _findings.pictures(report.load([finished]))
    (caption,) = [caption for caption in captions if caption.startswith("history: ")]
    assert caption.endswith("Options: every = 1.")
    assert captions[caption].startswith(b"\x89PNG")
    (record, *_) = report.load([finished])
    (record.folder / "analysis-unknown.npz").write_bytes(b"whatever")  # of a later bdjax
    assert set(_findings.pictures(report.load([finished]))) == set(captions)


def test_a_damaged_file_is_named(finished, tmp_path):
    path = report.load([finished])[0].folder / "analysis-history.npz"
    path.write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"analysis-history\.npz is damaged"):
        _analyze.analyze("history", [finished], tmp_path)
    path.unlink()


def test_a_run_that_cannot_be_loaded_does_not_keep_the_others_from_being_drawn(
    finished, tmp_path, capsys
):
    copied = tmp_path / "runs"
    shutil.copytree(finished, copied)
    (record,) = [
        record for record in report.load([copied]) if record.config["defense"]["name"] == "ft_sam"
    ]
    shutil.rmtree(record.folder / "checkpoints-0")
    words = ["analyze", "weight_norms", str(copied), "--figures", str(tmp_path), "--quiet"]
    assert cli.main(words) == 2
    assert "there is no checkpoint of epoch 2 in" in capsys.readouterr().err
    assert (tmp_path / "weight_norms.png").stat().st_size > 10_000
    measured = [
        run.folder
        for run in report.load([copied])
        if _findings.file_of(run, "weight_norms").exists()
    ]
    assert len(measured) == 2
    shutil.rmtree(copied / "victims")
    assert cli.main([*words, "--layer", "conv2"]) == 2
    assert "(and 2 more runs)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["history", "--every", "0"], "every must be 1 or more, got 0"),
        (["history", "--evry", "1"], "did you mean 'every'"),
        (["histroy"], "did you mean 'history'"),
        (["history", "--format", "jpg"], "format must be one of"),
        (["history", "--every"], "option --every needs a value, and must stand after RUNS"),
    ],
)
def test_mistakes_are_one_line(finished, tmp_path, capsys, words, message):
    name, *options = words
    assert cli.main(["analyze", name, str(finished), "--figures", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("name", registry.names("bdjax.analysis"))
def test_every_analysis_is_listed_and_made_with_its_defaults(name):
    assert registry.summary("bdjax.analysis", name).endswith(".")
    assert isinstance(registry.create("bdjax.analysis", name), Analysis)


# --- What every analysis keeps to ------------------------------------------------------------------------------------

OPTIONS = {  # so that it is quick; a new analysis is tested with its defaults
    "smoothness": {"every": 2, "images": 8, "draws": 2},
    "spectrum": {"images": 8, "steps": 4},
    "features": {"images": 60, "perplexity": 5.0},
    "gradient_norms": {"epochs": 1, "batch_size": 20},
    "rho_gradients": {"rho": "0,1", "batch_size": 20},
    "perturbations": {"batch_size": 20},
    "weight_histogram": {"bins": 5},
    "tac": {"images": 40},
    "grad_cam": {"images": 2},
}


@pytest.mark.parametrize("name", registry.names("bdjax.analysis"))
def test_every_analysis_finds_plain_arrays_and_draws_them(name, subject, tmp_path):
    if name == "features":
        pytest.importorskip("openTSNE")
    options = OPTIONS.get(name, {})
    analysis = registry.create("bdjax.analysis", name, **options)
    found = analysis.measure(subject)
    assert found
    for array in found.values():
        assert np.asarray(array).dtype.kind in "fiubU"
    record = report.Record(tmp_path, {"run_id": "some-run"})
    _findings.write_findings(record, name, _findings.Found(found, options))
    again = _findings.read_findings(record, name)
    assert again is not None
    assert set(again.arrays) == set(found)
    drawn = _findings.draw_findings(
        name, {"one · ft_sam": again, "two · ft_sam · with a title that is too long " * 3: again}
    )
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) > 5000


def test_the_options_above_are_of_analyses_that_exist():
    assert set(OPTIONS) <= set(registry.names("bdjax.analysis"))


@pytest.mark.parametrize("name", ["history", "smoothness"])
def test_findings_are_drawn_as_they_are_described(name):
    """Those of an older bdjax describe nothing, and are of single-label classes."""
    pytest.importorskip("matplotlib")
    curve = np.array([0.9, 0.8])
    old = {"epoch": np.array([0, 1]), "clean_accuracy": curve, "attack_success_rate": curve}
    new = {"epoch": old["epoch"], "mean_average_precision": curve, "attack_success_rate": curve}
    new["metrics"] = np.asarray(to_text(MULTI_LABEL[:2]))
    surface = {
        "largest_eigenvalue": curve,
        "hessian_trace": curve,
        "hessian_trace_error": curve,
        "fisher_trace": curve,
    }
    surface["eigenvalue_converged"] = np.array([True, True])
    page = registry.create("bdjax.analysis", name).draw(
        {"old": {**old, **surface}, "new": {**new, **surface}}
    )
    (legend,) = page.legends
    heads = [text.get_text().partition(":")[0] for text in legend.get_texts()]
    assert heads[-3:] == ["ACC", "ASR", "mAP"]
