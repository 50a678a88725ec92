"""What several commands print: the table of runs, the files of their figures, a profile, and how far they are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bdjax.checks import InputError
from bdjax.cli._parser import tell

if TYPE_CHECKING:
    from bdjax.bench.profile import Traces
    from bdjax.report.records import Record


def print_table(
    records: Sequence[Record],
    style: str = "console",
    sharpness: bool = False,
    stealth: bool = False,
    statistics: bool = False,
) -> None:
    """Print the table of runs and, with statistics, that of the defenses' ranks."""
    from bdjax import report
    from bdjax.report import ranking, tables
    from bdjax.report.curves import lines

    rows = report.summarize(records, sharpness=sharpness, stealth=stealth, intervals=statistics)
    if statistics:
        rows = ranking.with_mean_ranks(lines.with_ranges(rows))
    print(tables.table(rows, style))
    if statistics and style != "csv":  # which has the mean ranks in a column
        print("\n" + ranking.tables(rows, style))


def may_draw(what: str = "the figures") -> bool:
    """Say whether figures can be drawn here; where they cannot, a line on standard error tells that they are left out.

    Commands whose figures are not all that they are for ask this before they begin.
    """
    from bdjax.report import layout

    try:
        layout.need_matplotlib()
    except InputError as error:
        tell(f"{what} will be left out: {error}")
        return False
    return True


def draw_figures(records: Sequence[Record], folder: Path) -> None:
    """Draw the figures of runs into a folder, and print their files."""
    from bdjax.report import figures

    for path in figures.draw(records, folder):
        print(path)


def profile_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the option of a trace of something."""
    parser.add_argument(
        "--profile",
        metavar="DIR",
        help=f"trace {what} there, for XProf or TensorBoard, and print the costliest operations",
    )


def print_profile(traces: Traces, why_none: str) -> None:
    """Print the costliest operations of each trace, and where the traces are; or why there is none."""
    from bdjax.bench import profile

    found = traces.finish()
    for name, operations in found.items():
        print(f"{name}:\n{profile.operations_table(operations)}\n")
    if found:
        print(f"profile: {traces.folder} (tensorboard --logdir {traces.folder})")
    else:
        tell(f"no trace was taken: {why_none}.")


def teller(quiet: bool) -> Callable[[int, int, Record], None]:
    """Return what says on standard error which of how many runs is next."""

    def tell(number: int, count: int, record: Record) -> None:
        if not quiet:
            print(f"{number}/{count} {record.run_id}", file=sys.stderr, flush=True)

    return tell
