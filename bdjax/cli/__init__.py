"""The console script ``bdjax``: it reads words, calls the library and prints; it has no logic of its own.

A command is a file: ``add`` has its options, ``call`` carries it out. What a command calls is imported when it is
called, so that ``--help`` and a mistake wait for nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence

from bdjax import __version__
from bdjax.checks import InputError
from bdjax.cli import (
    _streams,
    analyze,
    bench,
    compare,
    demo,
    export,
    guide,
    inspect,
    listing,
    poison,
    purify,
    report,
    run,
    show,
    smoothness,
    sweep,
)
from bdjax.cli._parser import EXIT_FAILED, EXIT_MISTAKE, EXIT_STOPPED, Parser, complain
from bdjax.devices import guard
from bdjax.files import failures

_COMMANDS = (
    demo,
    guide,
    inspect,
    purify,
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
    if arguments is None:  # the process is ours
        _streams.hush_helpers()
        # Before orbax does it, with names that say nothing to a user
        logging.basicConfig(format="%(message)s")
    words = list(sys.argv[1:] if arguments is None else arguments)
    with _streams.writable():
        return _of_several(words) if guard.is_watched() else _answer(words)


def _of_several(words: list[str]) -> int:
    """Do as `main`, being one process of several: leave with the others, or at once if one of them is gone."""
    from bdjax.devices import hosts

    try:
        code = _answer(words)
    except Exception as error:
        if hosts.is_loss(error):
            complain(f"{guard.LOST} ({str(error).partition(chr(10))[0][:200]}).", EXIT_FAILED)
        else:
            traceback.print_exc()
        _streams.settle()
        os._exit(EXIT_FAILED)  # what JAX does at the end waits for the others
    _streams.settle()
    hosts.finish(code)
    return code


def _answer(words: list[str]) -> int:
    try:
        try:
            return _call(words)
        finally:
            _streams.flush()
    except InputError as error:
        return complain(error, EXIT_MISTAKE)
    except KeyboardInterrupt:
        return complain("interrupted; the same command continues.", EXIT_STOPPED)
    except BrokenPipeError:
        return EXIT_FAILED  # there is nobody to tell
    except Exception as error:
        if (reason := failures.explain(error)) is None:
            raise
        mistake = isinstance(error, OSError) and error.errno in failures.IMPOSSIBLE
        return complain(reason, EXIT_MISTAKE if mistake else EXIT_FAILED)


def _call(words: list[str]) -> int:
    for word in words:
        if "\0" in word or not _is_passable(word):
            raise InputError(f"an argument has a character that none can have: {word!r}.")
    options, rest = _parser().parse_known_args(words)
    options.words = words[1:]
    if rest and not options.takes_more:
        raise InputError(f"unknown option {rest[0]!r}; see bdjax {options.name} --help.")
    if options.name == "run" and options.hosts and not options.show and not guard.is_watched():
        return guard.watch("bdjax", words)
    return options.call(options, rest)


def _is_passable(word: str) -> bool:
    """Whether the system could pass a word, or open a path of that name: not if it has half of a character."""
    try:
        os.fsencode(word)
    except UnicodeEncodeError:
        return False
    return True


def _parser() -> Parser:
    parser = Parser(
        "bdjax", description="Plant backdoors in image classifiers, remove them, and measure both."
    )
    parser.add_argument("--version", action="version", version=f"bdjax {__version__}")
    parser.set_defaults(takes_more=False)
    commands = parser.add_subparsers(
        title="commands",
        required=True,
        metavar="COMMAND",
        dest="name",
    )
    for command in _COMMANDS:
        command.add(commands)
    return parser
