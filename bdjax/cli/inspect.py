"""``bdjax inspect``: what a file of weights holds; nothing in it is executed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bdjax.cli._parser import Commands
from bdjax.files.printable import printable

_LONGEST = 200  # characters of what somebody else wrote


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "inspect",
        help="what a file of weights holds; nothing in it is executed",
        description="Read a network's file of PyTorch, BackdoorBench or safetensors as data, and say which "
        "network it is, how its images were normalized, and what else stands there.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="of PyTorch, BackdoorBench or safetensors")
    parser.add_argument("--part", metavar="KEY", help="of the weights, in a file of several sets")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace, rest: list[str]) -> int:
    """Carry out the command and return the exit code."""
    del rest
    from bdjax.runs import inspection

    found = inspection.inspect(Path(options.file), options.part)
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    # The left column, too, has names that stand in the file
    lines = [(printable(head), words) for head, words in inspection.lines(found)]
    width = max(len(head) for head, _ in lines)
    for head, words in lines:
        print(f"{head:{width}}  {printable(words, _LONGEST)}")
    return 0
