"""``bdjax export``: records of finished runs as one file."""

from __future__ import annotations

import argparse

from bdjax.cli._parser import RUNS, Commands


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "export",
        help="records of finished runs as one file",
        description="Write the records of finished runs to one file, a line of JSON each, "
        "without checkpoints, images and the epochs' losses. bdjax report and bdjax compare read "
        "it like the runs.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS", help=RUNS)
    parser.add_argument(
        "--out",
        default="records.jsonl",
        metavar="FILE",
        help="replaced if there (records.jsonl)",
    )
    parser.set_defaults(call=call)


def call(options: argparse.Namespace, rest: list[str]) -> int:
    """Carry out the command and return the exit code."""
    del rest
    from bdjax import report
    from bdjax.report import bundle

    file = bundle.check(options.out)
    found = report.load(options.runs)
    print(f"{bundle.write(found, file)}: {report.count(len(found), 'run')}")
    return 0
