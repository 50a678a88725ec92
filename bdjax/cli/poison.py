"""``bdjax poison``: a poisoned data set as files."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from bdjax.checks import InputError
from bdjax.cli._execution import carry_out, execution_options, shallow, values_of_attacks
from bdjax.cli._parser import Commands, check_values


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "poison",
        usage="bdjax poison ATTACK --out DIR [--config CONFIG] [--section.key VALUE ...] [options]",
        help="write a poisoned data set, to train on it elsewhere",
        description="Write the training images as the attack poisons them and the test images "
        "without and with its trigger, as PNG in folders of their classes and as one .npz, with "
        "their labels, the attacker's and the true ones, and which are poisoned. A trigger that "
        "is learned needs its victim: that of the same config in --runs, which is trained if "
        "there is none.",
        epilog="Every field of a config is an option, as for bdjax run: --section.key value.",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option("attack", metavar="ATTACK", help="as bdjax list attacks names it")
    option("--out", required=True, metavar="DIR", help="a new or an empty folder")
    option("--config", metavar="CONFIG", action="append", default=[], help="a YAML file")
    execution_options(parser, "runs", flag="--runs")
    parser.set_defaults(call=call, takes_more=True)


def call(options: argparse.Namespace, rest: list[str]) -> int:
    """Carry out the command and return the exit code."""
    from bdjax.cli import _progress
    from bdjax.runs import config as configs
    from bdjax.runs import poisoned_folder

    check_values(rest, "ATTACK")
    with shallow():
        (values,) = values_of_attacks([options.attack], options.config, rest)
        config = configs.resolve(values)
    folder = _folder(options.out)
    if poisoned_folder.finished(config, folder):
        print(f"finished already: {folder}")
        return 0
    made: list[poisoned_folder.PoisonedSet] = []
    training = argparse.Namespace(**{**vars(options), "out": options.runs})
    if code := carry_out(
        training, lambda execution: made.append(poisoned_folder.make(config, execution))
    ):
        return code
    # It has a progress of its own
    writing = argparse.Namespace(**{**vars(training), "quiet": True})
    with _progress.counter("images", quiet=options.quiet) as tell:
        code = carry_out(
            writing,
            lambda execution: poisoned_folder.write(made[0], folder, tell, execution.should_stop),
        )
    if not code:
        print(f"{folder}: {poisoned_folder.summary(made[0])}")
    return code


def _folder(out: str) -> Path:
    """Return the folder that is written, which is put in place by its name."""
    if not out:
        raise InputError("out must name a folder, got ''.")
    folder = Path(os.path.abspath(os.path.expanduser(out)))
    if folder == Path.cwd() or not folder.name:
        raise InputError(f"out must be a folder of its own, such as ./poisoned; got {out!r}.")
    return folder
