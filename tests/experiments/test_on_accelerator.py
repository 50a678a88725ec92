"""The program for an accelerator's minutes: its clock, its files, and what it makes of mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bdjax.files import atomic, locks
from bdjax.train import loop

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import on_accelerator
from accelerator import session
from accelerator.session import Part, Settings

# --- The frame: parts in turn, within the time, each once ------------------------------------------------------------


class Fake:
    """A subject whose parts say when they are done, and do what they are told."""

    def __init__(self, **parts):
        self.ways, self.done = parts, []
        self.seconds, self.needs = {}, {}

    def parts(self, settings):
        del settings
        return [
            Part(
                f"fake/{name}", self.seconds.get(name, 1), self._run(name), self.needs.get(name, ())
            )
            for name in self.ways
        ]

    def tables(self, rows):
        return " ".join(str(row["number"]) for row in rows if "number" in row)

    def _run(self, name):
        def run(session):
            self.done.append(name)
            for row in self.ways[name]():
                yield {"number": row}

        return run


def fail():
    yield 7
    raise ValueError("no such luck")


def cut_off():
    yield 8
    raise KeyboardInterrupt


@pytest.fixture
def fake(monkeypatch):
    subject = Fake(one=lambda: [1], two=lambda: [2, 3])
    monkeypatch.setattr(on_accelerator, "SUBJECTS", (subject,))
    monkeypatch.setattr(on_accelerator, "FURTHER", ())
    return subject


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def call(out, *words):
    return on_accelerator.main(["--out", str(out), "--debug", *words])


def rows(out):
    return [json.loads(line) for line in (out / session.RESULTS).read_text().splitlines()]


def numbers(out):
    return [row["number"] for row in rows(out) if "number" in row]


def log(out):
    return (out / session.LOG).read_text()


def test_a_call_leaves_rows_a_table_and_a_log(fake, out):
    assert call(out) == 0
    assert numbers(out) == [1, 2, 3]
    assert [row["part"] for row in rows(out) if row.get("done")] == ["fake/one", "fake/two"]
    heading, where, table = (out / session.SUMMARY).read_text().split("\n\n")
    assert heading == "# On an accelerator"
    assert "cpu, jax " in where
    assert "In miniature" in where
    assert table == "1 2 3\n"
    assert "fake/two: done in" in log(out)
    ending = rows(out)[-1]
    assert ending["device"]["platform"] == "cpu"
    assert "jax" in ending["versions"]
    assert sorted(path.name for path in out.iterdir()) == [
        session.LOG,
        session.RESULTS,
        session.SUMMARY,
    ]


def test_a_second_call_does_what_is_missing(fake, out):
    assert call(out, "--only", "fake/o") == 0
    assert call(out) == 0
    assert call(out) == 0
    assert fake.done == ["one", "two"]
    assert numbers(out) == [1, 2, 3]


def test_a_part_that_fails_is_told_and_tried_again_and_the_others_go_on(fake, out, capsys):
    fake.ways["one"] = fail
    assert call(out) == 1
    assert capsys.readouterr().err == (
        f"on_accelerator: failed: fake/one; {out / session.LOG} says why, the same command tries again.\n"
    )
    assert fake.done == ["one", "two"]
    assert "ValueError: no such luck" in log(out)
    assert [row["failed"] for row in rows(out) if "failed" in row] == ["ValueError: no such luck"]
    assert sorted(numbers(out)) == [2, 3, 7]
    fake.ways["one"] = lambda: [1]
    assert call(out) == 0
    assert fake.done == ["one", "two", "one"]
    assert sorted(numbers(out)) == [1, 2, 3]
    assert not [row for row in rows(out) if "failed" in row]


def test_a_part_that_does_not_fit_is_told_and_left_for_the_next_call(fake, out):
    fake.seconds["one"] = 120
    assert call(out, "--minutes", "1") == 0
    assert "fake/one: skipped, as it takes about 120 s of 55 s left" in log(out)
    assert fake.done == ["two"]
    assert call(out, "--minutes", "3") == 0
    assert fake.done == ["two", "one"]


def test_a_part_that_stops_when_time_is_up_is_gone_on_with_and_has_not_failed(fake, out):
    def stop():
        yield 4
        raise loop.Stopped("stopped after epoch 1 of 2")

    fake.ways["one"] = stop
    assert call(out) == 0
    assert "fake/one: stopped in" in log(out)
    fake.ways["one"] = lambda: [1]
    assert call(out) == 0
    assert fake.done == ["one", "two", "one"]


def test_missing_images_are_told_before_anything_is_measured(out, tmp_path, capsys):
    asked = ["--out", str(out), "--data-dir", str(tmp_path)]
    assert on_accelerator.main(asked) == 2
    told = capsys.readouterr().err
    assert "data-dir must be a folder with a prepared CIFAR-10" in told
    assert told.count("\n") == 1
    assert not out.exists()


def test_a_part_waits_for_what_it_needs(fake, out):
    fake.ways["one"] = fail
    fake.needs["two"] = ("fake/one",)
    assert call(out) == 1
    assert "fake/two: skipped, as it needs fake/one" in log(out)
    fake.ways["one"] = lambda: [1]
    assert call(out) == 0
    assert fake.done == ["one", "one", "two"]


def test_what_is_cut_off_keeps_its_rows_and_is_begun_anew(fake, out, capsys):
    fake.ways["two"] = cut_off
    assert call(out) == 143
    assert capsys.readouterr().err == "on_accelerator: interrupted; the same command continues.\n"
    assert numbers(out) == [1, 8]
    assert (out / session.SUMMARY).read_text().endswith("\n\n1\n")
    fake.ways["two"] = lambda: [2, 3]
    assert call(out) == 0
    assert numbers(out) == [1, 2, 3]
    assert fake.done == ["one", "two", "two"]


def test_a_kill_while_the_results_are_written_leaves_the_last_ones(fake, out, monkeypatch):
    assert call(out, "--only", "fake/one") == 0
    before = (out / session.RESULTS).read_bytes()

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_replace", die)
        assert call(out) == 143
    assert (out / session.RESULTS).read_bytes() == before
    # A kill leaves that, an exception does not
    (out / f".{session.RESULTS}.123").write_text('{"part": "fa')
    assert call(out) == 0
    assert numbers(out) == [1, 2, 3]
    assert len(list(out.iterdir())) == 3


def test_files_stay_small_whatever_a_part_says(fake, out):
    def shout():
        raise ValueError("x" * 20_000_000)
        yield

    fake.ways["one"] = shout
    assert call(out) == 1
    assert max(path.stat().st_size for path in out.iterdir()) < 100_000
    assert "fake/two: done" in log(out)


def test_numbers_of_numpy_are_numbers(fake, out):
    fake.ways["one"] = lambda: [np.float32(0.5), np.int64(3)]
    assert call(out) == 0
    assert numbers(out)[:2] == [0.5, 3]


def test_a_table_that_cannot_be_made_costs_no_other(fake, out, monkeypatch):
    class Broken(Fake):
        __name__ = "broken"

        def tables(self, rows):
            raise KeyError("number")

    monkeypatch.setattr(on_accelerator, "SUBJECTS", (Broken(), fake))
    assert call(out) == 0
    text = (out / session.SUMMARY).read_text()
    assert "No table of broken" in text
    assert text.endswith("1 2 3\n")


def test_the_parts_have_names_of_their_own_and_need_what_comes_before():
    for debug in (True, False):
        seen: set[str] = set()
        for part in on_accelerator.parts(Settings(Path("out"), Path("work"), debug=debug)):
            assert part.name not in seen
            assert "/" in part.name
            assert set(part.needs) <= seen
            assert part.seconds > 0
            seen.add(part.name)


# --- The frame: mistakes are one line --------------------------------------------------------------------------------


def refused(capsys, out, *words):
    """Return the one line that a call says, which does nothing else."""
    assert call(out, *words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("on_accelerator: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--only", "fake/on", "fkae/two"),
            "only must be the beginning of a part's name, such as fake/one; got 'fkae/two'",
        ),
        (("--minutes", "0"), "minutes must be above 0, got 0.0."),
        (("--minutes", "-3"), "minutes must be above 0"),
        (("--minutes", "nan"), "minutes must be finite"),
        (("--minutes", "nine"), "invalid float value: 'nine'"),
        (
            ("--data-dir", "no/such/folder"),
            "data-dir must be a folder that is there, got 'no/such/folder'.",
        ),
        (("--work", ""), "work must name a folder"),
        (("--hurry",), "--hurry"),
    ],
)
def test_a_wrong_option_is_one_line(words, said, fake, out, capsys):
    assert said in refused(capsys, out, *words)
    assert fake.done == []
    assert not out.exists()


def test_an_out_that_is_a_file_is_one_line(fake, out, capsys):
    out.write_text("mine")
    assert "out must be a folder" in refused(capsys, out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    "content",
    ['{"part": "fake/one", "done"', "[1]\n", '{"number": 1}\n', '{"part": 3}\n', "\n", "\xff"],
)
def test_damaged_results_are_one_line_and_stay(content, fake, out, capsys):
    out.mkdir()
    (out / session.RESULTS).write_bytes(content.encode("latin-1"))
    assert "results.jsonl is damaged" in refused(capsys, out)
    assert (out / session.RESULTS).read_bytes() == content.encode("latin-1")
    assert fake.done == []


def test_results_of_another_device_are_not_taken_for_ours(fake, out, capsys, monkeypatch):
    assert call(out) == 0
    capsys.readouterr()
    theirs = {"platform": "gpu", "kind": "NVIDIA H100", "count": 1}
    monkeypatch.setattr(session.measure, "machine", lambda: {"device": theirs})
    said = refused(capsys, out)
    assert "(cpu) with --debug, and this is 1 × NVIDIA H100 (gpu) with --debug" in said


def test_results_of_the_miniature_are_not_taken_for_the_real_ones(fake, out, capsys):
    assert call(out) == 0
    capsys.readouterr()
    assert on_accelerator.main(["--out", str(out)]) == 2
    assert "has results of" in capsys.readouterr().err


def test_two_calls_at_a_time_are_refused(fake, out, capsys):
    with locks.claimed([out.with_name("out-work")]):
        assert "is in use" in refused(capsys, out)


def test_what_the_machine_fails_at_is_one_line(fake, out, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "results.jsonl")

    monkeypatch.setattr(atomic, "write_text", full)
    assert call(out) == 1
    assert capsys.readouterr().err.startswith("on_accelerator: there is no room left")


# --- The frame: processes --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_call_that_is_killed_goes_on_from_a_checkout(tmp_path):
    """A process of its own; half a minute on two free cores."""
    out = tmp_path / "out"
    words = ("--out", str(out), "--debug", "--only", "right/sam", "right/triggers")
    command = [sys.executable, on_accelerator.__file__, *words]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path)
    while "right/triggers: about" not in (log(out) if (out / session.LOG).exists() else ""):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = rows(out)
    assert [row["part"] for row in before if row.get("done")] == ["right/sam"]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    assert rows(out)[: len(before)] == before
    assert [row["part"] for row in rows(out) if row.get("done")] == ["right/sam", "right/triggers"]
    assert all(row["ok"] for row in rows(out) if "check" in row)
