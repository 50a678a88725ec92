"""Five hundred calls of the command line that are mistaken: each ends in one line, and nothing is left behind."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

import bad_calls
import jax
import made_up
import numpy as np
import pytest

from bdjax import cli, models
from bdjax.bench import measure
from bdjax.cli._parser import EXIT_FAILED, EXIT_MISTAKE
from bdjax.data.modalities.images import image_spec
from bdjax.devices import guard
from bdjax.models.foreign import keys, writing
from bdjax.runs import strongest, sweep, victim
from bdjax.runs.at_hand import AtHand

CALLS, PART = 500, 100
REFUSED = 0.8  # of the calls, at least: one that is right by accident teaches nothing
SECONDS = 10  # of the processor's, for any call


class Reached(BaseException):
    """A call was right: it got where something would be trained, submitted or timed."""


class Answer(NamedTuple):
    code: int | None  # None where the call was right and was not let go on
    out: str
    err: str


def reached(*_, **__) -> NoReturn:
    raise Reached


@pytest.fixture(autouse=True, scope="module")
def nothing_is_trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(victim, "plant", reached)
        patch.setattr(AtHand, "trigger_state", reached)
        patch.setattr(sweep._Sweep, "plant", reached)
        patch.setattr(strongest, "defend", reached)
        patch.setattr(guard, "watch", reached)
        patch.setattr(measure, "Peak", reached)
        patch.setattr("submitit.AutoExecutor.submit", reached)
        patch.setattr("bdjax.devices.compilation.enable_cache", lambda: None)
        patch.setenv("BDJAX_DATA_DIR", str(tmp_path_factory.mktemp("no data")))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def suspect(tmp_path_factory) -> Path:
    """A folder with a network's file and images that fit it, of as many classes."""
    folder = tmp_path_factory.mktemp("suspect")
    model = models.create("resnet18", image_spec("tiny", (8, 8, 3), 4, (0.0,) * 3, (1.0,) * 3), width=2)
    arrays = keys.state_dict(model, model.init(jax.random.key(0)))
    writing.write_safetensors(folder / bad_calls.NETWORK, arrays)
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / bad_calls.IMAGES, images=images, labels=np.arange(60) % 4)
    return folder


@pytest.fixture
def world(tmp_path, monkeypatch, suspect) -> Path:
    """A folder to make mistakes in: runs, a bundle of them, a network, and what is none of these."""
    shutil.copytree(suspect, tmp_path, dirs_exist_ok=True)
    controls = [
        made_up.content(defense={"name": "ft"}),
        made_up.content(defense=made_up.ft_sam(2.0)),
    ]
    made_up.write(tmp_path / "runs", *controls)
    (tmp_path / "file.txt").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(tmp_path)
    assert answer(("export", "runs", "--out", "records.jsonl")).code == 0
    return tmp_path


def answer(words: tuple[str, ...]) -> Answer:
    """Call the command line in this process."""
    out, err, code = io.StringIO(), io.StringIO(), None
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.suppress(Reached),
    ):
        code = cli.main(words)
    return Answer(code, out.getvalue(), err.getvalue())


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what is in a folder, with sizes and times of change."""
    found = {}
    for place, inner, names in os.walk(folder):
        for name in (*inner, *names):
            seen = os.lstat(os.path.join(place, name))
            found[os.path.join(place, name)] = (seen.st_size, seen.st_mtime_ns)
    return found


def is_refused(seed: int, world: Path) -> bool:
    """Make a call and say whether it was refused, as a mistake should be; a call that was right leaves what it made."""
    call = bad_calls.call(seed)
    file = world / bad_calls.CONFIG
    file.unlink(missing_ok=True)
    if call.file is not None:
        file.write_bytes(call.file)
    before, started = state(world), time.process_time()
    got = answer(call.words)
    seconds = time.process_time() - started
    asked = f"{ascii(' '.join(call.words))[:400]} {ascii(call.file)[:300]}"
    what = f"seed {seed}: {asked}: {str(got)[:900]}, {seconds:.1f} s"
    assert seconds < SECONDS, what
    if got.code in (0, None):
        return False
    assert got.code in (EXIT_FAILED, EXIT_MISTAKE), what
    assert re.fullmatch(r"bdjax: [^\n]{1,1100}\n", got.err), what
    assert got.err[:-1].isprintable(), what
    assert got.out == "", what
    assert state(world) == before, what
    return True


@pytest.mark.parametrize("first", range(0, CALLS, PART))
def test_a_mistake_is_one_line_and_leaves_nothing_behind(first, world):
    refused = [is_refused(seed, world) for seed in range(first, first + PART)]
    assert sum(refused) >= REFUSED * PART
