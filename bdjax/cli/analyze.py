"""``bdjax analyze``: what is inside the networks of finished runs."""

from __future__ import annotations

import argparse

from bdjax.cli._output import teller
from bdjax.cli._parser import Commands, check_folders, check_values


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "analyze",
        usage="bdjax analyze ANALYSIS RUNS [RUNS ...] [--option VALUE ...] [--figures DIR] [--format FORMAT] ...",
        help="look into the networks of finished runs, and draw what is there",
        description="Measure finished runs and draw a figure of them. Needs their checkpoints "
        "and data; what has been measured is kept beside the record and not measured again.",
        epilog="An analysis' options are its own: see bdjax list analyses ANALYSIS.",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option("analysis", metavar="ANALYSIS", help="as bdjax list analyses names them")
    option("runs", nargs="+", metavar="RUNS", help="run folders, or folders of run folders")
    option("--figures", default="figures", metavar="DIR", help="of the figure (default: figures)")
    option("--format", default="png", help="png, pdf or svg (default: png)")
    option("--data-dir", help="where prepared data sets lie")
    option("--quiet", action="store_true", help="no progress")
    parser.set_defaults(call=call, takes_more=True)


def call(options: argparse.Namespace, rest: list[str]) -> int:
    """Carry out the command and return the exit code."""
    from bdjax.analysis import _analyze
    from bdjax.devices import compilation
    from bdjax.files import places
    from bdjax.runs import schema

    check_values(rest, "RUNS")
    check_folders(data_dir=options.data_dir)
    places.check_folder("figures", options.figures)
    compilation.enable_cache()
    compilation.require_devices()
    for file in _analyze.analyze(
        options.analysis,
        options.runs,
        options.figures,
        options=schema.overrides(rest),
        format=options.format,
        data_dir=options.data_dir,
        on_run=teller(options.quiet),
    ):
        print(file)
    return 0
