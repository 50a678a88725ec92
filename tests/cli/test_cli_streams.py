"""Standard streams in whatever encoding, closed, full, or read by nobody: legible, or quiet."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import made_up
import pytest

from bdjax import cli
from bdjax.cli import _streams

ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PYTHONUNBUF", "PYTHONIOE"))
}
ENVIRONMENT["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))


def shell(command, **options):
    """Run a command of the shell in which ``bdjax`` is this one."""
    script = f'bdjax() {{ "{sys.executable}" -m bdjax "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, **{"env": ENVIRONMENT, **options}
    )


def printed(monkeypatch, words, encoding):
    """Return the exit code and what the command line prints on a terminal of that encoding."""
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding, errors="strict"))
    code = cli.main(words)
    return code, out.getvalue().decode(encoding)


@pytest.fixture
def runs(tmp_path):
    """Two runs of a row whose name has a Greek letter, so that the table has a ±."""
    return str(
        made_up.write(
            tmp_path / "runs",
            *(made_up.content(seed, defense=made_up.ft_sam(2)) for seed in (0, 1)),
        )
    )


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii", "cp1252", "utf-16"])
@pytest.mark.parametrize("style", ["console", "markdown", "csv", "latex"])
def test_a_table_is_printed_in_every_encoding(style, encoding, runs, monkeypatch):
    code, text = printed(monkeypatch, ["report", runs, "--format", style], encoding)
    assert code == 0
    assert "90.0" in text or "0.9" in text
    if style == "console":
        assert ("±" if encoding != "ascii" else " +- ") in text
    assert sys.stdout.errors == "strict"  # what belongs to the caller is left as it was


def test_signs_are_written_in_plain_letters_and_names_so_that_they_can_be_told():
    text = "± ρ Δ λ_max ⌊x⌋ → ‖ ℓ∞ ²₁ é 中 \udcff \ud800 😀"
    plain = r"+- rho Delta lambda_max floor(x) -> || linf 21 \xe9 \u4e2d \xff \ud800 \U0001f600"
    assert text.encode("ascii", "bdjax.plain").decode() == plain
    with pytest.raises(UnicodeDecodeError):  # what is read is not guessed at
        b"\xff".decode("ascii", "bdjax.plain")


@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_process_prints_help_and_lists_in_the_encoding_of_its_terminal(settings):
    ended = shell(
        "bdjax smoothness --help && bdjax list attacks",
        env={**ENVIRONMENT, **settings},
        encoding="latin-1",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "(1 - alpha) x[p] + alpha T[p]" in ended.stdout


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("bdjax list models >&-", 0),
        ("bdjax list nothing 2>&-", 2),
        ("bdjax list models <&-", 0),
        ("bdjax list models <&- >&- 2>&-", 0),
        ("bdjax --help >&-", 0),
    ],
)
def test_a_stream_that_is_closed_is_nobodys(command, code):
    ended = shell(command)
    assert (ended.returncode, ended.stderr) == (code, "")


def test_a_closed_stream_does_not_give_its_number_to_a_file(tmp_path):
    code = "import os, sys; from bdjax.cli import _streams; _streams._occupy(); file = open(sys.argv[1], 'w'); "
    code += "print('hello'); os.write(1, b'hello'); file.close(); sys.exit(os.path.getsize(sys.argv[1]))"
    ended = shell(f'"{sys.executable}" -c "{code}" "{tmp_path / "file"}" >&-')
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "command", ["bdjax list attacks | true", "{ bdjax list nothing 2>&1; } | true"]
)
def test_a_reader_who_has_gone_is_not_told(command, unbuffered):
    ended = shell(
        f"set -o pipefail; {command}", env={**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered}
    )
    assert ended.returncode in (1, 2)
    assert ended.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is full")
def test_a_full_disk_behind_standard_output_is_one_line():
    ended = shell("bdjax list models > /dev/full")
    assert ended.returncode == 1
    assert (
        ended.stderr
        == "bdjax: there is no room left: standard output; once there is room, the same command continues.\n"
    )
    assert (shell("bdjax list nothing 2> /dev/full").returncode) == 2


def test_streams_are_settled_when_they_are_broken(monkeypatch, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    broken = os.fdopen(writer, "w", encoding="utf-8")
    broken.write("nobody reads this")
    monkeypatch.setattr(sys, "stdout", broken)
    with pytest.raises(BrokenPipeError):
        _streams.flush()
    _streams.settle()
    broken.close()  # as Python does when it ends; what is left goes nowhere
