"""The README and the guide: their Python runs, their commands are commands, and what they name is there."""

from __future__ import annotations

import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_imports import ROWS

import bdjax
from bdjax import cli
from bdjax.cli import guide
from bdjax.runs import config, schema
from bdjax.tasks.metrics import SINGLE_LABEL

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "bdjax" / "guide"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
    for file in (ROOT / "README.md", *sorted(GUIDE.glob("*.md")))
}
RESULTS = {
    file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
    for file in sorted((ROOT / "experiments" / "results").glob("*.md"))
}
PRESETS = sorted((ROOT / "configs").glob("*.yaml"))
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Yield the code blocks in a language, each with the name of its page and its number there."""
    for name, text in PAGES.items():
        found = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        yield from ((f"{name}, {language} {number}", code) for number, code in enumerate(found, 1))


def commands() -> list[str]:
    """Return all different lines of shell that call bdjax or a script, without their comments."""
    lines = [
        line.partition("#")[0].strip() for _, block in blocks("sh") for line in block.splitlines()
    ]
    return list(dict.fromkeys(lines))


def spans() -> list[tuple[str, str]]:
    """Return what pages have in backquotes outside of blocks, each with the name of its page."""
    return [
        (name, span)
        for name, text in PAGES.items()
        for span in re.findall(r"`([^`]+)`", CODE.sub("", text))
    ]


def anchors(text: str) -> set[str]:
    """Return the names that a repository's host gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", CODE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# --- Code ------------------------------------------------------------------------------------------------------------


def test_quick_start_opens_with_two_commands_of_one_line():
    quick_start = README.partition("## Quick start")[2]
    first_two = re.findall(r"^```sh\n(.*?)^```", quick_start, re.MULTILINE | re.DOTALL)[:2]
    assert [block.count("\n") for block in first_two] == [1, 1]
    assert "bdjax demo" in first_two[0]
    assert "pytest" in first_two[1]


@pytest.mark.parametrize(
    ("name", "code"), [pytest.param(*block, id=block[0]) for block in blocks("python")]
)
def test_python_runs(name, code, capsys):
    exec(compile(code, name, "exec"), {"__name__": "__main__"})
    for line in re.findall(r"ASR .*", capsys.readouterr().out):
        before, after = (float(value) for value in re.findall(r"([\d.]+)%", line))
        assert after < before


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("bdjax run")])
def test_runs_resolve(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("BDJAX_DATA_DIR", raising=False)  # large data are not read for this
    words = [word for word in shlex.split(command)[1:] if word != "--show"]
    assert cli.main([*words, "--show"]) == 0
    assert "defense.name" in capsys.readouterr().out


def test_other_commands_parse(capsys):
    for command in commands():
        words = shlex.split(command)
        if words[0] != "bdjax":
            continue
        options, rest = cli._parser().parse_known_args(words[1:])
        assert options.takes_more or not rest, command
        if options.name in ("list", "guide"):
            assert cli.main(words[1:]) == 0


def test_scripts_and_tests_that_commands_name_are_there():
    named = [
        word
        for command in commands()
        for word in shlex.split(command)
        if word.endswith((".py", ".yaml"))
    ]
    assert named
    assert [word for word in named if not (ROOT / word).is_file()] == []


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_presets_resolve(path):
    assert config.resolve(schema.read(path)).data.name in path.stem


# --- What pages name -------------------------------------------------------------------------------------------------


def test_readme_is_short():
    assert README.count("\n") <= 200


def test_the_list_of_pages_has_each_once():
    listed = re.findall(r"^- \[(\w+)\]", PAGES["bdjax/guide/README.md"], re.MULTILINE)
    assert sorted(listed) == sorted(
        file.stem for file in GUIDE.glob("*.md") if file.stem != "README"
    )
    assert list(guide.topics()) == listed


@pytest.mark.parametrize("name", [*PAGES, *RESULTS])
def test_links_lead_somewhere(name):
    text = {**PAGES, **RESULTS}[name]
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", text)):
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), f"{name}: {target}"
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), (
            f"{name}: {target}"
        )


def test_files_that_pages_name_are_there():
    paths = [
        (page, span)
        for page, span in spans()
        if re.fullmatch(r"(bdjax|experiments|configs|tests)/[\w./]+", span)
    ]
    assert paths
    assert [
        one for one in paths if not (ROOT / one[1]).exists() and Path(one[1]).stem != "mine"
    ] == []


def test_names_of_the_library_that_pages_have_are_there():
    named = [span for _, span in spans() if re.fullmatch(r"bdjax(\.\w+)+", span)]
    assert named
    for name in named:
        pkgutil.resolve_name(name)


def test_commands_that_pages_have_in_their_sentences_are_commands():
    known = {command.__name__.rpartition(".")[2] for command in cli._COMMANDS} | {"list"}
    named = {span.split()[1] for _, span in spans() if re.match(r"bdjax [a-z]", span)}
    assert named
    assert named <= known


def test_the_page_on_the_design_has_every_room_in_the_order_of_imports():
    rooms = {
        path.name
        for path in Path(bdjax.__file__).parent.iterdir()
        if path.is_dir() and path.name[0] != "_"
    }
    modules = {
        path.name for path in Path(bdjax.__file__).parent.glob("*.py") if path.name != "__init__.py"
    }
    first_cells = re.findall(r"^\|[^|]+\|", PAGES["bdjax/guide/design.md"], re.MULTILINE)
    named = [span.rstrip("/") for span in re.findall(r"`([\w.]+/?)`", "".join(first_cells))]
    assert set(named) == rooms | modules
    order = list(ROWS.values())
    places = [
        order.index(ROWS[stem]) for name in named if (stem := name.removesuffix(".py")) in ROWS
    ]
    assert places == sorted(places)


def test_messages_that_troubleshooting_explains_are_messages():
    source = "".join(
        file.read_text(encoding="utf-8") for file in Path(bdjax.__file__).parent.rglob("*.py")
    )
    rows = re.findall(r"^\|([^|]*)\|", PAGES["bdjax/guide/troubleshooting.md"], re.MULTILINE)
    messages = re.findall(r"`([^`]+)`", "".join(rows))
    assert len(messages) > 10
    parts = [part.strip(" ()?") for message in messages for part in message.split("…")]
    assert [part for part in parts if part not in source] == []


def test_the_page_on_metrics_has_each():
    page = PAGES["bdjax/guide/metrics.md"]
    assert [
        metric.name
        for metric in SINGLE_LABEL
        if f"`{metric.name}`" not in page or metric.head not in page
    ] == []


def test_the_page_on_when_methods_work_shows_rows_of_the_whole_table():
    rows = [line for line in PAGES["bdjax/guide/when.md"].splitlines() if line.startswith("|")]
    assert len(rows) > 10
    assert set(rows) <= set(RESULTS["experiments/results/when_digits.md"].splitlines())
