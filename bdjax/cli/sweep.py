"""``bdjax sweep``: many runs as few programs, here or as jobs."""

from __future__ import annotations

import argparse
from pathlib import Path

from bdjax.checks import RUNS, InputError, integer
from bdjax.cli._execution import carry_out, check_execution, execution_options, shallow, values_of
from bdjax.cli._output import draw_figures, may_draw, print_table
from bdjax.cli._parser import EXIT_FAILED, Commands, Parser, complain


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "sweep",
        usage="bdjax sweep [CONFIG] --over KEY=V1,V2,... [--over ...] [--seeds N] [--section.key VALUE ...] [options]",
        help="many runs as few programs, with a sensitivity curve",
        description="Carry out a run for each combination of the values, and the control rows of "
        "all. Runs that differ in numbers alone are trained together. What is finished is not "
        "done again: the same command continues, and several of them, in one folder, share the "
        "work.",
        epilog="Every field of a config is an option, as for bdjax run: --section.key value.",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option(
        "--config",
        metavar="CONFIG",
        action="append",
        default=[],
        help="a YAML file, defaults where it is silent",
    )
    option(
        "--over",
        metavar="KEY=V1,V2,...",
        action="append",
        default=[],
        help="values of a key, such as defense.rho=0.5,1,2 or attack=badnets,blended; may be repeated",
    )
    option("--seeds", type=int, metavar="N", help="seeds 0 to N - 1 for each combination")
    _form_options(parser)
    _job_options(parser)
    execution_options(parser, "runs", devices="spread the runs over this many devices (default: 1)")
    parser.set_defaults(call=call, takes_more=True)


def _form_options(parser: Parser) -> None:
    option = parser.add_argument
    option(
        "--form",
        default="auto",
        help="how the runs of one device are computed: loop, one after another; vmap, all at "
        "once; map:k, k at once; auto times them on a few steps (default)",
    )
    option(
        "--at-once",
        type=int,
        metavar="N",
        help="most runs in one program (default: 32, or each job's share)",
    )
    option(
        "--batch-devices",
        type=int,
        default=1,
        metavar="N",
        help="devices that share the batches of a run (default: 1)",
    )


def call(options: argparse.Namespace, rest: list[str]) -> int:
    """Carry out the command and return the exit code."""
    from bdjax import report
    from bdjax.runs import sweep
    from bdjax.runs.folder import RunsFolder

    values = values_of(options.config, rest)
    axes: dict[str, list[str]] = {}
    for word in options.over:
        path, equals, listed = word.partition("=")
        if not (path and equals):
            form = "KEY=V1,V2,..., such as defense.rho=0.5,1,2"
            raise InputError(f"--over must be {form}; got {word!r}.")
        if path in axes:
            raise InputError(f"--over {path} stands twice; list all of its values in one.")
        axes[path] = [value.strip() for value in listed.split(",") if value.strip()]
    if options.seeds is not None:
        integer(1, RUNS, seeds=options.seeds)
        if "seed" in axes:
            raise InputError("--seeds and --over seed exclude each other; give one.")
        axes["seed"] = [str(seed) for seed in range(options.seeds)]
    with shallow():
        wanted = sweep.points(values, axes)
    devices = 1 if options.devices is None else options.devices
    at_once = _at_once(options, len(wanted))
    sharing = sweep.Sharing(options.form, devices, options.batch_devices, at_once)
    if options.jobs is not None:
        return _submit(options, at_once)
    drawn = may_draw()
    rows = []
    code = carry_out(options, lambda execution: rows.extend(sweep.run(wanted, execution, sharing)))
    if code:
        return code
    of_rows = [RunsFolder(Path(options.out)).run(row.run_id) for row in rows]
    folders = [folder.path for folder in of_rows if folder.finished() is not None]
    if len(folders) < len(rows):
        count = len(rows) - len(folders)
        complain(
            f"{count} of {len(rows)} runs diverged; the reason stands in their record.json.",
            EXIT_FAILED,
        )
    if not folders:
        return EXIT_FAILED
    records = report.load(folders)
    print_table(records)
    if drawn:
        draw_figures(records, Path(options.out) / "figures")
    return 0


def _at_once(options: argparse.Namespace, count: int) -> int:
    """Return how many runs make a group: as asked, or so many that there is a group for each job."""
    if options.at_once is not None:
        return options.at_once
    return min(32, -(-count // max(options.jobs or 1, 1)))


def _submit(options: argparse.Namespace, at_once: int) -> int:
    """Submit the same command, less what submits it, as jobs."""
    from bdjax.runs import launch

    out = check_execution(options)
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _job_options(own)
    words = own.parse_known_args(options.words)[1]
    words += [] if options.at_once is not None else ["--at-once", str(at_once)]
    given = {}
    for word in options.job:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise InputError(f"--job must be KEY=VALUE, such as timeout_min=240; got {word!r}.")
        given[key] = int(value) if value.isdecimal() else value
    jobs = launch.submit(words, out, options.jobs, cluster=options.cluster, options=given)
    print("submitted: " + ", ".join(job.job_id for job in jobs))
    print(f"then: bdjax report {options.out} --figures {Path(options.out) / 'figures'}")
    return 0


def _job_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option(
        "--jobs",
        type=int,
        metavar="N",
        help="submit N jobs that share the sweep, and return at once",
    )
    option(
        "--cluster",
        default="slurm",
        help="where: slurm (default), or local, processes of this machine",
    )
    option(
        "--job",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of submitit, such as timeout_min=240, gpus_per_node=1 or slurm_partition=gpu; may be repeated",
    )
