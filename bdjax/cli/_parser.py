"""Exit codes, and a parser whose complaint is one line."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Sequence
from typing import NoReturn, TypeAlias

from bdjax.checks import InputError
from bdjax.files.printable import printable

EXIT_FAILED, EXIT_MISTAKE, EXIT_STOPPED = 1, 2, 143
RUNS = "run folders, folders of run folders, or bundles of records (.jsonl)"
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
_BEGIN, _END = 700, 300  # characters of a longer message that are shown


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the words."""
        raise InputError(f"{message} (see {self.prog} --help).")


def check_values(rest: Sequence[str], before: str) -> None:
    """Refuse options without a value, which ``before`` has got if they stand in front of it.

    >>> check_values(["--epochs"], "RUNS")
    Traceback (most recent call last):
    bdjax.checks.InputError: option --epochs needs a value, and must stand after RUNS.
    """
    for word, after in zip(rest, [*rest, "--"][1:], strict=True):
        if word.startswith("--") and "=" not in word and after.startswith("--"):
            raise InputError(f"option {word} needs a value, and must stand after {before}.")


def check_folders(**words: str | None) -> None:
    """Refuse the name of a folder that is empty, as an unset variable of the shell is."""
    for name, word in words.items():
        if word == "":
            raise InputError(f"{name} must name a folder, got ''.")


def complain(error: object, code: int) -> int:
    """Say in one line on standard error what went wrong, and return the exit code."""
    tell(error)
    return code


def tell(message: object) -> None:
    """Say something in one line on standard error, if anybody reads it."""
    with contextlib.suppress(OSError):
        print(f"bdjax: {one_line(str(message))}", file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    r"""Return a text as one line that a terminal shows as it is: what does something to a terminal is escaped.

    A long one is cut in the middle: what is wrong stands at the beginning, and what would be right often at the end.

    >>> print(one_line("no file\n\x1b[2Jname"))
    no file \x1b[2Jname
    """
    if len(text) > _BEGIN + _END:
        text = f"{text[:_BEGIN]} […] {text[-_END:]}"
    text = re.sub(r"(?: |\t|\r?\n)+", " ", text).strip(" ")
    return printable(text)
