"""Options of XLA on a device: which are tried, that one that fails is told, and what the table says."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from accelerator import flags as subject
from accelerator.session import Session, Settings

from bdjax.devices import flags


@pytest.fixture
def session(tmp_path):
    return Session(Settings(tmp_path / "out", tmp_path / "work", debug=True))


@pytest.fixture
def child(monkeypatch):
    """What the process of a candidate answers, and how it was called."""
    answer = SimpleNamespace(
        returncode=0, stdout='a warning\n{"flag": "made up"}\n', stderr="", calls=[]
    )

    def run(command, **options):
        answer.calls.append((command, options))
        return answer

    monkeypatch.setattr(subject.subprocess, "run", run)
    return answer


def test_each_candidate_of_a_backend_is_a_part_and_one_is_tried_out(tmp_path, monkeypatch):
    settings = Settings(tmp_path, tmp_path)
    for backend, candidates in flags.CANDIDATES.items():
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert len({part.name for part in subject.parts(settings)}) == len(candidates)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert subject.parts(settings) == []
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    (part,) = subject.parts(Settings(tmp_path, tmp_path, debug=True))
    assert (part.name, part.seconds) == ("flags/no-library", 8.0)


def test_a_candidate_is_measured_in_a_process_with_a_cache_and_what_is_left_of_the_time(
    session, child
):
    (part,) = subject.parts(session.settings)
    assert list(part.run(session)) == [{"flag": "made up"}]
    ((command, options),) = child.calls
    assert command[-2:] == ["no library", "small"]
    assert options["env"]["JAX_COMPILATION_CACHE_DIR"] == str(session.settings.work / "xla")
    assert 0 < options["timeout"] <= session.left + 1


def test_one_that_aborts_is_told_with_the_last_that_it_said(session, child):
    child.returncode, child.stderr = -6, "a warning\nF0000 Unknown flag\n"
    (part,) = subject.parts(session.settings)
    with pytest.raises(RuntimeError, match="the process ended with -6: F0000 Unknown flag"):
        list(part.run(session))


def test_one_that_this_xla_does_not_know_starts_no_process(session, child):
    flag = flags.Flag("gone", {"xla_of_another_age": 1}, "")
    (row,) = subject._part(session, flag)
    assert row == {"unknown": "gone", "why": "No such compile option: 'xla_of_another_age'"}
    assert child.calls == []
    assert subject.tables([{"part": "flags/gone", **row}]) == ""


def test_a_row_has_the_times_of_both_and_whether_their_bits_agree(monkeypatch):
    class Epoch:
        def __init__(self, options, size):
            self.compile_seconds = 2.0 if options else 1.0
            self.after_first = {"kernel": np.ones(3) if options else np.zeros(3)}

        def __call__(self):
            pytest.fail("it is timed by measure.interleaved")

    monkeypatch.setattr(subject, "_Epoch", Epoch)
    monkeypatch.setattr(
        subject.measure,
        "interleaved",
        lambda work, rounds: dict(zip(work, (4.0, 3.0), strict=True)),
    )
    flag = flags.CANDIDATES["gpu"][0]
    row = subject._row(flag, subject._FULL)
    assert (row["step_seconds"], row["step_seconds_without"]) == (3.0 / 20, 4.0 / 20)
    assert (row["same_bits_again"], row["same_bits_as_without"]) == (True, False)
    text = subject.tables(
        [{"part": "flags/x", **row}, {"part": "flags/x", "done": True}, {"part": "speed/x"}]
    )
    assert "A plain step of preact_resnet18 64 bfloat16, batch 256" in text
    cells = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    assert cells == [flag.name, "150", "0.75", "2.0", "1.0", "yes"]


def test_a_process_takes_a_real_option(monkeypatch, capsys):
    """All but the network, whose compilation others test."""
    said = []
    monkeypatch.setattr(
        subject, "_row", lambda flag, size: said.append((flag, size)) or {"flag": flag.name}
    )
    subject.measure_here("no library", "small")
    assert said == [(flags.CANDIDATES["cpu"][0], subject._SMALL)]
    assert capsys.readouterr().out == '{"flag": "no library"}\n'


def test_a_process_that_hangs_is_ended(session, monkeypatch):
    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subject.subprocess, "run", hang)
    with pytest.raises(subprocess.TimeoutExpired):
        list(subject.parts(session.settings)[0].run(session))
