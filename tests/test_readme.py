"""The README's Python runs, and its commands are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from bdjax import cli
from bdjax.runs import config, schema

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SHELL = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PRESETS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for block in SHELL for line in block.splitlines()]
    return [line for line in lines if line.startswith("bdjax ")]


def test_quick_start_opens_with_two_commands_of_one_line():
    quick_start = README.partition("## Quick start")[2]
    first_two = re.findall(r"^```sh\n(.*?)^```", quick_start, re.MULTILINE | re.DOTALL)[:2]
    assert [block.count("\n") for block in first_two] == [1, 1]
    assert "bdjax demo" in first_two[0]
    assert "pytest" in first_two[1]


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_runs(number, capsys):
    exec(compile(PYTHON[number], f"README block {number}", "exec"), {})
    for line in re.findall(r"ASR .*", capsys.readouterr().out):
        before, after = (float(value) for value in re.findall(r"([\d.]+)%", line))
        assert after < before


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("bdjax run")])
def test_runs_resolve(command, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[1])
    words = [word for word in shlex.split(command)[1:] if word != "--show"]
    assert cli.main([*words, "--show"]) == 0
    assert "defense.name" in capsys.readouterr().out


def test_other_commands_parse(capsys):
    for command in commands():
        if "list" in command:
            assert cli.main(shlex.split(command)[1:]) == 0


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_presets_resolve(path):
    assert config.resolve(schema.read(path)).data.name in path.stem
