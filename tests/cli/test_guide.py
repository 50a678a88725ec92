"""`bdjax guide`: its list, its pages on a terminal and in a pipe, and what it says of an unknown one."""

import io
import subprocess
import sys

import pytest
from rich.cells import cell_len

from bdjax import cli
from bdjax.cli import guide


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_topic_every_page_has_a_line(capsys):
    assert cli.main(["guide"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(guide.topics())
    assert all(len(line.split()) > 3 for line in lines)


def test_a_pipe_gets_the_page_as_it_is(capsys):
    assert cli.main(["guide", "data"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# Data\n")
    assert "](devices.md#" in printed
    assert cli.main(["guide", "data.md"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("topic", guide.topics())
def test_a_terminal_gets_it_without_marks_and_with_commands_for_links(topic, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")  # which has 80 columns and no colors
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    assert cli.main(["guide", topic]) == 0
    lines = screen.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert screen.getvalue().count("…") == guide.page(topic).count("…")  # no word is cut
    assert not [line for line in lines if "](" in line and "lambda" not in line]


def test_a_link_to_another_page_is_the_command_that_shows_it():
    assert guide.for_terminal("see [when](when.md)") == "see `bdjax guide when`"
    assert guide.for_terminal("see [the data](data.md)") == "see the data (`bdjax guide data`)"
    assert guide.for_terminal("[here](#below)") == "here"
    code = "```python\nf[0](data.md)\n```"
    assert guide.for_terminal(code) == code


def test_an_unknown_page_is_one_line_with_the_likely_one(capsys):
    assert cli.main(["guide", "defences"]) == cli.EXIT_MISTAKE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(
        "bdjax: no page 'defences' in the guide (did you mean 'defenses'?); pages: start, "
    )
    assert said.err.count("\n") == 1


def test_it_starts_without_jax():
    code = "import sys; from bdjax import cli; cli.main(['guide', 'start']); print('jax' in sys.modules)"
    words = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert words.splitlines()[-1] == "False"
