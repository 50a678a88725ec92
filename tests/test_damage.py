"""Every kind of file that a run writes, damaged at random: one line and exit code 1 or 2, or the very same results."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bdjax import cli

SIZES = ("--model.width", "2", "--training.epochs", "1", "--defense.epochs", "1", "--defense.rho", "auto")
TRIALS = 40  # of each seed
KINDS = ("bit", "cut", "empty", "gone", "noise", "exchanged", "folder", "word")
WORDS = (b"null", b"[]", b"{}", b'"text"', b"NaN", b"[" * 5000, b'{"a": 1' + b"0" * 5000 + b"}", b"\xff\xfe", b"{", b"")


@pytest.fixture(autouse=True, scope="module")
def no_cache_of_the_user():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bdjax.train.compilation.enable_cache", lambda: None)
        yield


def call(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(words))
    return code, out.getvalue(), err.getvalue()


def commands(out: Path) -> list[tuple[str, ...]]:
    """Return commands that between them read every file of a run."""
    return [
        ("run", *SIZES, "--quiet", "--out", str(out)),
        ("report", str(out), "--smoothness", "--stealth", "--html", str(out / "page.html"), "--format", "markdown"),
        ("analyze", "weight_norms", str(out), "--quiet", "--figures", str(out / "figures")),
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run with a chosen strength, its controls, measured and analyzed."""
    out = tmp_path_factory.mktemp("whole") / "runs"
    assert call("run", *SIZES, "--quiet", "--out", str(out), "--smoothness-every", "1")[0] == 0
    for command in commands(out):
        assert call(*command)[0] == 0
    shutil.rmtree(out / "figures")
    (out / "page.html").unlink()
    return out


def results(out: Path) -> dict[str, tuple]:
    """Return what must not change: the metrics, the losses and what was chosen, of each run."""
    found = {}
    for file in out.glob("digits-*/record.json"):
        record = json.loads(file.read_text())
        losses = [row["loss"] for row in record["history"]]
        found[file.parent.name] = (record["metrics"], losses, record.get("selection"))
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


def check(seed: int, whole: Path, copy: Path) -> None:
    rng = np.random.default_rng(seed)
    shutil.copytree(whole, copy)
    if rng.random() < 0.5:  # then the checkpoints are read
        for file in copy.glob("digits-*/record.json"):
            file.unlink()
    files = [file for file in sorted(copy.rglob("*")) if file.is_file() and "array_metadatas" not in file.parts]
    file = files[int(rng.integers(len(files)))]
    how = damage(rng, file, files)
    expected = results(whole)
    for command in commands(copy):
        code, _, err = call(*command)
        what = f"seed {seed}: {how} {file.relative_to(copy)}, then {command[0]}: {code} {err!r}"
        assert code in (0, 1, 2), what
        if code:
            assert err.startswith("bdjax: "), what
            assert err.count("\n") == 1, what
            assert len(err) < 1000, what
        elif command[0] == "run":
            assert results(copy) == expected, what


def check_all(seeds: range, whole: Path, tmp_path: Path) -> None:
    for seed in seeds:
        check(seed, whole, tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's, of a closed event loop
def test_a_damaged_file_is_one_line_or_of_no_account(whole, tmp_path):
    check_all(range(TRIALS), whole, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("part", range(1, 8))
def test_many_damaged_files_are_one_line_or_of_no_account(whole, tmp_path, part):
    check_all(range(TRIALS * part, TRIALS * (part + 1)), whole, tmp_path)
