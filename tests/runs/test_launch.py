"""A sweep submitted as jobs, by submitit's executor of local processes; a SLURM is not at hand."""

import contextlib
import io
import json
import pickle

import pytest

from bdjax import cli
from bdjax.checks import InputError
from bdjax.runs import launch

submitit = pytest.importorskip("submitit")
SIZES = (
    "--model.width",
    "2",
    "--training.epochs",
    "1",
    "--defense.epochs",
    "1",
    "--over",
    "defense.rho=1,2",
)


def sweep(*words):
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        code = cli.main(["sweep", *SIZES, *words])
    return code, said.getvalue(), complained.getvalue()


@pytest.mark.slow
def test_jobs_share_a_sweep(tmp_path, monkeypatch):
    submitted = []
    submit = launch.submit
    monkeypatch.setattr(
        launch,
        "submit",
        lambda *args, **options: submitted.extend(submit(*args, **options)) or submitted,
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, said, _ = sweep(
        "--out",
        str(tmp_path / "runs"),
        "--jobs",
        "2",
        "--cluster",
        "local",
        "--job",
        "timeout_min=5",
    )
    assert code == 0
    assert said.startswith("submitted: " + ", ".join(job.job_id for job in submitted))
    assert [job.result() for job in submitted] == [0, 0]
    records = [json.loads(file.read_text()) for file in (tmp_path / "runs").glob("*/record.json")]
    assert sorted(record["config"]["defense"]["name"] for record in records) == [
        "ft",
        "ft_sam",
        "ft_sam",
        "none",
    ]


def test_there_is_a_group_for_each_job(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(launch, "submit", lambda words, *_, **__: asked.append(words) or [])
    for words, expected in (((), "2"), (("--at-once", "3"), "3")):
        # Of six runs
        assert sweep("--out", str(tmp_path / "runs"), "--seeds", "3", "--jobs", "4", *words)[0] == 0
        assert asked[-1][asked[-1].index("--at-once") + 1] == expected
        assert "--jobs" not in asked[-1]


def test_a_preempted_job_is_followed_by_itself():
    job = launch.SweepJob(("--seeds", "2"))
    assert job.checkpoint().function == job
    assert pickle.loads(pickle.dumps(job)) == job


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--jobs", "2"), "slurm does not take these jobs: Could not detect"),
        (("--jobs", "0"), "jobs must"),
        (("--jobs", "2", "--cluster", "lokal"), "cluster must be one of slurm, local; got 'lokal'"),
        (("--jobs", "2", "--cluster", "local", "--job", "gpu=1"), "Parameter 'gpu' need"),
        (
            ("--jobs", "2", "--cluster", "local", "--job", "timeout_min=4h"),
            'Parameter "timeout_min" expected type',
        ),
        (
            ("--jobs", "2", "--cluster", "local", "--checkpoint-seconds", "-1"),
            "checkpoint_seconds must",
        ),
        (
            ("--jobs", "2", "--cluster", "local", "--job", "gpu"),
            "--job must be KEY=VALUE, such as timeout_min=240",
        ),
        (("--jobs", "2", "--cluster", "local", "--defense.roh", "2"), "defense.roh"),
        (
            ("--jobs", "2", "--cluster", "local", "--form", "fast"),
            "form must be auto, loop, vmap, or map:k",
        ),
        (("--jobs", "2", "--cluster", "local", "--at-once", "0"), "at_once must"),
        (("--jobs", "2", "--cluster", "local", "--out", ""), "out must name a folder"),
    ],
)
def test_a_mistake_is_told_before_anything_is_submitted(words, complaint, tmp_path):
    code, said, complained = sweep("--out", str(tmp_path / "runs"), *words)
    assert (code, said) == (2, "")
    assert complaint in complained
    assert complained.count("\n") == 1


def test_a_job_that_fails_is_no_success(tmp_path):
    with pytest.raises(SystemExit):
        launch.SweepJob(("--out", str(tmp_path), "--defense.roh", "2"))()


def test_without_the_extra_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    with pytest.raises(InputError, match=r"pip install 'bdjax\[slurm\]'"):
        launch.submit([], tmp_path, 1)
