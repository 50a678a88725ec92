"""``bdjax smoothness``: the loss surface of finished runs' networks."""

from __future__ import annotations

import argparse

from bdjax.cli._output import teller
from bdjax.cli._parser import Commands, check_folders


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "smoothness",
        help="measure the loss surface of finished runs' networks",
        description="Measure the loss surface before and after the defense: largest eigenvalue "
        "and trace of the Hessian, trace of the Fisher matrix. Needs the runs' checkpoints and "
        "data; trains nothing.",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option("runs", nargs="+", metavar="RUNS", help="run folders, or folders of run folders")
    option("--images", type=int, metavar="N", help="test images to measure on (default: 200)")
    option("--draws", type=int, metavar="N", help="random vectors for the trace (default: 100)")
    option(
        "--chunk",
        type=int,
        metavar="N",
        help="images at once; bounds the memory (default: 100)",
    )
    option(
        "--variant",
        action="append",
        metavar="NAME",
        help="only clean, triggered or mixed; may be repeated",
    )
    option("--data-dir", help="where prepared data sets lie")
    option("--quiet", action="store_true", help="no progress")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace, rest: list[str]) -> int:
    """Carry out the command and return the exit code."""
    del rest
    from bdjax import saved
    from bdjax.curvature.loss_surface import VARIANTS, Settings
    from bdjax.devices import compilation

    check_folders(data_dir=options.data_dir)
    compilation.enable_cache()
    compilation.require_devices()
    given = {name: getattr(options, name) for name in ("images", "draws", "chunk")}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    variants = options.variant or VARIANTS
    for file in saved.smoothness(
        options.runs,
        variants=variants,
        settings=settings,
        data_dir=options.data_dir,
        on_run=teller(options.quiet),
    ):
        print(file)
    return 0
