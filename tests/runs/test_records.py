"""The files of a run: whole or not there, and one process at a time."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from bdjax.checks import InputError
from bdjax.runs import records


def test_what_is_written_is_read_back(tmp_path):
    file = tmp_path / "new" / "folder" / "record.json"
    records.write_json(file, {"ρ": 2.0, "list": [1, None]})
    assert records.read_json(file) == {"ρ": 2.0, "list": [1, None]}
    records.write_arrays(tmp_path / "samples.npz", image=np.arange(6).reshape(2, 3))
    with np.load(tmp_path / "samples.npz") as arrays:
        np.testing.assert_array_equal(arrays["image"], [[0, 1, 2], [3, 4, 5]])


def test_a_file_that_is_not_there_is_none(tmp_path):
    assert records.read_json(tmp_path / "record.json") is None


@pytest.mark.parametrize("moment", ["replace", "write_text"])
def test_an_interruption_keeps_the_old_content_and_leaves_nothing_else(moment, tmp_path, monkeypatch):
    file = tmp_path / "record.json"
    records.write_json(file, {"old": 1})

    def die(path, *_, **__):
        path.write_bytes(b"half") if moment == "write_text" else None
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, moment, die)
    with pytest.raises(KeyboardInterrupt):
        records.write_json(file, {"new": 2})
    assert records.read_json(file) == {"old": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_reader_sees_the_old_content_or_the_new_but_never_a_part(tmp_path, monkeypatch):
    file, replace, seen = tmp_path / "record.json", Path.replace, []
    records.write_json(file, {"old": 1})

    def look(temporary, target):
        seen.append((records.read_json(file), records.read_json(temporary)))
        return replace(temporary, target)

    monkeypatch.setattr(Path, "replace", look)
    records.write_json(file, {"new": 2})
    assert seen == [({"old": 1}, {"new": 2})]
    assert records.read_json(file) == {"new": 2}


def test_a_number_that_json_does_not_know_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write_json(tmp_path / "record.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


DEEP = "[" * 100_000 + "]" * 100_000
DIGITS = "9" * 5000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1e999}', "1e999 is no number"),
        (f'{{"a": {DIGITS}}}', "a number has 5000 digits"),
        (f'{{"a": {DEEP}}}', "it is nested too deeply"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ('{"a": 1, "content_sha256": "0"}', "its digest differs"),
        ('{"a": ', "Expecting value"),
        ('["a"]', "it must be a mapping"),
        ('{"b": 1}', "a is missing"),
        ('{"a": true}', "a must be a number"),
    ],
)
def test_json_that_is_not_what_it_should_be_is_one_sentence(tmp_path, text, reason):
    file = tmp_path / "side.json"
    file.write_text(text)
    with pytest.raises(InputError) as refused:
        records.read_json(file, {"a": float})
    assert str(refused.value).startswith(f"{file} is damaged (")
    assert reason in str(refused.value)
    assert str(refused.value).endswith("; delete it to make it again.")
    assert "\n" not in str(refused.value)


def test_a_bit_that_flips_in_json_is_seen_or_of_no_account(tmp_path):
    file, content = tmp_path / "record.json", {"run_seconds": 12.5, "name": "ft", "list": [1, 2], "none": None}
    messages = []
    for seed in range(100):
        records.write_json(file, content)
        damage(file, np.random.default_rng(seed))
        try:
            read = records.read_json(file, {"run_seconds": float, "list": [int]})
            assert {name: read[name] for name in content} == content  # the name of the digest may be another
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 80
    assert all(message.startswith(f"{file} is damaged (") and "\n" not in message for message in messages)


def test_a_bit_that_flips_in_arrays_is_seen_or_of_no_account(tmp_path):
    file, arrays = tmp_path / "samples.npz", {"a": np.arange(40).reshape(8, 5), "b": np.asarray("words")}
    messages = []
    for seed in range(200):
        records.write_arrays(file, **arrays)
        damage(file, np.random.default_rng(seed))
        try:
            read = records.read_arrays(file)
            assert all(np.array_equal(read[name], arrays[name]) for name in read.keys() & arrays.keys())
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 80
    assert all(message.startswith(f"{file} is damaged (") and "\n" not in message for message in messages)


def damage(file, rng):
    content = bytearray(file.read_bytes())
    place = rng.integers(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    file.write_bytes(content)


def test_shapes_of_plain_values():
    shape = {"names": [str], "data": [(dict, None)], "seconds": {str: float}, "more?": bool}
    fine = {"names": ["a"], "data": [{}, None], "seconds": {"loop": 1}, "whatever": []}
    assert records.misfit(fine, shape) is None
    wrong = {
        "names[0] must be a text": {"names": [1]},
        "names must be a list": {"names": {}},
        "data[1] must be a mapping": {"data": [None, 1]},
        "seconds.loop must be a number": {"seconds": {"loop": "1"}},
        "more must be a bool": {"more": 1},
    }
    for words, change in wrong.items():
        assert records.misfit({**fine, **change}, shape) == words


def test_others_may_read_what_the_user_lets_them(tmp_path):
    plain, file = tmp_path / "plain", tmp_path / "record.json"
    plain.touch()
    records.write_json(file, {})
    assert file.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("content", [b"", b'{"status": "fin', b"\xff\xfe", b"[]", b"null", b'"text"'])
def test_a_damaged_record_is_one_sentence_that_names_the_file(content, tmp_path):
    file = tmp_path / "record.json"
    file.write_bytes(content)
    with pytest.raises(InputError) as refused:
        records.read_json(file)
    assert str(refused.value).startswith(f"{file} is damaged (")
    assert str(refused.value).endswith("; delete it to make it again.")
    assert file.read_bytes() == content


HOLD = """
import sys, time
from pathlib import Path
from bdjax import records

folder, name, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
(folder / f"{name} asks").touch()
with records.locked(folder):
    (folder / f"{name} has it").touch()
    time.sleep(seconds)
"""


def hold(folder, name, seconds):
    """Start a process that holds a folder for some seconds."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-c", HOLD, str(folder), name, str(seconds)], env=environment)


def wait_for(file):
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} did not appear"
        time.sleep(0.01)


def test_a_second_process_waits_until_the_first_is_dead(tmp_path):
    first = hold(tmp_path, "first", 600)
    wait_for(tmp_path / "first has it")
    second = hold(tmp_path, "second", 0)
    wait_for(tmp_path / "second asks")
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(0.5)
    assert not (tmp_path / "second has it").exists()
    first.kill()  # the lock is not a file that a killed process leaves behind
    first.wait()
    assert second.wait(60) == 0
    assert (tmp_path / "second has it").exists()


def test_a_lock_is_free_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), records.locked(tmp_path):
            raise ZeroDivisionError


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.lock_descriptor", fail)
    for hold in (lambda: records.locked(tmp_path), lambda: records.claimed([tmp_path])):
        with pytest.raises(OSError, match="No locks available, so it cannot be locked") as raised, hold():
            raise AssertionError("it is not held")
        assert (raised.value.errno, raised.value.filename) == (errno.ENOLCK, str(tmp_path / ".lock"))


def test_a_lock_leaves_what_is_in_its_file_alone(tmp_path):
    (tmp_path / ".lock").write_text("of an earlier bdjax")
    with records.locked(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == "of an earlier bdjax"


def test_windows_waits_for_a_reader_before_a_file_is_replaced(tmp_path, monkeypatch):
    file, replace, refusals = tmp_path / "record.json", Path.replace, [PermissionError(), PermissionError()]

    def busy(temporary, target):
        if refusals:
            raise refusals.pop()
        return replace(temporary, target)

    monkeypatch.setattr(Path, "replace", busy)
    with pytest.raises(PermissionError):  # elsewhere it is no reader's fault
        records.write_json(file, {"new": 1})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    records.write_json(file, {"new": 2})
    assert records.read_json(file) == {"new": 2}
    refusals += 4 * [PermissionError()]
    with pytest.raises(PermissionError):
        records.write_json(file, {"new": 3})
    assert records.read_json(file) == {"new": 2}
    assert list(tmp_path.iterdir()) == [file]


def test_versions_and_device_are_plain_values():
    found = records.versions()
    assert {"python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"} <= found.keys()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["numpy"] == np.__version__
    assert json.loads(json.dumps(records.device(2)))["count"] == 2


def test_folders_are_claimed_all_or_none(tmp_path):
    held, free = tmp_path / "held", tmp_path / "free"
    with records.locked(held), records.claimed([free, held]) as other:
        assert other == held
        with records.claimed([free]) as nobody:  # what is not worked on is not held either
            assert nobody is None
    with records.claimed([free, held]) as nobody, records.claimed([held]) as other:
        assert (nobody, other) == (None, held)


def test_the_device_comes_with_the_settings_that_decide_rounding(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    with jax.default_matmul_precision("highest"):
        found = records.device(1)
    assert (found["matmul_precision"], found["xla_flags"]) == ("highest", "--xla_gpu_deterministic_ops=true")
    monkeypatch.delenv("XLA_FLAGS")
    assert (records.device(1)["matmul_precision"], records.device(1)["xla_flags"]) == (None, "")
