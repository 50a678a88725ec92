"""``bdjax bench``: how fast this machine is."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from bdjax.checks import InputError
from bdjax.cli._output import print_profile, profile_option
from bdjax.cli._parser import EXIT_STOPPED, Commands, Parser, complain


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "bench",
        help="how fast this machine is at all this",
        description="Measure training steps, sweeps, scaling over devices, loading, poisoning "
        "and compiling on random images; print a table and write JSON. What is not given suits "
        "the machine.",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option(
        "--out",
        default="bench.json",
        metavar="FILE",
        help="replaced if there (default: bench.json)",
    )
    option("--model", help="a network (default: preact_resnet18)")
    option("--width", type=int, nargs="+", metavar="W", dest="widths", help="widths of the network")
    option("--batch", type=int, nargs="+", metavar="B", dest="batch_sizes", help="images a step")
    option(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="side of the random images (default: 32)",
    )
    _precision_options(parser)
    _session_options(parser)
    option("--data-dir", help="where a prepared CIFAR-10 may lie")
    profile_option(parser, "a call of each kind of step, after it is timed")
    option("--quick", action="store_true", help="one width and batch size, small sweeps, one round")
    option("--quiet", action="store_true", help="no progress")
    parser.set_defaults(call=call)


def _precision_options(parser: Parser) -> None:
    option = parser.add_argument
    option("--dtype", metavar="TYPE", help="in which the network computes: float32 or bfloat16")
    option(
        "--matmul-precision",
        "--matmul_precision",
        metavar="PRECISION",
        help="of float32 products on an accelerator: float32, tensorfloat32 or bfloat16 (default: JAX's)",
    )


def _session_options(parser: Parser) -> None:
    option = parser.add_argument
    option(
        "--only",
        nargs="+",
        metavar="SECTION",
        dest="sections",
        help="loads steps sweeps scaling startup",
    )
    option(
        "--points",
        type=int,
        nargs="+",
        metavar="N",
        help="sizes of the sweeps (default: 1 2 4 8 16)",
    )
    option("--devices", type=int, metavar="N", help="the most that scaling uses (default: all)")
    option("--steps", type=int, metavar="N", help="training steps in a timed call")
    option("--rounds", type=int, metavar="R", help="how often each call is timed")
    option(
        "--minutes",
        type=float,
        metavar="M",
        help="skip what is left then (default: 5 on a CPU, else 8)",
    )


def call(options: argparse.Namespace, rest: list[str]) -> int:
    """Carry out the command and return the exit code."""
    del rest
    from bdjax import bench
    from bdjax.bench import profile, session, table
    from bdjax.devices import compilation

    compilation.require_devices()

    def tell(line: str) -> None:
        if not options.quiet:
            print(line, file=sys.stderr, flush=True)

    fields = [field.name for field in dataclasses.fields(session.Settings)]
    given = {name: getattr(options, name, None) for name in fields}
    settings = session.settings(quick=options.quick, **given)
    if options.profile is not None and "steps" not in settings.sections:
        got = options.profile
        raise InputError(f"profile must be left out where the section steps is; got {got!r}.")
    traces = None if options.profile is None else profile.Traces(options.profile)
    try:
        results = bench.run_sections(settings, Path(options.out), tell, traces)
    except KeyboardInterrupt:
        done = f"{options.out} has the sections that were done"
        return complain(f"interrupted; {done}.", EXIT_STOPPED)
    print(table.benchmark_table(results))
    if traces is not None:
        print_profile(traces, "no step was measured")
    return 0
