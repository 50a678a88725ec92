"""How many epochs a call takes: a second's worth, and never past the moment at which a checkpoint is due."""

from __future__ import annotations

import math

import pytest

from bdjax.train.pace import MOST, Pace


def calls(epochs: int, seconds: float, most: int = MOST, due=None) -> list[int]:
    """Return the epochs of each call where every epoch takes so long; ``due``: seconds from save to save."""
    paced, taken, clock, saved = Pace(most), [], 0.0, 0.0
    while (left := epochs - sum(taken)) > 0:
        due_in = math.inf if due is None else max(0.0, saved + due - clock)
        taken.append(paced.next(left, due_in))
        clock += taken[-1] * seconds
        paced.took(taken[-1], taken[-1] * seconds)
        if due is not None and clock >= saved + due:
            saved = clock
    return taken


def test_short_epochs_share_calls_that_double():
    assert calls(100, seconds=0.001) == [1, 2, 4, 8, 16, 32, 37]


def test_no_call_has_more_rows_than_the_program():
    assert max(calls(1000, seconds=1e-6)) == MOST
    assert calls(5, seconds=0.001, most=1) == [1] * 5


def test_a_call_takes_no_more_than_a_second():
    assert calls(20, seconds=0.3) == [1, 2, 3, 3, 3, 3, 3, 2]
    assert calls(4, seconds=0.7) == [1] * 4
    assert calls(3, seconds=60.0) == [1] * 3


@pytest.mark.parametrize(
    ("seconds", "due"), [(0.125, 1.0), (0.25, 0.5), (0.375, 1.0), (2**-7, 0.25)]
)
def test_saves_are_due_after_the_same_epochs_as_if_each_were_a_call(seconds, due):
    def saved_after(counts: list[int]) -> list[int]:
        epoch, last, found = 0, 0, []
        for count in counts:
            epoch += count
            if (epoch - last) * seconds >= due:
                found.append(epoch)
                last = epoch
        return found

    together = calls(60, seconds, due=due)
    assert len(together) < 60
    assert saved_after(together) == saved_after([1] * 60)


def test_where_every_epoch_is_saved_each_is_a_call():
    assert calls(6, seconds=0.001, due=0.0) == [1] * 6
