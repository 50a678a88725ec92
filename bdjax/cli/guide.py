"""``bdjax guide``: the manual, a page a topic."""

from __future__ import annotations

import argparse
import re
import sys
from importlib import resources

from bdjax.checks import InputError, did_you_mean
from bdjax.cli._parser import Commands

_PAGES = resources.files("bdjax") / "guide"
_ENTRY = re.compile(r"^- \[(\w+)\]\(\1\.md\): (.+)$", re.MULTILINE)  # of the list of pages
_LINK = re.compile(r"!?\[([^]]*)\]\(([^)\s]+)\)")
_WIDEST = 100  # columns, as longer lines are hard to read


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("guide", help="the manual, a page a topic", allow_abbrev=False)
    parser.add_argument("topic", nargs="?", metavar="TOPIC", help="a page, such as start")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace, rest: list[str]) -> int:
    """Carry out the command and return the exit code."""
    del rest
    if options.topic is None:
        _list()
    elif sys.stdout.isatty():
        _show(for_terminal(page(options.topic)))
    else:
        print(page(options.topic), end="")
    return 0


def topics() -> dict[str, str]:
    """Return the name of every page and what it is about, in the order of the guide."""
    return dict(_ENTRY.findall(_read("README")))


def page(topic: str) -> str:
    """Return a page as Markdown.

    Args:
      topic: its name, with or without the ``.md`` that links to it have.

    Raises:
      InputError: there is no such page.
    """
    name, known = topic.removesuffix(".md"), topics()
    if name not in known:
        near = did_you_mean(name, known)
        raise InputError(f"no page {name!r} in the guide{near}; pages: {', '.join(known)}.")
    return _read(name)


def for_terminal(markdown: str) -> str:
    """Return a page whose links say where they lead, as nobody can follow a relative path on a terminal.

    >>> for_terminal("See [data](data.md#traps), ![a curve](../../experiments/results/curve.png).")
    'See `bdjax guide data`, a curve (`experiments/results/curve.png`).'
    """
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [_LINK.sub(_spelled_out, prose) for prose in parts[::2]]
    return "".join(parts)


def _spelled_out(link: re.Match[str]) -> str:
    text, target = link[1], link[2].partition("#")[0]
    if not target:  # of the same page
        return text
    name = target.removesuffix(".md")
    where = f"bdjax guide {name}" if name in topics() else target.removeprefix("../../")
    return f"`{where}`" if target.endswith((text, f"{text}.md")) else f"{text} (`{where}`)"


def _list() -> None:
    known = topics()
    width = max(map(len, known))
    for name, line in known.items():
        print(f"{name:{width}}  {line}")


def _show(markdown: str) -> None:
    from rich.console import Console

    from bdjax.cli._markdown import Page

    console = Console()
    console.print(Page(markdown), width=min(console.width, _WIDEST))


def _read(name: str) -> str:
    return (_PAGES / f"{name}.md").read_text(encoding="utf-8")
