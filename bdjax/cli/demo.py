"""``bdjax demo``: two backdoors planted and removed."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from bdjax.cli._execution import carry_out, execution_options
from bdjax.cli._output import draw_figures, may_draw, print_table
from bdjax.cli._parser import Commands


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demo",
        help="plant and remove two backdoors; table and picture",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option(
        "--dataset",
        default="digits",
        help="digits (a minute on a laptop) or cifar10 (full size)",
    )
    option("--seeds", type=int, help="how often to repeat everything (3 on digits, 1 on cifar10)")
    option("--data-dir", help="where prepared data sets lie")
    execution_options(parser, "demo")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace, rest: list[str]) -> int:
    """Carry out the command and return the exit code."""
    del rest
    from bdjax import report
    from bdjax.cli import _demo

    started = time.perf_counter()
    runs = _demo.plan(options.dataset, seeds=options.seeds, data_dir=options.data_dir)
    drawn = may_draw()
    code = carry_out(options, lambda execution: _demo.carry_out(runs, execution))
    if code:
        return code
    records = report.load(Path(options.out) / config.run_id for config in runs)
    print_table(records)
    if drawn:
        draw_figures(records, Path(options.out) / "figures")
    print(f"{len(runs)} runs in {options.out} in {time.perf_counter() - started:.0f} s")
    return 0
