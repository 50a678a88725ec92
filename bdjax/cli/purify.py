"""``bdjax purify``: a suspect network in, a purified one and a page out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bdjax.checks import InputError, non_negative
from bdjax.cli._execution import shallow
from bdjax.cli._parser import EXIT_FAILED, EXIT_STOPPED, Commands, check_values, complain, tell

if TYPE_CHECKING:
    from bdjax.runs.request import Request


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "purify",
        usage="bdjax purify FILE --data IMAGES [--defense NAME] [--out DIR] [--section.key VALUE ...] [options]",
        help="a suspect network in, a purified one and a page out",
        description="Run a defense on a network that was trained elsewhere, with clean images of your "
        "own, and write the network back in the form that it came in, with a page that says what is "
        "known of it now and what is not. Nothing in the file is executed.",
        epilog="Options of the defense, of the network and of the choice of a strength: --defense.rho 4, "
        "--model NAME, --model.width 32, --selection.budget 0.02; bdjax list defenses has them all.",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option("file", metavar="FILE", help="of PyTorch, BackdoorBench or safetensors")
    option(
        "--data",
        required=True,
        metavar="IMAGES",
        help="clean images: a folder IMAGES/<class>/, an .npz file, or a data set of bdjax list data",
    )
    option("--out", default="clean", metavar="DIR", help="a new folder (default: clean)")
    _image_options(parser)
    option("--part", metavar="KEY", help="of the weights, in a file of several sets")
    option("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    option("--no-inversion", action="store_true", help="look for no triggers before and after")
    option(
        "--anyway", action="store_true", help="go on with a network that is no better than a guess"
    )
    option(
        "--checkpoint-seconds",
        type=float,
        default=5.0,
        help="least seconds between checkpoints (5)",
    )
    option("--quiet", action="store_true", help="no progress")
    parser.set_defaults(call=call, takes_more=True)


def _image_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the network is given images")
    option = group.add_argument
    option("--mean", metavar="NUMBERS", help="of each channel, in units of [0, 1]; or none")
    option("--std", metavar="NUMBERS", help="likewise")
    option("--image-size", type=int, metavar="PIXELS", help="resize the images to squares")
    option("--class-order", metavar="NAMES", help="classes in the network's order, with commas")
    option("--data-dir", metavar="DIR", help="where prepared data sets lie")
    option("--aside", type=float, default=0.2, metavar="SHARE", help="kept aside to measure (0.2)")


def call(options: argparse.Namespace, rest: list[str]) -> int:
    """Carry out the command and return the exit code."""
    from bdjax.cli import _progress, _signals
    from bdjax.devices import compilation
    from bdjax.report import purified as report
    from bdjax.runs import purification
    from bdjax.runs.execution import Execution
    from bdjax.train import loop

    check_values(rest, "FILE")
    _check_order(options.file, rest)
    with shallow():
        request = _request(options, rest)
    non_negative(checkpoint_seconds=options.checkpoint_seconds)
    compilation.enable_cache()
    compilation.require_devices()
    try:
        with _signals.stop_on_signal() as stopped, _progress.bar(quiet=options.quiet) as on_epoch:
            execution = Execution(
                request.out,
                checkpoint_seconds=options.checkpoint_seconds,
                on_epoch=on_epoch,
                should_stop=stopped,
            )
            purification.purify(request, execution, _teller(options.quiet))
    except loop.Stopped as reason:
        tell(f"{reason}; the same command continues.")
        return EXIT_STOPPED
    except loop.Diverged as reason:
        return complain(reason, EXIT_FAILED)
    for line in report.write(request.out):
        print(line)
    return 0


def _check_order(file: str, rest: Sequence[str]) -> None:
    """Refuse options of a config in front of FILE, which is then taken for the value of one of them."""
    if not Path(file).exists() and any(Path(word).is_file() for word in rest):
        raise InputError(f"options such as {rest[0]} stand last, and FILE must stand before them.")


def _request(options: argparse.Namespace, rest: list[str]) -> Request:
    from bdjax.runs import schema
    from bdjax.runs.request import Request

    return Request(
        file=Path(options.file),
        data=options.data,
        out=Path(options.out),
        values=schema.overrides(rest),
        part=options.part,
        seed=options.seed,
        data_dir=options.data_dir,
        image_size=options.image_size,
        class_order=_names(options.class_order),
        mean=options.mean,
        std=options.std,
        aside=options.aside,
        inversion=not options.no_inversion,
        anyway=options.anyway,
    )


def _names(words: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (words or "").split(",") if word.strip())


def _teller(quiet: bool) -> Callable[[str], None]:
    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    return say
