"""``bdjax compare``: two defenses on the same victims and seeds."""

from __future__ import annotations

import argparse

from bdjax.checks import one_of
from bdjax.cli._parser import RUNS, Commands
from bdjax.tasks.metrics import SINGLE_LABEL, names


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "compare",
        usage="bdjax compare RUNS [RUNS ...] --defenses FIRST SECOND [--metric METRIC ...] [--format FORMAT]",
        help="two defenses on the same victims and seeds",
        description="Compare two defenses over the runs that differ in nothing else, and test "
        "their differences by flipping signs.",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option("runs", nargs="+", metavar="RUNS", help=RUNS)
    option(
        "--defenses",
        nargs=2,
        required=True,
        metavar=("FIRST", "SECOND"),
        help="as the table of the report labels them, such as ft_sam, or 'ft_sam rho=2' where there are several",
    )
    option(
        "--metric",
        nargs="+",
        metavar="METRIC",
        help=f"{', '.join(names(SINGLE_LABEL))} (default: all but the third), or what other tasks measure",
    )
    option("--format", default="console", help="console, markdown, csv or latex")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace, rest: list[str]) -> int:
    """Carry out the command and return the exit code."""
    del rest
    from bdjax import report
    from bdjax.report import grid, paired

    one_of(grid.FORMATS, format=options.format)
    first, second = options.defenses
    found = paired.compare(report.load(options.runs), first, second, options.metric)
    print(paired.table(found, options.format))
    return 0
