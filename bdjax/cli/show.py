"""``bdjax show``: what triggers look like."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bdjax.cli._execution import carry_out, execution_options, shallow, values_of_attacks
from bdjax.cli._parser import Commands, check_values

if TYPE_CHECKING:
    from bdjax.runs import show
    from bdjax.runs.run import Execution


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "show",
        usage="bdjax show ATTACK [ATTACK ...] [--config CONFIG] [--section.key VALUE ...] [options]",
        help="draw what triggers look like",
        description="Draw test images without and with each attack's trigger, and what it "
        "changes. A trigger that is learned needs its victim: that of the same config in --out, "
        "which is trained if there is none.",
        epilog="Every field of a config is an option, as for bdjax run: --section.key value.",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option("attacks", nargs="+", metavar="ATTACK", help="as bdjax list attacks names them, or all")
    option("--config", metavar="CONFIG", action="append", default=[], help="a YAML file")
    option(
        "--file",
        metavar="FILE",
        help="png, pdf or svg (default: the attack's name, or attacks, .png)",
    )
    execution_options(parser, "runs")
    parser.set_defaults(call=call, takes_more=True)


def call(options: argparse.Namespace, rest: list[str]) -> int:
    """Carry out the command and return the exit code."""
    from bdjax import registry
    from bdjax.report import contact_sheet
    from bdjax.runs import config as configs
    from bdjax.runs import show

    check_values(rest, "ATTACK")
    names = registry.names("bdjax.attacks") if options.attacks == ["all"] else options.attacks
    with shallow():
        wanted = list(map(configs.resolve, values_of_attacks(names, options.config, rest)))
    usual = f"{names[0] if len(names) == 1 else 'attacks'}.png"
    file = contact_sheet.check(usual if options.file is None else options.file)
    shown: list[show.Shown] = []

    def work(execution: Execution) -> None:
        for config in wanted:
            shown.append(show.show(config, execution))

    code = carry_out(options, work)
    if code:
        return code
    print(contact_sheet.draw(shown, file, heading=_heading(wanted[0].data.folder_name, shown)))
    return 0


def _heading(data: str, shown: list[show.Shown]) -> str:
    """Return the data set's name and the class that the attacks aim at, if it is one."""
    targets = list(dict.fromkeys(one.target for one in shown if one.target is not None))
    return data if not targets else f"{data}, target class {' or '.join(targets)}"
