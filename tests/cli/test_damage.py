"""Every kind of file that a run writes, damaged at random: one line and exit code 1 or 2, or the very same results."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import made_up
import numpy as np
import pytest

from bdjax import cli, report
from bdjax.data.sources import _cache
from bdjax.runs import run, schema, sweep
from bdjax.train import group, loop

pytestmark = pytest.mark.usefixtures("no_cache_of_the_user")

SIZES = (
    "--model.width",
    "2",
    "--training.epochs",
    "1",
    "--defense.epochs",
    "1",
    "--defense.rho",
    "auto",
)
# A victim that diverges, and two runs as one
AXES = ("training.learning_rate=0.05,1e30", "defense.momentum=0.5,0.9")
SWEEP = ("--model.width", "2", "--training.epochs", "1", "--defense", "ft", "--defense.epochs", "2")
KINDS = ("bit", "cut", "empty", "gone", "noise", "exchanged", "folder", "word")
WORDS = (
    b"null",
    b"[]",
    b"{}",
    b'"text"',
    b"NaN",
    b"[" * 5000,
    b'{"a": 1' + b"0" * 5000 + b"}",
    b"\xff\xfe",
    b"{",
    b"",
)


def call(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(words))
    return code, out.getvalue(), err.getvalue()


class Case(NamedTuple):
    """A folder whose files are damaged, the commands that between them read all of them, and what must come out."""

    folder: Path
    commands: Callable[[Path], list[tuple[str, ...]]]
    results: Callable[[Path], Any]  # of the first command, where it ends well
    expected: Any


def commands(out: Path) -> list[tuple[str, ...]]:
    """Return commands that between them read every file of a run."""
    return [
        ("run", *SIZES, "--quiet", "--out", str(out)),
        (
            "report",
            str(out),
            "--smoothness",
            "--stealth",
            "--html",
            str(out / "page.html"),
            "--format",
            "markdown",
        ),
        ("analyze", "weight_norms", str(out), "--quiet", "--figures", str(out / "figures")),
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Case:
    """A run with a chosen strength, its controls, measured and analyzed."""
    out = tmp_path_factory.mktemp("whole") / "runs"
    assert call("run", *SIZES, "--quiet", "--out", str(out), "--smoothness-every", "1")[0] == 0
    for command in commands(out):
        assert call(*command)[0] == 0
    shutil.rmtree(out / "figures")
    (out / "page.html").unlink()
    return Case(out, commands, results, results(out))


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Case:
    """A sweep that was stopped in the defense of two of its runs, and of whose victims one has diverged."""
    out, axes = tmp_path_factory.mktemp("cut") / "runs", dict(axis.split("=") for axis in AXES)
    wanted = sweep.points(
        schema.overrides(SWEEP), {key: words.split(",") for key, words in axes.items()}
    )
    begun = lambda: any(out.glob("groups/*/stage-0/form.json"))  # noqa: E731
    execution = run.Execution(out, checkpoint_seconds=0.0, should_stop=begun)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group, "choose", lambda *_: group.Choice("loop", {"loop": 1.0}))
        with pytest.raises(loop.Stopped):
            sweep.run(wanted, execution, sweep.Sharing())
        assert list(out.glob("groups/*/stage-0/checkpoints/1"))
        assert list(out.glob("victims/*/diverged.json"))
        end = out.parent / "end"
        shutil.copytree(out, end)
        assert call(*continued(end)[0])[0] == 0
        yield Case(out, continued, results, results(end))


def continued(out: Path) -> list[tuple[str, ...]]:
    over = [word for axis in AXES for word in ("--over", axis)]
    return [
        ("sweep", *SWEEP, *over, "--quiet", "--out", str(out)),
        ("report", str(out), "--format", "csv"),
    ]


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory) -> Case:
    """A poisoned data set as files."""
    folder = tmp_path_factory.mktemp("poisoned")
    assert call(*poisoning(folder)[0])[0] == 0
    return Case(folder, poisoning, exact, exact(folder))


def poisoning(folder: Path) -> list[tuple[str, ...]]:
    words = (
        "--data.train_count",
        "200",
        "--holdout.share",
        "0.5",
        "--runs",
        str(folder / "runs"),
        "--quiet",
    )
    return [("poison", "badnets", *words, "--out", str(folder / "poisoned"))]


def exact(folder: Path) -> list[bytes]:
    return [
        (folder / "poisoned" / name).read_bytes()
        for name in ("labels.csv", "poisoned.npz", "poison.json")
    ]


@pytest.fixture(scope="module")
def bundled(tmp_path_factory) -> Case:
    """Records of runs as one file, and as the folders of runs."""
    folder = tmp_path_factory.mktemp("bundled")
    rows = [
        made_up.content(seed, defense=one)
        for seed in range(3)
        for one in ({"name": "ft"}, made_up.ft_sam(2.0))
    ]
    made_up.write(folder / "runs", *rows)
    assert call("export", str(folder / "runs"), "--out", str(folder / "records.jsonl"))[0] == 0
    return Case(folder, reporting, tables, tables(folder))


def reporting(folder: Path) -> list[tuple[str, ...]]:
    file = str(folder / "records.jsonl")
    return [
        ("report", file, str(folder / "runs"), "--statistics", "--format", "latex"),
        ("compare", file, "--defenses", "ft", "ft_sam"),
        ("export", file, "--out", str(folder / "again.jsonl")),
    ]


def tables(folder: Path) -> set[str]:
    """Return which runs there are: a damaged one may be missing only with a word, which is an error."""
    return {record.run_id for record in report.load([folder / "records.jsonl", folder / "runs"])}


def results(out: Path) -> dict[str, tuple]:
    """Return what must not change: the metrics, the losses and what was chosen, of each run."""
    found = {}
    for file in out.glob("digits-*/record.json"):
        record = json.loads(file.read_text())
        losses = [row["loss"] for row in record.get("history", [])]
        found[file.parent.name] = (
            record["status"],
            record.get("metrics"),
            losses,
            record.get("selection"),
        )
    return found


def damage(rng: np.random.Generator, file: Path, files: list[Path]) -> str:
    """Damage a file and say how."""
    kind = str(rng.choice(KINDS))
    content = bytearray(file.read_bytes())
    if kind == "bit" and content:
        place = int(rng.integers(8 * len(content)))
        content[place // 8] ^= 1 << place % 8
    if kind == "cut":
        content = content[: int(rng.integers(len(content) + 1))]
    if kind == "noise":
        content = bytearray(rng.bytes(len(content)))
    if kind == "exchanged":
        content = bytearray(files[int(rng.integers(len(files)))].read_bytes())
    if kind == "word":
        content = bytearray(WORDS[int(rng.integers(len(WORDS)))])
    file.write_bytes(b"" if kind == "empty" else content)
    if kind in ("gone", "folder"):
        file.unlink()
    if kind == "folder":
        file.mkdir()
    return kind


def files_of(folder: Path, rng: np.random.Generator) -> list[Path]:
    """Return the files to choose from; half of the time those that say how far a sweep is, where there are any."""
    kept = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and "array_metadatas" not in file.parts
    ]
    # Whose own checksums are read
    kept = [file for file in kept if file.suffix != ".png" or "samples" in file.name]
    telling = [
        file
        for file in kept
        if file.name in ("group.json", "form.json", "diverged.json", "data.json")
    ]
    return telling if telling and "groups" in os.listdir(folder) and rng.random() < 0.5 else kept


def check(seed: int, case: Case, copy: Path) -> None:
    rng = np.random.default_rng(seed)
    shutil.copytree(case.folder, copy)
    if rng.random() < 0.5:  # then the checkpoints are read
        for file in copy.glob("digits-*/record.json"):
            file.unlink()
    files = files_of(copy, rng)
    file = files[int(rng.integers(len(files)))]
    how = damage(rng, file, files)
    for number, command in enumerate(case.commands(copy)):
        code, _, err = call(*command)
        what = f"seed {seed}: {how} {file.relative_to(copy)}, then {command[0]}: {code} {err!r}"
        assert code in (0, 1, 2), what
        if code:
            assert err.startswith("bdjax: "), what
            assert err.count("\n") == 1, what
            assert len(err) < 1100, what
        elif number == 0 and not is_fewer(how, file):
            assert case.results(copy) == case.expected, what
    shutil.rmtree(copy)


def is_fewer(how: str, file: Path) -> bool:
    """Whether damage makes a smaller set of records that is as good as any, which no reader can tell."""
    return (how == "gone" and file.name == "record.json") or file.suffix == ".jsonl"


def check_all(seeds: range, case: Case, tmp_path: Path) -> None:
    for seed in seeds:
        check(seed, case, tmp_path / "copy")


# Orbax's, of a closed event loop
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("case", "trials"), [("whole", 8), ("cut", 2), ("poisoned", 10), ("bundled", 30)]
)
def test_a_damaged_file_is_one_line_or_of_no_account(case, trials, tmp_path, request):
    check_all(range(trials), request.getfixturevalue(case), tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("case", "first", "last"),
    [("whole", 8, 38), ("whole", 38, 68), ("cut", 2, 32), ("poisoned", 10, 40)],
)
def test_many_damaged_files_are_one_line_or_of_no_account(case, first, last, tmp_path, request):
    check_all(range(first, last), request.getfixturevalue(case), tmp_path)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_cache_of_images_is_made_anew(seed, tmp_path):
    rng = np.random.default_rng(seed)
    (tmp_path / "source").write_text("images")
    arrays = _cache.Arrays(*(rng.integers(0, 9, (4, 3), np.uint8) for _ in _cache.Arrays._fields))
    _cache.cached(tmp_path, lambda: arrays)
    files = sorted((tmp_path / _cache.BESIDE).iterdir())
    file = files[int(rng.integers(len(files)))]
    how = damage(rng, file, files)
    for _ in range(2):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            got = _cache.cached(tmp_path, lambda: arrays)
        for one, expected in zip(got, arrays, strict=True):
            np.testing.assert_array_equal(one, expected, err_msg=f"{how} {file.name}")
        assert len(told) <= 1 + (how == "folder")
