"""The loss surface of a run: measured at its ends, or over its epochs in a file that survives its interruptions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from bdjax.curvature import loss_surface
from bdjax.devices import hosts
from bdjax.runs import plans
from bdjax.runs.execution import Execution
from bdjax.runs.folder import RunFolder
from bdjax.runs.plans import Plan
from bdjax.runs.victim import score
from bdjax.tasks.metrics import ATTACK, UTILITY, names, of_roles
from bdjax.types import PoisonedSplit, Variables

_ROLES = (UTILITY, ATTACK)  # of the metrics beside the loss surface, in each row of a curve


@dataclasses.dataclass(frozen=True)
class Curve:
    """Rows ``{"epoch": …, …}`` under ``"curve"`` in the run's ``smoothness.json``, whose other keys stay.

    A row is written as soon as it is measured, and an epoch that has one, from before an interruption,
    is not measured again: the repeated epoch would give the same bits. Rows of other settings are
    dropped.

    Attributes:
      folder: of the run.
      settings: plain values that decide a row.
      measure: variables on the host to plain values.
      every: epochs between two rows; epoch 0 and the ``last`` have one anyhow.
      last: the run's number of epochs.
    """

    folder: RunFolder
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
        self.folder.write_smoothness({**self._content(), "run": self.folder.name, "curve": curve})

    def after(self, epochs: int) -> Callable[[int, Callable[[], Variables]], None]:
        """Return the same for a loop that begins after so many epochs: ``on_variables`` of `bdjax.train.loop.run`."""
        return lambda epoch, variables: self(epochs + epoch, variables)

    def _content(self) -> dict[str, Any]:
        return self.folder.smoothness() or {}

    def _rows(self) -> dict[int, dict[str, Any]]:
        curve = self._content().get("curve", {})
        if curve.get("settings") != self.settings:
            return {}
        return {row["epoch"]: row for row in curve.get("rows", ())}


def of_run(plan: Plan, triggered: PoisonedSplit, execution: Execution) -> Curve | None:
    """Return the curve of a run, where one is asked for and this process is the one that writes it."""
    if not execution.smoothness or not hosts.is_first():
        return None
    settings = loss_surface.Settings()

    def row(variables: Variables) -> dict[str, Any]:
        metrics, _ = score(plan, variables, triggered)
        drawn = names(of_roles(plan.inputs.spec.task.metrics, *_ROLES))
        rates = {name: float(getattr(metrics, name)) for name in drawn}
        return {**rates, **measure(plan, variables, triggered, settings).plain()}

    last = sum(stage.epochs for stage in plan.defense_stages)
    folder = execution.runs.run(plan.config.run_id)
    return Curve(folder, settings.identity(), row, every=execution.smoothness, last=last)


def check(plan: Plan, execution: Execution) -> None:
    """Refuse a curve for which there are too few test images; how many count is known before a trigger is made.

    Raises:
      InputError: there are.
    """
    if execution.smoothness:
        test, triggered = plan.dataset.test, plans.triggered_test(plan)
        loss_surface.sample(
            jax.random.key(0), test, triggered, images=loss_surface.Settings().images
        )


def measure(
    plan: Plan,
    variables: Variables,
    triggered: PoisonedSplit,
    settings: loss_surface.Settings,
    variant: str = "mixed",
) -> loss_surface.Smoothness:
    """Measure the loss surface of a network on test images; the same ones and the same draws for the same seed."""
    key, test = plans.key_for(plan.config, "smoothness"), plan.dataset.test
    of = (key, plan.model, variables, test, triggered)
    return loss_surface.measure(*of, variant=variant, settings=settings)
