"""The command line: what it prints, and that every mistake is one line and exit code 2 before anything is compiled."""

import contextlib
import io
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bdjax import __version__, cli, registry
from bdjax.runs import config as configs
from bdjax.runs import schema, victim


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def bdjax(*words):
    """Call the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(words)
        except SystemExit as end:
            code = end.code
    return Answer(code, out.getvalue(), err.getvalue())


def process(*words, **options):
    """Call the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "bdjax", *words], capture_output=True, text=True, **options
    )


def one_line(answer, code=2):
    """Check that an answer is a complaint of one line and return the line."""
    assert answer.code == code, answer
    assert re.fullmatch(r"bdjax: [^\n]+\n", answer.err), answer
    assert answer.out == ""
    return answer.err


@pytest.fixture(autouse=True, scope="module")
def nothing_is_compiled(tmp_path_factory):
    """No call of this file gets as far as a victim, and none finds data by accident."""

    def refuse(*_):
        raise AssertionError("this call should have been refused before")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(victim, "plant", refuse)
        patch.setattr("bdjax.devices.compilation.enable_cache", lambda: None)
        patch.setenv("BDJAX_DATA_DIR", str(tmp_path_factory.mktemp("no data")))
        yield


# --- What it prints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", cli.listing.KINDS)
def test_list_shows_every_method_with_its_first_line_and_each_with_all_of_them(kind):
    package = cli.listing.KINDS[kind]
    answer = bdjax("list", kind)
    assert (answer.code, answer.err) == (0, "")
    assert [line.split()[0] for line in answer.out.splitlines()] == registry.names(package)
    for name in registry.names(package):
        described = bdjax("list", kind, name)
        assert described.code == 0
        assert described.out.startswith(registry.summary(package, name))


def test_list_shows_what_a_preset_changes():
    *_, paper, released = bdjax("list", "defenses", "ft_sam").out.splitlines()
    assert paper == "preset paper: the defaults"
    assert released.startswith(
        "preset reference_code: weight_decay=0.0005, label_smoothing=0.1, schedule="
    )


@pytest.mark.parametrize(
    "command", [(), ("demo",), ("run",), ("list",), ("report",), ("compare",), ("export",)]
)
def test_help_of_every_command(command):
    answer = bdjax(*command, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(" ".join(("usage: bdjax", *command)))


def test_version():
    assert bdjax("--version") == (0, f"bdjax {__version__}\n", "")


def test_show_prints_every_leaf_of_the_config_and_does_nothing(tmp_path):
    answer = bdjax("run", "--show", "--defense", "ft", "--seed=3", "--out", str(tmp_path / "out"))
    config = configs.resolve({"defense": "ft", "seed": 3})
    shown = dict(line.split(": ", 1) for line in answer.out.splitlines())
    leaves = {**schema.flatten(config.to_dict()), "matmul_precision": None}
    assert shown == {k: "null" if v is None else str(v) for k, v in leaves.items()}
    assert not (tmp_path / "out").exists()


def test_show_has_the_precision_of_products_asked_for_or_not():
    for words, shown in (((), "null"), (("--matmul_precision", "float32"), "float32")):
        answer = bdjax("run", "--show", *words)
        assert (answer.code, answer.err) == (0, "")
        assert f"matmul_precision: {shown}" in answer.out.splitlines()
    assert "must be one of float32, tensorfloat32, bfloat16; got 'highest'" in one_line(
        bdjax("run", "--matmul_precision", "highest", "--show")
    )


def test_a_place_where_no_trace_can_go_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert "profile must be a folder" in one_line(bdjax("run", "--profile", str(tmp_path / "file")))
    assert "profile must be a folder" in one_line(
        bdjax("run", "--profile", str(tmp_path / "file"), "--show")
    )


def test_a_config_may_come_first_or_as_an_option_among_the_others(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("seed: 5\ndefense: {name: ft_sam, rho: 4}")
    first = bdjax("run", str(file), "--defense.epochs", "3", "--show")
    later = bdjax("run", "--defense.epochs", "3", "--quiet", "--config", str(file), "--show")
    assert first == later
    assert "seed: 5\n" in first.out
    assert "defense.rho: 4.0\n" in first.out
    assert "defense.epochs: 3\n" in first.out


@pytest.mark.parametrize("words", [("--help",), ("list", "models")])
def test_a_reader_who_has_gone_ends_it_quietly(words):
    reader, writer = os.pipe()
    os.close(reader)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "bdjax", *words]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


@pytest.mark.parametrize(
    "words",
    [
        ("--attack.target_label", "10"),
        ("--data.name", "no such set"),
        ("--data.data_dir", "/no/such/folder", "--data.name", "cifar10"),
        ("--devices", "999"),
        ("--data-on", "nowhere"),
        ("--checkpoint-seconds", "-1"),
        ("--out", ""),
    ],
    ids=" ".join,
)
def test_show_refuses_what_a_run_refuses_in_the_same_words(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = one_line(bdjax("run", *words, "--show"))
    assert one_line(bdjax("run", *words)) == shown
    assert list(tmp_path.iterdir()) == []


def test_show_fetches_and_prepares_nothing(tmp_path):
    answer = bdjax("run", "--data", "cifar10", "--data.data_dir", str(tmp_path), "--show")
    assert (answer.code, answer.err.count("\n")) == (0, 1)
    assert "cifar10 is not on this machine yet" in answer.err
    assert "data.name: cifar10\n" in answer.out
    assert list(tmp_path.iterdir()) == []


# --- Mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("runn",),
        ("--seed", "1", "run"),
        ("demo", "extra"),
        ("demo", "--seeds", "0"),
        ("demo", "--seeds", "two"),
        ("demo", "--dataset", "mnist"),
        ("list",),
        ("list", "atacks"),
        ("list", "attacks", "badnet"),
        ("list", "attacks", "--all"),
        ("report",),
        ("report", "no/such/folder"),
        ("report", "--format", "pdf"),
        ("compare", "runs"),
        ("export",),
    ],
    ids=" ".join,
)
def test_a_mistake_in_the_command_is_one_line(words):
    one_line(bdjax(*words))


def test_a_report_on_an_empty_folder_is_one_line(tmp_path):
    assert str(tmp_path) in one_line(bdjax("report", str(tmp_path)))


@pytest.mark.parametrize("command", ["run", "demo"])
def test_an_out_that_cannot_hold_a_folder_is_one_line(command, tmp_path):
    file = tmp_path / "file"
    file.write_text("precious")
    assert "is a file" in one_line(bdjax(command, "--out", str(file)))
    assert f"{file} is a file" in one_line(bdjax(command, "--out", str(file / "below" / "it")))
    assert "/dev/null is none" in one_line(bdjax(command, "--out", "/dev/null/x"))
    assert "out must name a folder" in one_line(bdjax(command, "--out", ""))
    assert "out must be a shorter path" in one_line(bdjax(command, "--out", "a" * 300))
    assert "out must be a shorter path" in one_line(bdjax(command, "--out", "a/" * 2040))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "one that leads somewhere" in one_line(bdjax(command, "--out", str(tmp_path / "loop")))
    assert file.read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "loop"}


@pytest.mark.parametrize(
    "words",
    [
        ("report", "a" * 300),
        ("report", "/dev/null/x"),
        ("compare", "a" * 300, "--defenses", "ft", "none"),
        ("export", "a" * 300),
        ("analyze", "tac", "a" * 300),
        ("smoothness", "a" * 300),
        ("run", "a" * 300),
        ("run", "--data.name", "a" * 300),
        ("run", "--data.data_dir", "a" * 300, "--data.name", "mine"),
        ("run", "--attack", "blended", "--attack.trigger_image", "a" * 300),
        ("run", "--out", "a\0b"),
        ("run", "a\0b.yaml"),
        ("report", "\0"),
        ("run", "--data.data_dir", ""),
        ("run", "--data.data_dir", "\udcff"),
        ("run", "--data.name", "\udcff"),
        ("demo", "--data-dir", ""),
        ("report", "runs", "--figures", ""),
        ("report", "runs", "--html", ""),
        ("analyze", "tac", "runs", "--figures", ""),
        ("analyze", "tac", "runs", "--data-dir", ""),
        ("smoothness", "runs", "--data-dir", ""),
        ("show", "badnets", "--file", ""),
        ("export", "runs", "--out", ""),
        ("bench", "--out", ""),
        ("demo", "--dataset", "cifar10", "--data-dir", "a" * 300),
    ],
    ids=lambda words: ascii(" ".join(words))[:60],
)
def test_a_path_that_can_be_nobodys_is_one_line(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one_line(bdjax(*words))
    assert list(tmp_path.iterdir()) == []


def test_what_a_terminal_would_obey_is_shown_escaped():
    said = one_line(bdjax("report", "no\x1b[2J\r\u202e\x9b\udcffe\u2028\xa0\n\tend"))
    assert (
        said
        == r"bdjax: There is no file or folder no\x1b[2J\r\u202e\x9b\udcffe\u2028\xa0 end." + "\n"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--defense", "x" * 10**6),
        ("run", "--seed", "9" * 10**6),
        ("run", "--defense.rho", "9" * 10**6),
        ("run", "--attack.poison_rate", "1" * 10**6 + "x"),
        ("run", "--" + "x" * 10**6, "1"),
        ("sweep", "--over", "x" * 10**6),
        ("x" * 10**6,),
        ("report", "/".join("x" * 10**6)),
    ],
    ids=range(8),
)
def test_a_message_is_cut_where_a_value_is_endless(words):
    started = time.process_time()
    assert len(one_line(bdjax(*words))) < 1100
    assert time.process_time() - started < 5


def test_ctrl_c_outside_a_run_is_one_line(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(configs, "resolve", interrupt)
    assert "interrupted" in one_line(bdjax("run"), code=143)


def test_a_chain_nested_without_end_is_one_line():
    assert "nested too deeply" in one_line(
        bdjax("run", "--" + ".".join(["defense", *["first"] * 5000]), "ft")
    )


@pytest.mark.parametrize("words", [("--defense.rhoo", "4"), ("odd.yaml",), ("--devices", "999")])
def test_a_real_process_ends_with_one_line_too(words, tmp_path):
    (tmp_path / "odd.yaml").write_bytes(b"\xff\xfe")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = process("run", *words, cwd=tmp_path, env=environment)
    one_line(Answer(ended.returncode, ended.stdout, ended.stderr))
    assert [path.name for path in tmp_path.iterdir()] == ["odd.yaml"]


@pytest.mark.parametrize(
    "words",
    [
        ("--seed",),
        ("--defense.rho",),
        ("--defense.rho", "--seed", "1"),
        ("--",),
        ("--=1",),
        ("--.rho", "1"),
        ("--defense..rho", "1"),
        ("stray",),
        ("--seed", "1", "stray"),
        ("-x",),
        ("",),
        ("--config",),
        ("--config", ""),
        ("--config", "."),
        ("--config", "one.yaml", "--config", "two.yaml"),
        ("one.yaml", "--config", "two.yaml"),
        ("--seed.x", "1"),
        ("--seed", "1", "--seed.x", "1"),
        ("--holdout.share=0.1", "--holdout.per_class=3"),
        ("--holdout.per_class=none",),
        ("--holdout.per_class=3", "--holdout.balanced=false"),
        ("--attack=blended", "--attack.trigger_image=no.png"),
        ("--training.schedule", "step"),
        ("--devices", "0"),
        ("--devices", "999"),
        ("--devices", "3"),
        ("--devices", "two"),
        ("--checkpoint-seconds", "-1"),
        ("--checkpoint-seconds", "nan"),
        ("--checkpoint-seconds", "soon"),
        ("no\nsuch.yaml",),
    ],
    ids=" ".join,
)
def test_a_mistake_in_the_words_after_run_is_one_line_and_leaves_nothing_behind(
    words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("one.yaml", "two.yaml"):
        (tmp_path / name).write_text("seed: 1")
    one_line(bdjax("run", *words, "--out", "out"))
    assert not (tmp_path / "out").exists()


LIMITS = [
    ("seed", -1),
    ("seed", 2**32),
    ("data.image_size", 0),
    ("data.train_count", 0),
    ("data.train_count", 1348),
    ("data.crop_padding", -1),
    ("model.width", 0),
    ("attack.target_label", -1),
    ("attack.target_label", 10),
    ("attack.poison_rate", -0.001),
    ("attack.poison_rate", 1.001),
    ("attack.size", 0),
    ("attack.size", 9),
    ("training.epochs", -1),
    ("training.batch_size", 0),
    ("training.learning_rate", 0.0),
    ("training.momentum", 1.0),
    ("training.weight_decay", -1e-9),
    ("training.label_smoothing", 1.001),
    ("training.schedule.factor", 0.0),
    ("training.schedule.period", 0.0),
    ("holdout.share", 1.001),
    ("holdout.per_class", 0),
    ("defense.rho", -0.001),
    ("defense.epochs", -1),
    ("defense.learning_rate", -0.1),
]


@pytest.mark.parametrize(("key", "value"), LIMITS)
def test_a_value_out_of_range_is_named_with_its_key(key, value, tmp_path):
    complaint = one_line(bdjax("run", f"--{key}={value}", "--out", str(tmp_path / "out")))
    assert complaint.startswith(f"bdjax: {key} must ")
    assert complaint.rstrip(".\n").endswith(str(value))
    assert not (tmp_path / "out").exists()


# --- A hundred bad configs -------------------------------------------------------------------------------------------


class Bad(NamedTuple):
    """A call that must be refused: a file (or none), words after it, and what the complaint must mention."""

    file: bytes | None
    words: tuple[str, ...] = ()
    mentions: str = ""


LEAVES = schema.flatten(configs.resolve({}).to_dict())
SECTIONS = ("data", "model", "attack", "poison", "training", "holdout", "defense")
HOLDOUT = 10 * LEAVES["holdout.per_class"]  # images, of digits' ten classes

below = st.integers(max_value=-1) | st.floats(max_value=-1e-9, allow_nan=False)
endless = st.sampled_from([math.nan, math.inf, -math.inf])
rate = below | st.floats(min_value=1 + 1e-9, allow_nan=False) | st.integers(2, 10**400) | endless
not_positive = below | st.just(0) | endless
natural = st.integers(max_value=-1) | st.integers(min_value=10**30)
RANGES: dict[str, st.SearchStrategy[Any]] = {
    "seed": natural | st.just(2**32),
    "data.image_size": st.integers(max_value=0),
    "data.train_count": st.integers(max_value=0) | st.integers(min_value=1348),
    "data.crop_padding": st.integers(max_value=-1),
    "model.width": st.integers(max_value=0),
    "attack.target_label": st.integers(max_value=-1) | st.integers(min_value=10),
    "attack.poison_rate": rate,
    "attack.size": st.integers(max_value=0) | st.integers(min_value=9),
    "training.epochs": natural,
    "training.batch_size": st.integers(max_value=0),
    "training.learning_rate": not_positive,
    "training.momentum": rate | st.just(1),
    "training.weight_decay": below | endless,
    "training.label_smoothing": rate,
    "training.schedule.factor": not_positive,
    "training.schedule.period": not_positive,
    "holdout.share": rate | st.floats(0, 0.007),
    "holdout.per_class": st.integers(max_value=0) | st.integers(min_value=131),
    "defense.rho": below | endless,
    "defense.epochs": natural,
    "defense.batch_size": st.integers(max_value=0),
    "defense.learning_rate": not_positive,
    "defense.momentum": rate | st.just(1),
}
NAMES = [key for key, value in LEAVES.items() if isinstance(value, str) and key != "data.name"]


def nested(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def written(key, value):
    """Return a file that asks for one value."""
    return yaml.safe_dump(nested(key, value)).encode()


def in_file(keys, values):
    return st.tuples(keys, values).map(
        lambda drawn: Bad(written(*drawn), mentions=drawn[0].partition(".")[0])
    )


def typo(key):
    """Draw the key with one letter left out or doubled, or with another one in its place."""
    *_, name = key.split(".")
    head = key[: len(key) - len(name)]
    place = st.integers(0, len(name) - 1)
    changed = place.map(lambda i: name[:i] + name[i + 1 :]) | place.map(
        lambda i: name[: i + 1] + name[i:]
    )
    changed |= st.tuples(place, st.sampled_from("qxz")).map(
        lambda drawn: name.replace(name[drawn[0]], drawn[1])
    )
    return changed.filter(lambda word: word and head + word not in LEAVES).map(
        lambda word: head + word
    )


def of_another_type(key):
    """Draw what this leaf cannot be."""
    kind = type(LEAVES[key])
    drawn = (
        st.lists(st.integers())
        | st.dictionaries(st.text(), st.integers(), min_size=1)
        | st.dates()
        | st.binary()
    )
    if kind is not str and key != "data.data_dir":
        drawn |= st.text("abcxyz -.")  # none of none, null, nan, inf, true, false
    if kind is not bool and key != "data.flip":
        drawn |= st.booleans()
    if kind not in (int, float) and LEAVES[key] is not None:
        drawn |= st.integers(10, 99)
    return drawn.map(lambda value: (key, value))


out_of_range = st.sampled_from(sorted(RANGES)).flatmap(
    lambda key: st.tuples(st.just(key), RANGES[key])
)
bad_calls = st.one_of(
    out_of_range.map(lambda drawn: Bad(written(*drawn), mentions=drawn[0].partition(".")[0])),
    out_of_range.map(
        lambda drawn: Bad(None, (f"--{drawn[0]}={drawn[1]}",), drawn[0].partition(".")[0])
    ),
    st.sampled_from(sorted(LEAVES))
    .flatmap(of_another_type)
    .map(lambda drawn: Bad(written(*drawn), (), drawn[0])),
    st.sampled_from(sorted(LEAVES))
    .flatmap(typo)
    .map(lambda key: Bad(None, (f"--{key}", "1"), "unknown key")),
    st.sampled_from(sorted(LEAVES))
    .flatmap(typo)
    .map(lambda key: Bad(written(key, 1), (), "unknown key")),
    in_file(st.sampled_from(SECTIONS), st.lists(st.integers()) | st.dates() | st.binary()),
    in_file(
        st.sampled_from(("training", "training.epochs.x")),
        st.integers() | st.text() | st.booleans(),
    ),
    in_file(st.sampled_from(NAMES), st.text(st.characters(codec="utf-8", exclude_characters="\0"))),
    st.sampled_from(NAMES).flatmap(
        lambda key: st.text(max_size=9).map(lambda word: Bad(None, (f"--{key}={word}",)))
    ),
    st.text(max_size=20).map(lambda word: Bad(None, (f"--data.name=no {word}",))),
    st.binary(max_size=20).map(lambda noise: Bad(b"\xff" + noise, (), "not valid YAML")),
    st.text(max_size=20).map(
        lambda word: Bad(yaml.safe_dump([word]).encode(), (), "must hold sections")
    ),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(bad=bad_calls)
def test_a_bad_config_is_one_line_and_exit_code_two_and_leaves_nothing_behind(bad):
    with tempfile.TemporaryDirectory() as folder:
        out, file = Path(folder, "out"), Path(folder, "bad.yaml")
        if bad.file is not None:
            file.write_bytes(bad.file)
        words = () if bad.file is None else (str(file),)
        complaint = one_line(bdjax("run", *words, *bad.words, "--out", str(out)))
        assert bad.mentions in complaint
        assert not out.exists()
