"""``bdjax report``: tables, figures and a page of finished runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from bdjax.checks import one_of
from bdjax.cli._output import draw_figures, may_draw, print_table
from bdjax.cli._parser import RUNS, Commands
from bdjax.runs.folder import RunFolder


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "report",
        help="tables and figures of finished runs",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option("runs", nargs="+", metavar="RUNS", help=RUNS)
    option("--format", default="console", help="console, markdown, csv or latex")
    option(
        "--figures",
        metavar="DIR",
        help="also draw the figures here, with a curve of each swept option",
    )
    option(
        "--html",
        metavar="FILE",
        help="also write one page with tables, charts, triggers and records",
    )
    option(
        "--smoothness",
        action="store_true",
        help="add λ_max, Tr(H), Tr(F) where they were measured",
    )
    option(
        "--stealth",
        action="store_true",
        help="add how visible the trigger is: PSNR, SSIM, ℓ∞, ℓ2",
    )
    option(
        "--statistics",
        action="store_true",
        help="add 95 %% intervals, runs below 10 %% attack success and ranges over swept options; "
        "rank the defenses below",
    )
    parser.set_defaults(call=call)


def call(options: argparse.Namespace, rest: list[str]) -> int:
    """Carry out the command and return the exit code."""
    del rest
    from bdjax import report
    from bdjax.analysis import _findings
    from bdjax.files import places
    from bdjax.report import grid, layout, page

    one_of(grid.FORMATS, format=options.format)
    file = page.check(options.html) if options.html is not None else None
    if options.figures is not None:
        places.check_folder("figures", options.figures)
        layout.need_matplotlib()
    records = report.load(options.runs)
    print_table(records, options.format, options.smoothness, options.stealth, options.statistics)
    if options.figures is not None:
        draw_figures(records, Path(options.figures))
    if file:
        analyzed = any(RunFolder(record.folder).analyses() for record in records)
        pictures: dict[str, bytes] = {}
        if analyzed and may_draw("the figures of analyses"):
            pictures = _findings.pictures(records)
        print(page.write(records, file, pictures))
    return 0
