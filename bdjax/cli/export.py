"""``bdjax export``: records of finished runs as one file, or the network of a run as files for others."""

from __future__ import annotations

import argparse
from pathlib import Path

from bdjax.checks import InputError
from bdjax.cli._parser import RUNS, Commands

_RECORDS = "records"


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "export",
        help="records of finished runs as one file, or a run's network for others",
        description="Write the records of finished runs to one file, a line of JSON each, "
        "without checkpoints, images and the epochs' losses. bdjax report and bdjax compare read "
        "it like the runs. With --format, write a network of one run instead, with a card that says "
        "what was planted in it.",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option("runs", nargs="+", metavar="RUNS", help=RUNS)
    option(
        "--out",
        metavar="PLACE",
        help="a file, replaced if there (records.jsonl); of a network, a new folder (exported)",
    )
    option(
        "--format",
        default=_RECORDS,
        help="records (default), or of a network: safetensors, torch, backdoorbench",
    )
    option("--which", help="of the run's networks: attacked, or defended (default)")
    option("--data-dir", help="where prepared data sets lie")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace, rest: list[str]) -> int:
    """Carry out the command and return the exit code."""
    del rest
    if options.format != _RECORDS:
        return _network(options)
    if options.which is not None:
        raise InputError(
            f"which must be left out without a network's --format; got {options.which}."
        )
    from bdjax import report
    from bdjax.report import bundle

    file = bundle.check("records.jsonl" if options.out is None else options.out)
    found = report.load(options.runs)
    print(f"{bundle.write(found, file)}: {report.count(len(found), 'run')}")
    return 0


def _network(options: argparse.Namespace) -> int:
    from bdjax import exported
    from bdjax.cli._parser import check_folders

    check_folders(data_dir=options.data_dir, out=options.out)
    if len(options.runs) > 1:
        raise InputError(
            f"runs must be one run, whose network is written; got {len(options.runs)}."
        )
    files = exported.write(
        options.runs[0],
        Path(options.out or "exported"),
        form=options.format,
        which=options.which or "defended",
        data_dir=options.data_dir,
    )
    for file in files:
        print(file)
    return 0
