"""Finished runs, loaded again from their checkpoints to be measured or defended otherwise; nothing is trained here."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax

from bdjax import defenses, report
from bdjax.checks import InputError, one_of
from bdjax.curvature.loss_surface import VARIANTS, Settings
from bdjax.devices import numerics
from bdjax.report.records import Record
from bdjax.runs import config as configs
from bdjax.runs import curve, plans, provenance, run, victim
from bdjax.runs.config import Config
from bdjax.runs.folder import RunFolder, RunsFolder
from bdjax.runs.record import metrics_between
from bdjax.runs.subject import OnVariables, Subject
from bdjax.runs.trainer import Alone
from bdjax.tasks.metrics import RATING, totals
from bdjax.types import ProbedModel, Variables

Known: TypeAlias = dict[Path, dict[Hashable, Any]]  # of victims, by their folders


class Networks(NamedTuple):
    """What a finished run made, with the plan that it followed."""

    plan: plans.Plan
    victim: Variables
    defended: Variables


def one(record: Record | str | os.PathLike[str]) -> Record:
    """Return a record, or read the only one at a path as `bdjax.report.load` does: a run's folder, or its record.json.

    Raises:
      InputError: something else, or not exactly one finished run at the path.
    """
    if isinstance(record, Record):
        return record
    if not isinstance(record, str | os.PathLike):
        what = "a record of bdjax.report.load, or the path of a run's folder"
        raise InputError(f"record must be {what}; got {type(record).__name__}.")
    found = report.load([record])
    if len(found) > 1:
        raise InputError(
            f"record must be one run; there are {len(found)} under {os.fspath(record)}."
        )
    return found[0]


def config_of(record: Record, data_dir: str | None = None) -> Config:
    """Return a record's config, with the data in another folder if one is given.

    Raises:
      InputError: this version of bdjax does not read it, or reads another run from it, its folder was renamed, or it
        is of a bundle.
    """
    if record.line is not None:
        raise InputError(
            f"{record.source} is a record alone; its networks are in the run's folder {record.run_id}."
        )
    values = {
        **record.config,
        "data": {**record.config["data"], **({"data_dir": data_dir} if data_dir else {})},
    }
    try:
        config = configs.resolve(values)
    except InputError as error:
        raise InputError(
            f"{record.folder} has a config that this bdjax does not read: {error}"
        ) from error
    if config.run_id != record.run_id:
        raise InputError(
            f"{record.folder} was made by another bdjax, whose name for its config is {record.run_id}."
        )
    if record.folder.resolve().name != record.run_id:
        raise InputError(f"{record.folder} must be named {record.run_id}, as when it was made.")
    return config


def computing(record: Record | str | os.PathLike[str]) -> contextlib.AbstractContextManager[None]:
    """Return the context in which a finished run's networks round products as they did, where its config says how.

    What is asked of them outside of it computes with the precision that JAX is set to.
    """
    return numerics.in_force(one(record).config.get("matmul_precision"))


def restore(record: Record | str | os.PathLike[str], data_dir: str | None = None) -> Networks:
    """Load the attacked and the defended network of a finished run: a record, or the path of the run's folder.

    Raises:
      InputError: a final checkpoint is missing, the data have changed, or as for `one` and `config_of`.
    """
    record = one(record)
    with computing(record):
        return _restore(record, data_dir)


def _restore(record: Record, data_dir: str | None) -> Networks:
    config = config_of(record, data_dir)
    runs = _runs_of(record)
    plan = plans.prepare(config)
    if (made_of := record.content["data"].get("fingerprint")) is None:
        raise InputError(
            f"{record.source} does not say of which data it is, so that its networks cannot be measured."
        )
    provenance.check(made_of, config, plan.inputs, record.folder)
    _check_trained(record, plan, runs)
    execution = run.Execution(runs.path)
    trainer = Alone(execution)  # with every stage at its end, it only loads
    (planted,) = victim.plant([plan], execution, trainer)
    assert planted is not None, "what diverges alone is raised"
    plan = plans.with_trigger(plan, planted.trigger_state)
    if selection := record.content.get("selection"):
        plan = plans.with_strength(plan, selection["chosen"])
    attacked = planted.network.variables
    (defended,) = run.defend([run.undefended(plan, attacked)], execution, trainer)
    return Networks(plan, attacked, defended.result.variables)


def _check_trained(record: Record, plan: plans.Plan, runs: RunsFolder) -> None:
    """Refuse a run of which a last checkpoint is not there."""
    of_victim, of_run = runs.victim(plan.config.victim_id), runs.run(plan.config.run_id)
    stages = [(of_victim.stage(stage.name), stage.learner.epochs) for stage in plan.stages]
    stages += [
        (of_run.stage(number), stage.epochs) for number, stage in enumerate(plan.defense_stages)
    ]
    for folder, epochs in stages:
        if epochs and not folder.has(epochs):
            raise InputError(
                f"{record.folder} cannot be measured: there is no checkpoint of epoch {epochs} in {folder.path}."
            )


def subject(
    record: Record | str | os.PathLike[str], data_dir: str | None = None, known: Known | None = None
) -> Subject:
    """Load a finished run as an analysis sees it; what is known of its victim is looked up and kept in ``known``.

    What is measured of it rounds as the run did inside `computing`. Errors as for `restore`.
    """
    record = one(record)
    plan, victim, defended = restore(record, data_dir)
    kept = {} if known is None else known.setdefault(_victim_folder(record, plan), {})
    if not isinstance(plan.model, ProbedModel):
        raise InputError(f"{record.folder} cannot be analyzed: its network has no method probe.")
    lengths = [stage.epochs for stage in plan.defense_stages]

    def replay(on_variables: OnVariables) -> None:
        def options(number: int) -> dict[str, Any]:
            earlier = sum(lengths[:number])
            return {
                "on_variables": lambda epoch, variables: on_variables(earlier + epoch, variables)
            }

        on_variables(0, lambda: victim)
        key = plans.key_for(plan.config, "defense")
        with computing(record):
            given = plans.given(plan, plan.defense.sees)._asdict()
            defenses.purify(key, plan.defense, plan.model, victim, **given, options=options)

    def once(analysis: Hashable, find: Callable[[], Any]) -> Any:
        if analysis not in kept:
            kept[analysis] = find()
        return kept[analysis]

    with computing(record):
        triggered = plans.triggered_test(plan)
    return Subject(
        config=record.config,
        model=plan.model,
        victim=victim,
        defended=defended,
        test=plan.dataset.test,
        triggered=triggered,
        holdout=plan.holdout,
        epochs=sum(lengths),
        key=plans.key_for(plan.config, "analysis"),
        replay=replay,
        once=once,
    )


def with_defense(
    record: Record | str | os.PathLike[str],
    name: str,
    after: Any,
    *,
    options: Mapping[str, Any] | None = None,
    run_seconds: float = math.nan,
    compile_seconds: float = math.nan,
    gradient_evaluations: float = math.nan,
) -> Record:
    """Return a record with another defense's result in place of the run's: one of yours, to stand in our tables.

    It is in memory alone: `bdjax.report.summarize` takes it among others.

    Args:
      record: of a run on the same victim, holdout and seed, such as that of ``none``, or the path of its folder.
      name: what the tables are to call the defense; not one of bdjax's own.
      after: of `bdjax.evaluate.evaluate_function`, or what the run's task counts (`bdjax.types.Task.count`), on the
        test images of `restore`'s plan and its `bdjax.runs.plans.triggered_test`.
      options: of the defense, which tell its rows apart.
      run_seconds: what it took without compiling; NaN, which prints as a dash, where nobody measured it.
      compile_seconds: likewise.
      gradient_evaluations: likewise.

    Raises:
      InputError: the name is taken, or the counts are of other test images.
    """
    record = one(record)
    if name in defenses.names():
        raise InputError(f"name must not be that of a defense of bdjax, got {name!r}.")
    after = jax.device_get(after)  # so that ratios of counts are as exact as the run's
    before = _of_the_same_images(record, after)
    kept = {key: value for key, value in record.config.items() if key != "selection"}
    left_out = ("selection", "history", "smoothness")
    content = {key: value for key, value in record.content.items() if key not in left_out}
    chance = record.content["metrics"].get("chance")
    content |= {
        "run_id": f"{record.content['victim_id']}-{name}",
        "config": {**kept, "defense": {"name": name, **(options or {})}},
        "metrics": {
            **metrics_between(record.metrics, before, after, chance),
            "before": record.before,
        },
        "cost": {
            "run_seconds": run_seconds,
            "compile_seconds": compile_seconds,
            "gradient_evaluations": gradient_evaluations,
        },
    }
    beside = record.folder if record.line is None else record.folder.parent
    # where nothing is, as images and smoothness are the other defense's
    return Record(beside / name, content, apart=record.apart)


def _of_the_same_images(record: Record, after: Any) -> Any:
    """Return what was counted of a record's victim, as a value of the same kind as what was counted after a defense.

    Raises:
      InputError: that is of another task, or of other test images.
    """
    needed = [metric for metric in record.metrics if metric.role != RATING]
    for metric in needed:
        if not hasattr(after, metric.name):
            raise InputError(
                f"after must have the run's metric {metric.name}, got {type(after).__name__}."
            )
    for total in totals(needed):
        if (got := int(getattr(after, total))) != record.before[total]:
            wanted = f"{total} is {record.before[total]}, got {got}"
            raise InputError(f"after must count the run's test images: {wanted}.")
    return type(after)(*(record.before[name] for name in after._fields))


def smoothness(
    paths: Iterable[str | os.PathLike[str]],
    *,
    settings: Settings,
    variants: Sequence[str] = VARIANTS,
    data_dir: str | None = None,
    on_run: Callable[[int, int, Record], None] = lambda number, count, record: None,
) -> list[Path]:
    """Measure the loss surface of finished runs before and after the defense; return their ``smoothness.json``.

    Runs that have these variants with these settings are left alone. One that cannot be loaded does not keep the
    others from being measured.

    Args:
      paths: as for `bdjax.report.load`.
      settings: of `bdjax.curvature.loss_surface.measure`.
      variants: likewise.
      data_dir: where the data lie now.
      on_run: called with (its number, how many there are, the record) before each run.

    Raises:
      InputError: no finished runs, a value out of range, or runs that cannot be loaded (the first reason).
    """
    settings.check()
    for variant in variants:
        one_of(VARIANTS, variants=variant)
    found, failures, files = report.load(paths), Failures(), []
    measure = _Measure(tuple(variants), settings)
    for number, record in enumerate(found, 1):
        on_run(number, len(found), record)
        with failures.noted(), computing(record):
            files.append(measure(record, data_dir))
    failures.tell()
    return files


class Failures:
    """Why some of many runs could not be measured, told when the others have been."""

    def __init__(self) -> None:
        self._reasons: list[InputError] = []

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Go on after an InputError in the block."""
        try:
            yield
        except InputError as reason:
            self._reasons.append(reason)

    def tell(self) -> None:
        """Raise the first reason, with the number of the others, if there is one."""
        if self._reasons:
            others = (
                f" (and {report.count(len(self._reasons) - 1, 'more run')})"
                if self._reasons[1:]
                else ""
            )
            raise InputError(f"{self._reasons[0]}{others}") from self._reasons[0]


def _runs_of(record: Record) -> RunsFolder:
    return RunsFolder(record.folder.resolve().parent)


def _victim_folder(record: Record, plan: plans.Plan) -> Path:
    return _runs_of(record).victim(plan.config.victim_id).path


class _Measure:
    """Measures runs; a victim that several share is measured once."""

    def __init__(self, variants: tuple[str, ...], settings: Settings):
        self._variants, self._settings = variants, settings
        self._victims: dict[Path, dict[str, Any]] = {}

    def __call__(self, record: Record, data_dir: str | None) -> Path:
        folder = RunFolder(record.folder)
        if self._done(record.smoothness()):
            return folder.smoothness_file
        plan, victim, defended = restore(record, data_dir)
        of = functools.partial(self._network, plan, plans.triggered_test(plan))
        where = _victim_folder(record, plan)
        if where not in self._victims:
            self._victims[where] = of(victim)
        before = self._victims[where]
        after = of(defended) if any(stage.epochs for stage in plan.defense_stages) else before
        with folder.locked():
            content = folder.smoothness() or {}
            earlier = content if content.get("settings") == self._settings.identity() else {}
            measured = {
                "run": record.run_id,
                "settings": self._settings.identity(),
                "before": {**earlier.get("before", {}), **before},
                "after": {**earlier.get("after", {}), **after},
            }
            folder.write_smoothness({**content, **measured})
        return folder.smoothness_file

    def _done(self, content: Mapping[str, Any]) -> bool:
        has = all(
            variant in content.get(when, {})
            for when in ("before", "after")
            for variant in self._variants
        )
        return has and content.get("settings") == self._settings.identity()

    def _network(self, plan: plans.Plan, triggered: Any, variables: Variables) -> dict[str, Any]:
        return {
            variant: curve.measure(plan, variables, triggered, self._settings, variant).plain()
            for variant in self._variants
        }
