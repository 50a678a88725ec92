"""The console script ``bdjax``: it reads words, calls the library and prints; it has no logic of its own.

A command is a file: ``add`` has its options, ``call`` carries it out. What a command calls is imported when it is
called, so that ``--help`` and a mistake wait for nothing.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from bdjax import __version__, guard
from bdjax.checks import InputError
from bdjax.cli import analyze, bench, compare, demo, export, listing, poison, report, run, show, smoothness, sweep
from bdjax.cli._parser import EXIT_FAILED, EXIT_MISTAKE, EXIT_STOPPED, Parser, complain

_COMMANDS = (
    demo,
    run,
    sweep,
    show,
    poison,
    listing,
    report,
    compare,
    analyze,
    smoothness,
    export,
    bench,
)  # as --help has them


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 1 failed, 2 a mistake in what was asked, 143 stopped."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return _of_several(words) if guard.is_watched() else _answer(words)


def _of_several(words: list[str]) -> int:
    """Do as `main`, being one process of several: leave with the others, or at once if one of them is gone."""
    from bdjax.train import hosts

    try:
        code = _answer(words)
    except Exception as error:
        if hosts.is_loss(error):
            complain(f"{guard.LOST} ({str(error).partition(chr(10))[0][:200]}).", EXIT_FAILED)
        else:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(EXIT_FAILED)  # what JAX does at the end waits for the others
    hosts.finish(code)
    return code


def _answer(words: list[str]) -> int:
    try:
        try:
            return _call(words)
        finally:
            print(end="", flush=True)  # a reader who has gone is noticed here, not when Python exits
    except InputError as error:
        return complain(error, EXIT_MISTAKE)
    except KeyboardInterrupt:
        return complain("interrupted; the same command continues.", EXIT_STOPPED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # there is nobody to tell
        return EXIT_FAILED
    except (OSError, MemoryError) as error:
        return complain(error, EXIT_FAILED)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).partition("\n")[0]
        return complain(f"the device has not enough memory: lower batch_size, chunk or width ({first})", EXIT_FAILED)


def _call(words: list[str]) -> int:
    options, rest = _parser().parse_known_args(words)
    options.words = words[1:]
    if rest and not options.takes_more:
        raise InputError(f"unknown option {rest[0]!r}; see bdjax {options.name} --help.")
    if options.name == "run" and options.hosts and not options.show and not guard.is_watched():
        return guard.watch("bdjax", words)
    return options.call(options, rest)


def _parser() -> Parser:
    parser = Parser("bdjax", description="Plant backdoors in image classifiers, remove them, and measure both.")
    parser.add_argument("--version", action="version", version=f"bdjax {__version__}")
    parser.set_defaults(takes_more=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="name")
    for command in _COMMANDS:
        command.add(commands)
    return parser
