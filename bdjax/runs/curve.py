"""A measurement over the epochs of a run, kept in a file that survives the run's interruptions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bdjax.runs import records
from bdjax.types import Variables


@dataclasses.dataclass(frozen=True)
class Curve:
    """Rows ``{"epoch": …, …}`` under ``"curve"`` in a JSON file, whose other keys stay.

    A row is written as soon as it is measured, and an epoch that has one, from before an interruption, is not measured
    again: the repeated epoch would give the same bits. Rows of other settings are dropped.

    Attributes:
      file: made if it is not there.
      settings: plain values that decide a row.
      measure: variables on the host to plain values.
      every: epochs between two rows; epoch 0 and the ``last`` have one anyhow.
      last: the run's number of epochs.
    """

    file: Path
    settings: dict[str, Any]
    measure: Callable[[Variables], dict[str, Any]]
    every: int
    last: int

    def __call__(self, epoch: int, variables: Callable[[], Variables]) -> None:
        """Measure the variables after an epoch if they are due."""
        if epoch % self.every and epoch != self.last:
            return
        rows = self._rows()
        if epoch in rows:
            return
        # From the host: the loop may have spread its state over devices, and consumes it in its next epoch.
        rows[epoch] = {"epoch": epoch, **self.measure(jax.device_get(variables()))}
        curve = {"settings": self.settings, "rows": [rows[number] for number in sorted(rows)]}
        records.write_json(self.file, {**self._content(), "run": self.file.parent.name, "curve": curve})

    def after(self, epochs: int) -> Callable[[int, Callable[[], Variables]], None]:
        """Return the same for a loop that begins after this many epochs: ``on_variables`` of `bdjax.train.loop.run`."""
        return lambda epoch, variables: self(epochs + epoch, variables)

    def _content(self) -> dict[str, Any]:
        return records.read_smoothness(self.file.parent) or {}

    def _rows(self) -> dict[int, dict[str, Any]]:
        curve = self._content().get("curve", {})
        return {row["epoch"]: row for row in curve.get("rows", ()) if curve.get("settings") == self.settings}
