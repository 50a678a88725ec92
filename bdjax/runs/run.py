"""A run, told in order: load → poison → train → defend → evaluate → record."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import signal
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from bdjax import defenses, evaluate, poison, stealth
from bdjax.checks import one_of
from bdjax.curvature import loss_surface
from bdjax.defenses import stage_key
from bdjax.defenses.chain import stages
from bdjax.devices import compilation, hosts, numerics, sharding
from bdjax.runs import outcome, plans, provenance, records, schema, soundness, strength
from bdjax.runs.config import Config
from bdjax.runs.curve import Curve
from bdjax.runs.plans import Plan
from bdjax.tasks.metrics import ATTACK, UTILITY, of_roles
from bdjax.train import attacker, batches, feeding, loop, streamed, unrolling
from bdjax.train.attacker import Stage
from bdjax.train.checkpoints import Checkpoints
from bdjax.types import Defense, LearnedTrigger, Learner, Metrics, Model, PoisonedSplit, Split, TriggerState, Variables

_log = logging.getLogger(__name__)
_COMPARED = 500  # images on which a trigger of training is compared, which may take long to put on
VICTIMS = 16  # that are kept at hand, with their variables and triggered test images
SAMPLES = 10  # test images whose predictions a run keeps for the figures
_TRIAL = {"value": float, "accuracy": float, "gradient_evaluations": int}
_UNROLL = {"unroll": int, "seconds": {str: float}}
SELECTION = {  # of the file in which a chosen strength is kept
    "run": str,
    "option": str,
    "chosen": float,
    "within_budget": bool,
    "accuracy_before": float,
    "aside_count": int,
    "trials": [_TRIAL],
}


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a run is carried out: what may change its speed but not its identity.

    Attributes:
      out: folder of the run folders.
      devices: how many devices, of all hosts, split each batch; more than one changes results within rounding.
      checkpoint_seconds: least seconds between two checkpoints; 0 saves after every epoch.
      on_epoch: called with (what is trained, epochs in all, the epoch's report).
      should_stop: asked after each epoch.
      smoothness: epochs of the defense between two measurements of the loss surface, written to the run's
        ``smoothness.json``; 0 takes none.
      data_on: where the training images are, one of `bdjax.devices.placement.PLACES`; unless on the device, they are
        streamed to it. The results are the same, on one device bit for bit.
      deterministic: let every process compute the same bits on the same kind of device (`bdjax.devices.numerics`), so
        that also a run that was interrupted on a GPU ends in those of one that was not.
      prepare, unroll: how an epoch is fed from the device (`bdjax.train.feeding.choose`). ``prepare`` changes no bit;
        ``unroll`` changes results within rounding, and ``auto`` times a few steps (`bdjax.train.unrolling.choose`; in
        a sweep it is 1).
      changed: of `bdjax.runs.provenance.CHANGED`: what to do where a run, or its victim, was begun with other data than
        are there now: refuse it, or set its folder aside and run again.
      on_finished: called with the id of a run whose record is returned as it is.
      victims: the last `VICTIMS` attacked models, which further runs need not test again.
    """

    out: Path
    devices: int = 1
    checkpoint_seconds: float = 1.0
    on_epoch: Callable[[str, int, loop.Epoch], None] | None = None
    should_stop: Callable[[], bool] | None = None
    smoothness: int = 0
    data_on: str = "auto"
    prepare: str = feeding.AUTO
    unroll: int | str = 1
    changed: str = "refuse"
    deterministic: bool = False
    on_finished: Callable[[str], None] = lambda run_id: None
    victims: dict[Hashable, Victim] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise InputError for an unknown word."""
        one_of(provenance.CHANGED, changed=self.changed)
        feeding.check(self.prepare, self.unroll)


class Guesses(NamedTuple):
    """The classes that a network names for the clean and the triggered test images."""

    clean: Any
    triggered: Any


class Victim(NamedTuple):
    """The attacked model, and what it does on the test images."""

    trained: loop.Result  # its history is that of all that the attacker trained
    trigger_state: TriggerState
    poisoned_count: int
    triggered: PoisonedSplit
    metrics: Metrics
    guesses: Guesses
    stealth: dict[str, Any]  # of the trigger, as the record has it


def run(config: Config, execution: Execution) -> dict[str, Any]:
    """Carry out a run, or return its record if it is finished; the same config never runs twice.

    The folder ``<out>/<run_id>`` holds ``config.yaml``, ``record.json``, ``samples.npz``, the defense's checkpoints and
    ``data.json``, which the data must agree with when a run is continued; ``<out>/victims/<victim_id>`` the attacked
    model, which other defenses share. Several hosts (`bdjax.devices.hosts.start`) all call this, with the same
    arguments and a folder that they share; the first writes.

    Raises:
      InputError: something asked for cannot be, or the data have changed since the run was begun; nothing was compiled.
      bdjax.train.loop.Diverged: a loss was not finite; the last good checkpoint is kept.
      bdjax.train.loop.Stopped: `Execution.should_stop` said so; a later call continues.
    """
    hosts.check_same(config=config.run_id, devices=execution.devices)
    folder = execution.out / config.run_id
    if (record := kept(config, execution)) is not None:
        return _as_it_is(record, folder, execution)
    with computing(config, execution):
        return _carry_out(config, execution)


def computing(config: Config, execution: Execution) -> contextlib.AbstractContextManager[None]:
    """Return the context in which all of a run is computed: its config's precision, the execution's kernels."""
    return numerics.in_force(config.matmul_precision, execution.deterministic)


def _carry_out(config: Config, execution: Execution) -> dict[str, Any]:
    folder = execution.out / config.run_id
    plan = plans.prepare(config, execution.devices, execution.data_on)
    plans.tell_of_batches(plan)
    hosts.check_same(data=plan.fingerprint, versions=records.versions())
    with _locked(folder):
        if (record := kept(config, execution)) is not None:  # another process was faster
            return _as_it_is(record, folder, execution)
        provenance.settle(folder, plan, execution.out, execution.changed)  # its victim may have been trained anew since
        _write(records.write_text, folder / "config.yaml", schema.to_yaml(config.to_dict()))
        _check_curve(plan, execution)
        with _locked(execution.out / "victims" / config.victim_id):
            victim = attack(plan, execution)
        plan = plans.arm(plan, victim.trigger_state)
        curve = _curve(plan, victim.triggered, execution)
        plan, selection = select_strength(plan, victim.trained.variables, folder / "selection.json")
        purified = defend(plan, victim.trained.variables, execution, curve)
        return conclude(plan, victim, purified, execution, {"selection": selection} if selection else {})


def kept(config: Config, execution: Execution) -> dict[str, Any] | None:
    """Return the record of a run that is finished, if it is of the data that are there now; else None, or refuse.

    Raises:
      InputError: the data have changed, and `Execution.changed` is ``refuse``; or the record is of another run.
    """
    folder = execution.out / config.run_id
    record = provenance.finished(folder)
    same = record is not None and provenance.is_of_these_data(folder, config, execution.changed)
    return record if same else None


def _as_it_is(record: dict[str, Any], folder: Path, execution: Execution) -> dict[str, Any]:
    _warn_of_no_curve(folder, execution)
    if hosts.is_first():
        execution.on_finished(folder.name)
    return record


def attack(plan: Plan, execution: Execution) -> Victim:
    """Train the victim, or restore it, and test it; or return it, if this was done just before."""
    known, name = execution.victims, (plan.config.victim_id, json.dumps(plan.fingerprint, sort_keys=True))
    if name not in known:
        while len(known) >= VICTIMS:
            del known[next(iter(known))]
        known[name] = _attack(plan, execution)
    return known[name]


def _attack(plan: Plan, execution: Execution) -> Victim:
    trained, trigger_state, poisoned_count = plant(plan, execution)
    plan = plans.arm(plan, trigger_state)
    triggered = plans.triggered_test(plan)
    metrics, guesses = _score(plan, trained.variables, triggered)
    seen = _stealth(plan, triggered)
    return Victim(trained, trigger_state, poisoned_count, triggered, metrics, guesses, seen)


def trigger_state(plan: Plan, execution: Execution) -> TriggerState:
    """Return the trigger's state when the victim is done; what does not decide it is not trained."""
    if plans.learns_nothing(plan.attack):
        return plan.trigger_state
    stages = plan.stages if isinstance(plan.attack.trigger, LearnedTrigger) else plan.stages[:-1]
    with _locked(execution.out / "victims" / plan.config.victim_id):
        return _train(plan, stages, execution)[1]


def conclude(
    plan: Plan, victim: Victim, purified: loop.Result, execution: Execution, more: dict[str, Any]
) -> dict[str, Any]:
    """Test the defended network, write the record of the run and return it.

    Args:
      plan: the run.
      victim: where it began.
      purified: where the defense ended.
      execution: where to write.
      more: keys of the record that not every run has.
    """
    config, folder = plan.config, execution.out / plan.config.run_id
    after, guesses = _score(plan, purified.variables, victim.triggered)
    _write(
        records.write_arrays,
        folder / "samples.npz",
        run=config.run_id,
        **_samples(plan, victim.triggered, victim.guesses, guesses),
    )
    record = {
        "schema_version": records.SCHEMA_VERSION,
        "run_id": config.run_id,
        "victim_id": config.victim_id,
        "status": "finished",
        "config": config.to_dict(),
        "versions": records.versions(),
        "device": {**_device(execution), **records.memory(), "data_on": plan.data_on},
        "data": _describe(plan, victim.poisoned_count),
        "metrics": outcome.section(plan.model.spec.task.metrics, victim.metrics, after),
        "stealth": victim.stealth,
        "cost": _cost(purified, stages(plan.defense)[-1], plan.holdout),
        "victim": _cost(victim.trained, plan.stages[-1].learner, plan.attackers),
        **more,
        "history": [row._asdict() for row in purified.history],
    }
    _write(records.write_json, folder / "record.json", record)
    return record


def _device(execution: Execution) -> dict[str, Any]:
    """Return what is computed on, and what decides its rounding: also the options that programs were compiled with."""
    options = compilation.options_in_force()
    written = " ".join(f"{name}={value}" for name, value in options.items())
    return {**records.device(execution.devices), "compiler_options": written, "unroll": execution.unroll}


def with_controls(config: Config) -> list[Config]:
    """Return the control rows of a run and the run itself: no defense, plain fine-tuning with its options, it."""
    if config.defense.name == "none":
        return [config]
    rows = (config.with_defense(name="none"), config.control(), config)
    return list({row.run_id: row for row in rows}.values())


def run_with_controls(config: Config, execution: Execution) -> list[dict[str, Any]]:
    """Carry out a run and, before it, its control rows."""
    hosts.check_same(config=config.run_id, devices=execution.devices)
    rows = with_controls(config)
    for row in reversed(rows):  # whatever is wrong with one should not wait for the others
        if kept(row, execution) is None:
            with computing(row, execution):
                plans.prepare(row, execution.devices, execution.data_on)
    return [run(row, execution) for row in rows]


def plant(plan: Plan, execution: Execution) -> tuple[loop.Result, TriggerState, int]:
    """Train what the attacker trains, the victim last; return it, the trigger, and the number of poisoned images.

    Where each batch is poisoned anew, that number is what an epoch has on average.
    """
    result, state, images = _train(plan, plan.stages, execution)
    if isinstance(images, PoisonedSplit):
        return result, state, int(images.is_poisoned.sum())
    return result, state, poison.expected_count(plan.attack, images)


def _train(
    plan: Plan, stages: Sequence[Stage], execution: Execution
) -> tuple[loop.Result, TriggerState, Split | PoisonedSplit]:
    """Train some first stages of the attacker; return the last network, the trigger, and the images of the last one."""
    config = plan.config
    folder = execution.out / "victims" / config.victim_id
    provenance.settle(folder, plan, execution.out, execution.changed)
    fresh = variables = plan.model.init(plans.key_for(config, "init"))
    state, history = plan.trigger_state, []
    images: Split | PoisonedSplit = plans.clean_training(plan)
    for stage in stages:
        if stage.sees_poisoned:
            images = plans.poison_training(plan._replace(trigger_state=state))
        seen = images.visible if isinstance(images, PoisonedSplit) else images
        with victim_checkpoints(config, stage.name, execution.out, execution.checkpoint_seconds) as checkpoints:
            label = f"{config.attack.name} {stage.name}"
            options = _loop_options(execution, stage.learner, label, checkpoints)
            begin = attacker.start(stage, fresh, variables, state)
            feed = streamed.run
            if plan.data_on == "device":
                feed = functools.partial(loop.run, prepare=execution.prepare)
                options["unroll"] = _unroll(execution, checkpoints, stage.learner, plan.model, begin, seen)
            result = feed(_stage_key(config, stage), stage.learner, plan.model, begin, seen, **options)
        variables, state = attacker.parts(result.variables, state)
        history += result.history
    return loop.Result(variables, history), state, images


def checkpoints_of(folder: Path, stage: str) -> Path:
    """Return where, in a victim's folder, a stage of the attacker's training is saved."""
    return folder / ("checkpoints" if stage == "victim" else f"checkpoints-{stage}")


def victim_checkpoints(config: Config, stage: str, out: Path, every: float = 0.0) -> Checkpoints:
    """Return the checkpoints of a stage of the attacker's training."""
    folder = checkpoints_of(out / "victims" / config.victim_id, stage)
    return Checkpoints(folder, every, {"victim": config.victim_id, "stage": stage, "seed": config.seed})


def defense_checkpoints(config: Config, stage: int, out: Path, every: float = 0.0) -> Checkpoints:
    """Return the checkpoints of a stage of the defense."""
    folder = out / config.run_id / f"checkpoints-{stage}"
    return Checkpoints(folder, every, {"run": config.run_id, "stage": stage, "seed": config.seed})


def _stage_key(config: Config, stage: Stage) -> Key[Array, ""]:
    """Return the key of a stage: training's own for the victim, others that no epoch of it folds in for the rest."""
    number = ("victim", "surrogate", "trigger").index(stage.name)
    return stage_key(plans.key_for(config, "training"), number)


def select_strength(plan: Plan, variables: Variables, path: Path) -> tuple[Plan, dict[str, Any] | None]:
    """Return the plan with the strength that is ``auto`` chosen, and what was tried; it is kept in a file."""
    config = plan.config
    if config.strength is None or config.selection is None or plan.aside is None:
        return plan, None
    if (selection := hosts.from_first(lambda: records.read_json(path, SELECTION))) is None:
        found = strength.choose(
            plans.key_for(config, "defense"),
            lambda value: plans.with_strength(plan, value).defense,
            config.strength.values,
            plan.model,
            variables,
            plan.holdout,
            plan.aside,
            budget=config.selection.budget,
        )
        trials = [trial._asdict() for trial in found.trials]
        own = {"run": config.run_id, "option": config.strength.path, **dataclasses.asdict(found), "trials": trials}
        selection = hosts.from_first(lambda: own)  # that of another may differ, by rounding
        _write(records.write_json, path, selection)
    if (run_id := selection.pop("run")) != config.run_id:
        raise records.damaged(path, f"it is of the run {run_id}")
    return plans.with_strength(plan, selection["chosen"]), selection


def defend(plan: Plan, variables: Variables, execution: Execution, curve: Curve | None = None) -> loop.Result:
    """Purify the victim with the holdout, and measure a curve on the way if one is given."""
    config = plan.config
    if curve is not None:
        curve(0, lambda: variables)
    with contextlib.ExitStack() as stack:

        def options(number: int) -> dict[str, Any]:
            stage = stages(plan.defense)[number]
            earlier = sum(stage.epochs for stage in stages(plan.defense)[:number])
            checkpoints = None
            if stage.epochs:
                kept = defense_checkpoints(config, number, execution.out, execution.checkpoint_seconds)
                checkpoints = stack.enter_context(kept)
            options = _loop_options(execution, stage, config.defense.name, checkpoints)
            options["prepare"] = execution.prepare
            options["unroll"] = _unroll(execution, checkpoints, stage, plan.model, variables, plan.holdout)
            return options if curve is None else {**options, "on_variables": curve.after(earlier)}

        key = plans.key_for(config, "defense")
        return defenses.purify(key, plan.defense, plan.model, variables, plan.holdout, options=options)


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and Ctrl-C into a question to ask after each epoch; a second one acts at once."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield lambda: bool(received)
    finally:
        for number in numbers:
            signal.signal(number, previous[number])


def measure(
    plan: Plan, variables: Variables, triggered: PoisonedSplit, settings: loss_surface.Settings, variant: str = "mixed"
) -> loss_surface.Smoothness:
    """Measure the loss surface of a network on test images; the same ones and the same draws for the same seed."""
    key, test = plans.key_for(plan.config, "smoothness"), plan.dataset.test
    return loss_surface.measure(key, plan.model, variables, test, triggered, variant=variant, settings=settings)


def _check_curve(plan: Plan, execution: Execution) -> None:
    """Refuse a curve for which there are too few test images; how many count is known before a trigger is made."""
    if execution.smoothness:
        images = loss_surface.Settings().images
        loss_surface.sample(jax.random.key(0), plan.dataset.test, plans.triggered_test(plan), images=images)


def _curve(plan: Plan, triggered: PoisonedSplit, execution: Execution) -> Curve | None:
    if not execution.smoothness or not hosts.is_first():
        return None
    settings = loss_surface.Settings()

    def row(variables: Variables) -> dict[str, Any]:
        metrics, _ = _score(plan, variables, triggered)
        drawn = of_roles(plan.model.spec.task.metrics, UTILITY, ATTACK)
        rates = {metric.name: float(getattr(metrics, metric.name)) for metric in drawn}
        return {**rates, **measure(plan, variables, triggered, settings).plain()}

    last = sum(stage.epochs for stage in stages(plan.defense))
    file = execution.out / plan.config.run_id / records.SMOOTHNESS
    return Curve(file, settings.identity(), row, every=execution.smoothness, last=last)


def _score(plan: Plan, variables: Variables, triggered: PoisonedSplit) -> tuple[Metrics, Guesses]:
    test = plan.dataset.test
    guesses = Guesses(
        evaluate.predict(plan.model, variables, test.input),
        evaluate.predict(plan.model, variables, triggered.visible.input),
    )
    return jax.device_get(evaluate.count(plan.model.spec.task, *guesses, test, triggered)), jax.device_get(guesses)


def _locked(folder: Path) -> contextlib.AbstractContextManager[None]:
    return hosts.held_by_first(records.locked(folder))


def _write(write: Callable[..., None], path: Path, *content: Any, **arrays: Any) -> None:
    hosts.from_first(lambda: write(path, *content, **arrays))


def mark_diverged(config: Config, out: Path, reason: str) -> None:
    """Write the record of a run that has no result."""
    record = {
        "schema_version": records.SCHEMA_VERSION,
        "run_id": config.run_id,
        "victim_id": config.victim_id,
        "status": "diverged",
        "reason": reason,
        "config": config.to_dict(),
        "versions": records.versions(),
    }
    records.write_json(out / config.run_id / "record.json", record)


def _warn_of_no_curve(folder: Path, execution: Execution) -> None:
    if execution.smoothness and hosts.is_first() and "curve" not in (records.read_smoothness(folder) or {}):
        _log.warning("%s is finished and has no curve of its smoothness; delete it to run it with one.", folder)


def _loop_options(
    execution: Execution, learner: Defense, label: str, checkpoints: Checkpoints | None
) -> dict[str, Any]:
    mesh: Mesh | None = sharding.batch_mesh(execution.devices, learner.batch_size) if learner.epochs else None
    report = execution.on_epoch
    return {
        "checkpoints": checkpoints,
        "on_epoch": None if report is None else functools.partial(report, label, learner.epochs),
        "should_stop": execution.should_stop,
        "mesh": mesh,
    }


def _unroll(
    execution: Execution,
    checkpoints: Checkpoints | None,
    learner: Learner,
    model: Model,
    variables: Variables,
    split: Split,
) -> int:
    """Return how many steps are written out: as asked, as timed when this was begun, or as timed now."""
    if isinstance(execution.unroll, int) or checkpoints is None:
        return 1 if isinstance(execution.unroll, str) else execution.unroll
    file = checkpoints.folder.with_name(f"{checkpoints.folder.name}.unroll.json")

    def choice() -> dict[str, Any]:
        if (earlier := records.read_json(file, _UNROLL)) is not None:
            return earlier
        chosen = unrolling.choose(learner, model, variables, split, execution.prepare)._asdict()
        records.write_json(file, chosen)
        return chosen

    return hosts.from_first(choice)["unroll"]


def _stealth(plan: Plan, triggered: PoisonedSplit) -> dict[str, Any]:
    """Return how visible the trigger is on test images, and the one in training, if it is another, on some of those."""
    test, attack = plan.dataset.test, plan.attack
    found = {"test": stealth.measure(test.input, triggered.visible.input, triggered.visible.valid).plain()}
    if attack.test_trigger is not None:
        rows = np.flatnonzero(poison.candidates(attack, jnp.asarray(test.label), jnp.asarray(test.valid)))[:_COMPARED]
        image = jnp.asarray(test.input)[rows]
        stamp = poison.Stamp(attack.trigger, plan.trigger_state, plan.config.poison.rounding)
        changed = plans.stamped(stamp, plans.key_for(plan.config, "test"), image)
        found["train"] = stealth.measure(image, changed, np.ones(len(rows), bool)).plain()
    return found


def _samples(plan: Plan, triggered: PoisonedSplit, before: Guesses, after: Guesses) -> dict[str, np.ndarray]:
    """Return test images that the attack aims at, with and without trigger, and what both networks say of them."""
    rows = sample_rows(np.asarray(triggered.original_label), np.asarray(triggered.visible.valid), SAMPLES)
    return {
        "clean": np.asarray(plan.dataset.test.input)[rows],
        "triggered": np.asarray(triggered.visible.input[rows]),
        "label": np.asarray(plan.dataset.test.label)[rows],
        "clean_before": before.clean[rows],
        "clean_after": after.clean[rows],
        "triggered_before": before.triggered[rows],
        "triggered_after": after.triggered[rows],
    }


def sample_rows(label: np.ndarray, valid: np.ndarray, count: int) -> np.ndarray:
    """Return the first valid row of each class, then further valid rows, so many in all."""
    rows = np.flatnonzero(valid)
    _, first = np.unique(label[rows], return_index=True)
    rest = np.setdiff1d(np.arange(rows.size), first)
    return rows[np.concatenate([np.sort(first), rest])[:count]]


def _describe(plan: Plan, poisoned_count: int) -> dict[str, Any]:
    spec = plan.dataset.spec
    return {
        "name": spec.name,
        "fingerprint": plan.fingerprint,
        "shape": list(spec.shape),
        "num_classes": spec.num_classes,
        "class_names": list(spec.class_names),
        "target_class": plans.target_class(plan),
        "train_count": int(plan.attackers.label.shape[0]),
        "test_count": int(plan.dataset.test.valid.sum()),
        soundness.MAJORITY: int(np.bincount(plan.dataset.test.label[plan.dataset.test.valid]).max()),
        "poisoned_count": poisoned_count,
        "holdout_count": int(plan.holdout.label.shape[0]),
    }


def _cost(result: loop.Result, last: Learner, split: Split) -> dict[str, Any]:
    """Return what a result took, and how many images at once its last stage was really fed."""
    return {
        "compile_seconds": result.compile_seconds,
        "run_seconds": result.run_seconds,
        "gradient_evaluations": result.gradient_evaluations,
        "epochs": len(result.history),
        "batch_size": batches.fed(last, split),
    }
