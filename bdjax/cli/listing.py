"""``bdjax list``: what there is."""

from __future__ import annotations

import argparse
import inspect

from bdjax.cli._parser import Commands

KINDS = {
    "attacks": "bdjax.attacks",
    "defenses": "bdjax.defenses",
    "models": "bdjax.models",
    "data": "bdjax.data.sources",
    "analyses": "bdjax.analysis",
}


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "list",
        help="the attacks, defenses, networks, data and analyses that there are",
        allow_abbrev=False,
    )
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument(
        "method",
        nargs="?",
        metavar="NAME",
        help="show this one's description and options",
    )
    parser.set_defaults(call=call)


def call(options: argparse.Namespace, rest: list[str]) -> int:
    """Carry out the command and return the exit code."""
    del rest
    from bdjax import registry

    package = KINDS[options.kind]
    if options.method:
        print(inspect.getdoc(registry.factory(package, options.method)))
        for name, values in registry.strengths(package, options.method).items():
            print(f"auto for {name} tries: " + ", ".join(f"{value:g}" for value in values))
        for name, values in registry.presets(package, options.method).items():
            words = ", ".join(f"{key}={value}" for key, value in values.items())
            print(f"preset {name}: {words or 'the defaults'}")
        return 0
    names = registry.names(package)
    width = max(map(len, names))
    for name in names:
        print(f"{name:{width}}  {registry.summary(package, name)}")
    return 0
