"""``bdjax run``: one attack and one defense, with its control rows."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdjax.cli._execution import carry_out, check_execution, execution_options, shallow, values_of
from bdjax.cli._output import print_profile, print_table, profile_option
from bdjax.cli._parser import Commands, Parser, tell

if TYPE_CHECKING:
    from bdjax.runs.config import Config
    from bdjax.runs.run import Execution


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "run",
        usage="bdjax run [CONFIG] [--section.key VALUE ...] [options]",
        help="one attack and one defense, with its control rows",
        description="Carry out a run: plant the attack, then no defense, plain fine-tuning, and the defense.",
        epilog="Every field of a config is an option: --section.key value; --defense NAME is "
        "short for --defense.name NAME. Add --show to print the config, every field with its "
        "value, and stop.",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option(
        "--config",
        metavar="CONFIG",
        action="append",
        default=[],
        help="a YAML file, defaults where it is silent; may come first",
    )
    option(
        "--smoothness-every",
        type=int,
        default=0,
        metavar="N",
        help="measure the loss surface every N epochs of each defense",
    )
    option("--show", action="store_true", help="check the run, print its resolved config and stop")
    option(
        "--data-on",
        default="auto",
        metavar="PLACE",
        help="training images on the device, on the host or on disk, from where they are streamed (default: by size)",
    )
    execution_options(parser, "runs")
    profile_option(parser, "the second epoch of all that is trained")
    _host_options(parser)
    parser.set_defaults(call=call, takes_more=True)


def _host_options(parser: Parser) -> None:
    several = parser.add_argument_group(
        "several hosts",
        "Start the same command on each host, with folders that they share. One that is lost "
        "ends the others; the same command continues, also on another number of hosts.",
    )
    several.add_argument(
        "--hosts",
        metavar="auto|N",
        help="split each batch over N processes; auto: as SLURM, MPI or a TPU pod says",
    )
    several.add_argument(
        "--host",
        type=int,
        metavar="I",
        help="which one this is, from 0 (not with auto)",
    )
    several.add_argument(
        "--coordinator",
        metavar="ADDRESS:PORT",
        help="where host 0 is to listen (not with auto)",
    )
    several.add_argument(
        "--host-timeout",
        type=int,
        default=60,
        metavar="SECONDS",
        help="when a silent one counts as lost (default: 60)",
    )


def call(options: argparse.Namespace, rest: list[str]) -> int:
    """Carry out the command and return the exit code."""
    from bdjax import report
    from bdjax.bench import profile
    from bdjax.devices import hosts
    from bdjax.runs import config as configs
    from bdjax.runs import run, schema
    from bdjax.runs.folder import RunsFolder

    values = values_of(options.config, rest)
    with shallow():
        config = configs.resolve(values)
    if options.show:
        with shallow():
            _check(config, options)
            resolved = {**config.to_dict(), "matmul_precision": config.matmul_precision}
            shown = schema.flatten(resolved)
        for key, value in shown.items():
            print(f"{key}: {'null' if value is None else value}")
        return 0
    traces = None if options.profile is None else profile.Traces(options.profile)

    def work(execution: Execution) -> None:
        with contextlib.ExitStack() as stack:
            if traces is not None and hosts.is_first():
                on_epoch = stack.enter_context(profile.second_epochs(traces, execution.on_epoch))
                execution = dataclasses.replace(execution, on_epoch=on_epoch)
            rows.extend(record["run_id"] for record in run.run_with_controls(config, execution))

    rows: list[str] = []
    code = carry_out(options, work)
    if code or not hosts.is_first():
        return code
    own = RunsFolder(Path(options.out)).run(config.run_id)
    print_table(report.load(Path(options.out) / run_id for run_id in rows))
    _print_selection((own.record() or {}).get("selection"))
    if traces is not None:
        print_profile(traces, "nothing was trained for two epochs in this call")
    print(f"record: {own.record_file}")
    return 0


def _check(config: Config, options: argparse.Namespace) -> None:
    """Refuse what the run would refuse, in the same words, and fetch, prepare or train nothing for it."""
    from bdjax import data
    from bdjax.devices import compilation
    from bdjax.files import places
    from bdjax.runs import plans, run

    check_execution(options)
    if options.profile is not None:
        places.check_folder("profile", options.profile)
    compilation.require_devices()
    if data.is_ready(config.data.name, config.data.data_dir):
        for row in reversed(run.with_controls(config)):
            plans.prepare(row, options.devices or 1, options.data_on)
    else:
        unchecked = "what depends on the data was not checked"
        tell(f"{config.data.name} is not on this machine yet, so that {unchecked}.")


def _print_selection(selection: Mapping[str, Any] | None) -> None:
    """Tell which strength was chosen, where it was ``auto``, and what each cost."""
    if selection:
        tried: list[str] = []
        for trial in selection["trials"]:
            tried.append(f"{trial['value']:g} → {trial['accuracy']:.1%}")
        beyond = ""
        if not selection["within_budget"]:
            beyond = ", the weakest, though it costs more than the budget"
        count = selection["aside_count"]
        print(
            f"{selection['option']} = {selection['chosen']:g}{beyond}; "
            f"accuracy on {count} images kept aside (one is {1 / count:.1%}): "
            f"{selection['accuracy_before']:.1%} before, {', '.join(tried)}"
        )
