"""How many epochs one compiled call takes: as many as fit into a second, so that the host costs little."""

from __future__ import annotations

import math

from bdjax.devices import hosts

CALL_SECONDS = 1.0  # of a call of several epochs; so long may a signal wait
MOST = 64  # epochs of a call
# Epochs of a call over those of the one before, as the first calls are slower than the rest.
_GROWTH = 2


class Pace:
    """Chooses from the seconds of the calls so far; the first call is one epoch.

    A call ends with the epoch at which a checkpoint is due, as if each epoch were a call.

    Args:
      most: epochs that a call takes at most.
    """

    def __init__(self, most: int = MOST):
        self._most = most
        self._last = 0
        self._seconds = 0.0  # of an epoch

    def next(self, left: int, due_in: float = math.inf) -> int:
        """Return how many of the epochs that are left the next call takes; on all hosts as many.

        Args:
          left: at least 1.
          due_in: seconds until a checkpoint is due.
        """
        if min(left, self._most) == 1:
            return 1
        return hosts.from_first(lambda: self._fitting(left, due_in))

    def took(self, count: int, seconds: float) -> None:
        """Take note of what a call took without compiling."""
        self._last, self._seconds = count, seconds / count

    def _fitting(self, left: int, due_in: float) -> int:
        most = min(_GROWTH * self._last, self._most, left)
        for seconds, whole in ((CALL_SECONDS, math.floor), (due_in, math.ceil)):
            if seconds < most * self._seconds:
                most = whole(seconds / self._seconds)
        return max(1, most)
