"""A published table from one command: what is missing is trained, and every value printed stands beside ours.

A script gives a `Paper` (its protocol as values) and the tables that it may be asked for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _cost
from _paper_configs import FULL, SIZES, Missing, Paper, Size, resolve, stand_in, values_of
from _runs import carry_out

from bdjax.checks import InputError, integer, one_of
from bdjax.cli import _progress, _signals
from bdjax.devices import compilation
from bdjax.report import comparison, published
from bdjax.report.grid import FORMATS
from bdjax.report.published import TASK, Value
from bdjax.report.records import Record
from bdjax.runs import plans, run
from bdjax.runs.config import Config
from bdjax.runs.folder import RunFolder, RunsFolder
from bdjax.train import loop

DEBUG_ATTACKS = ("badnets_a2o", "blended")  # the first of a table where it has neither
Tables = Mapping[str, tuple[str, str]]  # name on the command line: paper and table


class Plan(NamedTuple):
    """A published value and the runs that answer it, by attack and seed; or why there are none."""

    value: Value
    groups: tuple[tuple[Config, ...], ...]
    why: str


def main(
    paper: Paper,
    tables: Tables,
    arguments: Sequence[str] | None = None,
    description: str | None = None,
) -> None:
    """Read the command line, run what is missing and print the table."""
    options = _parser(tables, description).parse_args(arguments)
    compilation.enable_cache()
    try:
        _print(paper, tables, options)
    except (InputError, loop.Stopped) as reason:
        raise SystemExit(f"{options.table}: {reason}") from None


def _parser(tables: Tables, description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    only = next(iter(tables)) if len(tables) == 1 else None
    parser.add_argument("table", nargs="?" if only else None, default=only, help=", ".join(tables))
    parser.add_argument(
        "--debug", action="store_true", help="minutes on two CPU cores, to see that it runs"
    )
    parser.add_argument(
        "--estimate", action="store_true", help="print what it would cost, and stop"
    )
    parser.add_argument("--attacks", nargs="+", help="only these, as the table's values name them")
    parser.add_argument("--defenses", nargs="+", help="only these, likewise")
    parser.add_argument("--seeds", nargs="+", type=int, help="0 1 2, and with --debug 0")
    parser.add_argument("--data-dir", help="where prepared data sets lie")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs"),
        help="folder of the runs; what it has is not run again",
    )
    parser.add_argument("--format", default="console", help=", ".join(FORMATS))
    return parser


def _print(paper: Paper, tables: Tables, options: argparse.Namespace) -> None:
    one_of(tables, table=options.table)
    one_of(FORMATS, format=options.format)
    seeds = dict.fromkeys(
        options.seeds if options.seeds is not None else [0] if options.debug else [0, 1, 2]
    )
    for seed in seeds:
        integer(seeds=seed)
    source, number = tables[options.table]
    values = published.select(paper=source, table=number, task=TASK)
    size = stand_in(options.data_dir) if options.debug else FULL
    attacks, defenses = _asked(values, options)
    asked = [value for value in values if value.attack in attacks and value.defense in defenses]
    planned = [_plan(paper, values, value, seeds, size, options) for value in asked]
    setting = f"{size.describe()} {paper.source}{_left_out(values, asked)}"
    configs = {
        config.run_id: config for plan in planned for group in plan.groups for config in group
    }
    unfinished = [
        config
        for config in configs.values()
        if RunsFolder(options.out).run(config.run_id).finished() is None
    ]
    refused = _refused(unfinished)
    print(f"{setting}\n{paper.protocol}", file=sys.stderr)
    possible = [config for config in configs.values() if config.run_id not in refused]
    _tell(possible, options)
    if options.estimate:
        return
    _run(possible, options.out)
    cells = [_cell(plan, options.out, refused) for plan in planned]
    print(comparison.table(cells, setting, options.format))


def _asked(values: Sequence[Value], options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the attacks and defenses that are to be in the table; the debug size has two attacks unless told."""
    attacks = list(dict.fromkeys(value.attack for value in values))
    defenses = list(dict.fromkeys(value.defense for value in values))
    for word in options.attacks or ():
        one_of(attacks, attacks=word)
    for word in options.defenses or ():
        one_of(defenses, defenses=word)
    few = [attack for attack in DEBUG_ATTACKS if attack in attacks] or attacks[:1]
    return options.attacks or (few if options.debug else attacks), options.defenses or defenses


def _left_out(values: Sequence[Value], asked: Sequence[Value]) -> str:
    """Say what of the table was not asked for."""
    gone = {
        name: [
            x
            for x in dict.fromkeys(getattr(v, name) for v in values)
            if x not in {getattr(v, name) for v in asked}
        ]
        for name in ("attack", "defense")
    }
    said = [f"{name}s {', '.join(words)}" for name, words in gone.items() if words]
    return f" Not asked for: {'; '.join(said)}." if said else ""


def _plan(
    paper: Paper,
    values: Sequence[Value],
    value: Value,
    seeds: Iterable[int],
    size: Size,
    options: argparse.Namespace,
) -> Plan:
    if value.attack == "benign" and value.metric == "asr":
        return Plan(value, (), "no trigger")
    attacks = _averaged(paper, values, value) if value.attack == "avg" else [value]
    try:
        groups = [
            [resolve(values_of(paper, one, size, options.data_dir), seed) for seed in seeds]
            for one in attacks
        ]
    except Missing as missing:
        return Plan(value, (), str(missing))
    return Plan(value, tuple(map(tuple, groups)), "")


def _averaged(paper: Paper, values: Sequence[Value], value: Value) -> list[Value]:
    """Return a mean's values, one for each attack: those of the same defense, or the paper's where none is printed."""
    rows = {
        (one.attack, one.poison_rate): value._replace(
            attack=one.attack, poison_rate=one.poison_rate
        )
        for one in values
        if one.attack not in ("avg", "benign")
        and (one.dataset, one.defense) == (value.dataset, value.defense)
    }
    return list(rows.values()) or [value._replace(attack=attack) for attack in paper.averaged]


def _refused(configs: Sequence[Config]) -> dict[str, str]:
    """Check every run before the first is begun; return why some cannot be, by their names.

    Raises:
      InputError: none of them can be, for the reason of the first.
    """
    refused: dict[str, str] = {}
    for config in configs:
        try:
            plans.prepare(config)
        except InputError as reason:
            refused[config.run_id] = str(reason)
    if refused and len(refused) == len(configs):
        raise InputError(next(iter(refused.values())))
    return refused


def _tell(configs: Sequence[Config], options: argparse.Namespace) -> None:
    """Print what is still to be done, on standard error unless that is all that was asked for."""
    cost = _cost.of(configs, SIZES, options.out)
    missing = [
        config
        for config in configs
        if RunsFolder(options.out).run(config.run_id).finished() is None
    ]
    told = cost.describe(_cost.seconds(missing))
    print(told, file=sys.stdout if options.estimate else sys.stderr, flush=True)


def _run(configs: Sequence[Config], out: Path) -> None:
    with _signals.stop_on_signal() as should_stop, _progress.bar() as on_epoch:
        execution = run.Execution(out, on_epoch=on_epoch, should_stop=should_stop)
        for config in configs:
            if RunsFolder(out).run(config.run_id).finished() is None:
                carry_out(config, execution, sys.stderr)


def _cell(plan: Plan, out: Path, refused: Mapping[str, str]) -> comparison.Cell:
    """Return the value beside the records of its runs."""
    names = [[config.run_id for config in group] for group in plan.groups]
    found = [[_record(out / name) for name in group] for group in names]
    groups = [[record for record in group if isinstance(record, Record)] for group in found]
    reasons = [refused[name] for group in names for name in group if name in refused]
    diverged = sum(group.count("diverged") for group in found)
    why = f"{diverged} of {sum(map(len, found))} diverged" if diverged else ""
    return comparison.fill(plan.value, groups, plan.why or (reasons[0] if reasons else why))


def _record(folder: Path) -> Record | str:
    """Return a finished run's record, or its status."""
    content: dict[str, Any] = RunFolder(folder).record() or {}
    status = content.get("status", comparison.NOT_RUN)
    return Record(folder, content) if status == "finished" else status
