"""What a process keeps at hand between its runs: their plans, each made once, and the victims that it tested last."""

from __future__ import annotations

import json

from bdjax.devices import hosts
from bdjax.runs import inputs, plans, provenance, victim
from bdjax.runs.config import Config
from bdjax.runs.execution import Execution
from bdjax.runs.plans import Plan
from bdjax.runs.trainer import Alone
from bdjax.runs.victim import Victim
from bdjax.types import TriggerState

MOST_VICTIMS = 16  # that are kept, with their variables and triggered test images


class AtHand:
    """The plans and the victims of the runs of one process, all carried out alike.

    Args:
      execution: how victims are trained that are not at hand, each by itself, and for what runs are planned.
    """

    def __init__(self, execution: Execution):
        self._execution = execution
        self._plans: dict[str, Plan] = {}
        self._of_victims: dict[tuple[str, str | None], Plan] = {}  # the first plan of each
        self._victims: dict[tuple[str, str], Victim] = {}

    def plan(self, config: Config) -> Plan:
        """Return the plan of a run, which is made once; runs on the same victim share what its attacker needs.

        Raises:
          InputError: something asked for cannot be.
        """
        if config.run_id not in self._plans:
            own = (config.victim_id, config.data.data_dir)
            asked = (self._execution.devices, self._execution.data_on)
            with self._execution.computing(config):
                plan = plans.prepare(config, *asked, self._of_victims.get(own))
            self._of_victims.setdefault(own, plan)
            self._plans[config.run_id] = plan
        return self._plans[config.run_id]

    def victim(self, plan: Plan) -> Victim:
        """Train the victim of a run, or restore it, and test it; or return it, if this was done just before.

        Raises:
          InputError: the victim was begun with other data.
          bdjax.train.loop.Diverged, bdjax.train.loop.Stopped: as for `bdjax.runs.run.run`.
        """
        known = self._victims
        made_of = inputs.of_victim(plan.inputs.fingerprint)
        name = plan.config.victim_id, json.dumps(made_of, sort_keys=True)
        if name not in known:
            while len(known) >= MOST_VICTIMS:
                del known[next(iter(known))]
            known[name] = self._train(plan)
        return known[name]

    def trigger_state(self, plan: Plan) -> TriggerState:
        """Return the trigger's state when the victim is done; what does not decide it is not trained.

        Raises:
          InputError, bdjax.train.loop.Diverged, bdjax.train.loop.Stopped: as for `victim`.
        """
        if plan.attack.by_formula:
            return plan.trigger_state
        count = len(plan.stages) - ("learn" not in plan.attack.trigger.hooks)
        return self._plant(plan, count).trigger_state

    def _train(self, plan: Plan) -> Victim:
        return victim.tested(plan, self._plant(plan))

    def _plant(self, plan: Plan, stages: int | None = None) -> victim.Planted:
        execution, folder = self._execution, victim.folder_of(plan, self._execution)
        with hosts.held_by_first(folder.locked()):
            provenance.begin(folder, plan.config, plan.inputs, execution.runs, execution.changed)
            (planted,) = victim.plant([plan], execution, Alone(execution), stages)
        assert planted is not None, "what diverges alone is raised"
        return planted
