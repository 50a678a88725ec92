"""Exit codes, and a parser whose complaint is one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn, TypeAlias

from bdjax.checks import InputError

EXIT_FAILED, EXIT_MISTAKE, EXIT_STOPPED = 1, 2, 143
RUNS = "run folders, folders of run folders, or bundles of records (.jsonl)"
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


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


def complain(error: object, code: int) -> int:
    """Say in one line on standard error what went wrong, and return the exit code."""
    print("bdjax: " + " ".join(str(error).split()), file=sys.stderr)
    return code
