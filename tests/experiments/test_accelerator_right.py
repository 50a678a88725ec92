"""The checks of an accelerator: they find nothing where all is right, and something where it is not."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from bdjax import optim

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from accelerator import cut, processes, right, twice
from accelerator.session import Session, Settings


@pytest.fixture
def session(tmp_path):
    return Session(Settings(tmp_path / "out", tmp_path / "work", debug=True))


def test_all_parts_fit_into_a_minute():
    parts = right.parts(Settings(Path("out"), Path("work")))
    assert sum(part.seconds for part in parts) <= 60


def test_sam_is_its_closed_form(session):
    rows = list(right.sam(session))
    assert len(rows) == 4
    assert all(row["ok"] and 0 < row["error"] < 1e-6 for row in rows)


def test_a_sam_that_is_a_little_wrong_is_found(session, monkeypatch):
    true = optim.perturbation
    wrong = lambda grads, params, rho, **options: true(grads, params, 1.001 * rho, **options)  # noqa: E731
    monkeypatch.setattr(optim, "perturbation", wrong)
    # Optim.sam is its function
    monkeypatch.setattr(sys.modules["bdjax.optim.sam"], "perturbation", wrong)
    assert [row["ok"] for row in right.sam(session)] == [False] * 4


def test_every_call_has_inputs_of_its_own(session):
    first, other = (next(right.sam(session)) for _ in range(2))
    assert first["seed"] != other["seed"]


def test_an_error_of_training_is_a_share_of_its_way():
    before, after = np.zeros(4, np.float32), np.array([3, 0, 0, 4], np.float32)
    assert right.moved(after, after, before) == 0
    assert right.moved(after + np.float32([0, 0.5, 0, 0]), after, before) == pytest.approx(0.1)
    assert math.isnan(right.moved(before, before, before))


def test_an_error_that_is_no_number_is_not_ok():
    row = right.check("training", math.nan, 0.1)
    assert (row["error"], row["ok"]) == (None, False)
    assert right.check("training", math.inf, 0.1)["ok"] is False


def images(**changes):
    clean = np.full((4, 8, 8, 3), 0.5, np.float32)
    return {"clean": clean, "patch": clean + np.float32(0.25), **changes}


def test_a_trigger_is_counted_in_levels_of_8_bits():
    found, expected = images(), images()
    found["patch"] = found["patch"].copy()
    found["patch"][0, 0, 0] += 2 / 255
    row = right.trigger("patch", found, expected, seed=3)
    assert (row["differ"], row["of"], row["by_at_most"], row["seed"]) == (3, 768, 2, 3)
    assert row["error"] == pytest.approx(6 / 768, rel=1e-3)
    assert row["ok"] is True
    found["patch"][0] += 2 / 255
    assert right.trigger("patch", found, expected, seed=3)["ok"] is False


def test_a_trigger_that_does_nothing_is_not_ok():
    same = images(patch=images()["clean"])
    row = right.trigger("patch", same, same, seed=0)
    assert (row["error"], row["changed"], row["ok"]) == (0, 0, False)


def test_the_table_has_a_row_for_each_check_and_says_what_is_wrong():
    rows = [
        {"part": "right/sam", **right.check("ε of SAM", 1.23e-7, 1e-5)},
        {"part": "right/sam", "done": True},
        {"part": "right/epoch", **right.check("an epoch", math.nan, 1e-3)},
        {
            "part": "right/triggers",
            **right.check("trigger", 0.5, 0.01, differ=3, of=768, by_at_most=2),
        },
        {"part": "right/cut", **right.check("cut", 5, 0, of=100, by_at_most=1e-9)},
        {
            "part": "right/cut",
            "check": "flag",
            "error": None,
            "bound": 0,
            "ok": False,
            "why": "Unknown | flag",
        },
        {"part": "speed/steps", "check": "another subject's"},
    ]
    assert right.tables(rows).splitlines() == [
        "## Is it right?",
        "",
        "| check | error | bound | | |",
        "| --- | ---: | ---: | --- | --- |",
        "| ε of SAM | 1.2e-07 | 1e-05 | ok |  |",
        "| an epoch | – | 0.001 | NOT OK |  |",
        "| trigger | 0.5 | 0.01 | NOT OK | 3 of 768 values of 8 bits differ, by 2 at most |",
        "| cut | 5 | 0 | NOT OK | of 100 numbers, by 1.0e-09 at most |",
        "| flag | – | 0 | NOT OK | Unknown / flag |",
    ]
    assert right.tables(rows[-1:]) == ""


def test_the_start_of_training_is_drawn_without_a_compiler():
    model = twice.network(debug=True)
    first, again, other = (twice.flat(twice.start(model, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    norms = twice.start(model, 1)["batch_stats"]["bn1"]
    assert (norms["mean"] == 0).all()
    assert (norms["var"] == 1).all()


# --- Processes -------------------------------------------------------------------------------------------------------

KNOWN = (
    "raise SystemExit('E0000 parse_flags.cc:226] Unknown flag in XLA_FLAGS: --no_such\\nand more')"
)


def test_a_process_that_fails_says_why(tmp_path):
    said = tmp_path / "said.txt"
    with (
        processes.started(["-c", KNOWN], said) as process,
        pytest.raises(processes.Failed) as failed,
    ):
        processes.finish(process, said)
    assert str(failed.value).startswith(
        "exit code 1 instead of 0: E0000 parse_flags.cc:226] Unknown flag"
    )


def test_no_process_outlives_who_started_it(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        processes.started(["-c", "input()"], tmp_path / "said.txt") as process,
    ):
        raise ZeroDivisionError
    assert process.poll() is not None


def test_a_flag_that_is_not_taken_is_an_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(cut, "_RUN", ("-c", KNOWN))
    row = cut._check(cut.Setting("--no_such=true", shared=False), tmp_path, width=4)
    assert (row["error"], row["ok"], row["flag"]) == (None, False, "--no_such=true")
    assert "Unknown flag" in row["why"]


def test_a_setting_is_a_flag_of_xla_or_an_option_of_bdjax(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_mine=1")
    of_xla, own, none = (
        cut.Setting(flag, shared=False) for flag in ("--xla_x=true", "--deterministic", "")
    )
    assert (of_xla.words, of_xla.xla_flags) == ((), "--xla_mine=1 --xla_x=true")
    assert (own.words, own.xla_flags) == (("--deterministic",), "--xla_mine=1")
    assert (none.words, none.xla_flags) == ((), "--xla_mine=1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", right.parts(Settings(Path("out"), Path("work"))), ids=lambda part: part.name
)
def test_all_is_right_on_this_device(part, session):
    """In miniature; 45 s on two free cores."""
    rows = list(part.run(session))
    assert rows
    assert [row for row in rows if not row["ok"]] == []
