"""What drives every feeder: shown with one that counts, and compiles nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bdjax import defenses
from bdjax.checks import InputError
from bdjax.train import calls, loop, pace
from bdjax.train.checkpoints import Checkpoints
from bdjax.train.feeder import Feeder
from bdjax.train.programs import Summary
from bdjax.train.results import Epoch, GroupEpoch


class Counting:
    """Feeds points whose state is a number that each epoch doubles, and remembers what was asked of it."""

    row: Any = GroupEpoch

    def __init__(self, epochs: int = 8, most: int = 4, breaks_after: float = math.inf):
        self.learner = defenses.create("ft", epochs=epochs).learner
        self.most, self._breaks_after = most, breaks_after
        self.asked: list[range] = []
        self.closed = 0

    def init(self) -> Any:
        return np.array([1, 3], np.int32)

    def advance(self, numbers: range, state: Any) -> tuple[Any, Summary]:
        self.asked.append(numbers)
        rows = np.array([*numbers, *[0] * (self.most - len(numbers))])  # more rows than count
        finite = np.stack([rows < self._breaks_after, rows < 2], axis=1)
        loss = np.stack([1.0 * rows, -1.0 * rows], axis=1)
        spent = np.full(loss.shape, 5)
        return state * 2 ** len(numbers), Summary(loss, loss / 2, spent, finite)  # type: ignore[arg-type]

    def keep(self, state: Any) -> Any:
        return state[:1]

    def like(self) -> Any:
        return np.array([1], np.int32)

    def restore(self, kept: Any) -> Any:
        return np.array([*np.asarray(kept), 77], np.int32)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """However slow this machine, let calls have one epoch, two, four and so on."""
    monkeypatch.setattr(pace, "CALL_SECONDS", 1e6)


@pytest.fixture
def checkpoints(tmp_path):
    with Checkpoints(tmp_path, every=0.0) as checkpoints:
        yield checkpoints


def taken(feeder: Counting, **options: Any) -> list[calls.Call]:
    start = calls.begin(feeder, None)
    return list(calls.calls(feeder, start, **{"most": feeder.most, **options}))


def test_it_is_a_feeder():
    assert isinstance(Counting(), Feeder)


def test_each_call_is_yielded_with_its_epochs_and_its_state():
    feeder = Counting()
    found = taken(feeder)
    assert feeder.asked == [range(1), range(1, 3), range(3, 7), range(7, 8)]
    assert [[row.epoch for row in call.rows] for call in found] == [[1], [2, 3], [4, 5, 6, 7], [8]]
    assert [call.state.tolist() for call in found] == [[2, 6], [8, 24], [128, 384], [256, 768]]
    assert all(call.finite for call in found)


def test_a_call_takes_no_more_epochs_than_it_may_or_than_there_is_time_for():
    feeder = Counting()
    taken(feeder, most=1)
    assert feeder.asked == [range(number, number + 1) for number in range(8)]
    feeder = Counting()
    taken(feeder, due_in=lambda: 0.0)
    assert {len(numbers) for numbers in feeder.asked} == {1}


def test_a_groups_reports_are_lists_and_a_point_that_is_not_finite_has_no_loss():
    row = taken(Counting(epochs=3))[-1].rows[-1]
    assert (row.epoch, row.loss[0], row.accuracy) == (3, 2.0, [1.0, -1.0])
    assert math.isnan(row.loss[1])
    assert row.gradient_evaluations == [5, 5]
    assert {type(number) for number in (*row.loss, *row.accuracy)} == {float}
    assert {type(number) for number in row.gradient_evaluations} == {int}


def test_a_call_ends_its_reports_where_nothing_is_finite():
    *_, last = taken(Counting(epochs=7, breaks_after=4))
    assert (last.finite, [row.epoch for row in last.rows]) == (False, [4])


def test_the_state_goes_through_all_epochs_and_the_feeder_is_closed(checkpoints):
    feeder, told = Counting(epochs=4), []
    state, history = loop.complete(feeder, checkpoints=checkpoints, on_epoch=told.append)
    assert (state.tolist(), feeder.closed) == ([16, 48], 1)
    assert [row.epoch for row in told] == [1, 2, 3, 4]
    assert all(one is other for one, other in zip(told, history, strict=True))
    again = Counting(epochs=4)
    state, history = loop.complete(again, checkpoints=checkpoints)
    # What is not kept is made again
    assert (again.asked, state.tolist(), again.closed) == ([], [16, 77], 1)
    np.testing.assert_equal(history, told)


def test_a_state_is_shown_after_every_epoch_before_it_is_saved(checkpoints):
    shown = []
    loop.complete(
        Counting(epochs=3),
        checkpoints=checkpoints,
        on_state=lambda done, state: shown.append((done, state.tolist(), checkpoints.epoch)),
    )
    assert shown == [(1, [2, 6], None), (2, [4, 12], 1), (3, [8, 24], 2)]


def test_whatever_ends_a_run_closes_its_feeder(checkpoints):
    feeder = Counting(breaks_after=2)
    with pytest.raises(loop.Diverged, match=r"after epoch 3 of 8: .* of epoch 2, is in"):
        loop.complete(feeder, checkpoints=checkpoints)
    assert feeder.closed == 1
    feeder = Counting()
    with pytest.raises(loop.Stopped, match="stopped after epoch 3 of 8"):
        loop.complete(feeder, checkpoints=checkpoints, should_stop=lambda: True)
    assert feeder.closed == 1
    feeder = Counting(epochs=2)
    with pytest.raises(InputError, match="epochs must be at least 3, which the checkpoint"):
        loop.complete(feeder, checkpoints=checkpoints)
    assert feeder.closed == 1


def test_a_point_of_a_group_has_its_share_and_the_mean_is_of_those_that_are_finite():
    row = GroupEpoch(2, [1.0, math.nan, 3.0], [0.5, 0.0, 0.25], [4, 5, 6], 6.0, 3.0)
    assert row.of(2) == Epoch(2, 3.0, 0.25, 6, 2.0, 1.0)
    assert row.mean() == Epoch(2, 2.0, 0.375, 15, 6.0, 3.0)
