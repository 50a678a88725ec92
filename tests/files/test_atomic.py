"""Files that are written whole or not at all, and read as they were written or not."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bdjax.checks import InputError
from bdjax.files import atomic


def test_what_is_written_is_read_back(tmp_path):
    file = tmp_path / "new" / "folder" / "record.json"
    atomic.write_json(file, {"ρ": 2.0, "list": [1, None]})
    assert atomic.read_json(file) == {"ρ": 2.0, "list": [1, None]}
    atomic.write_arrays(tmp_path / "samples.npz", image=np.arange(6).reshape(2, 3))
    with np.load(tmp_path / "samples.npz") as arrays:
        np.testing.assert_array_equal(arrays["image"], [[0, 1, 2], [3, 4, 5]])


def test_a_file_that_is_not_there_is_none(tmp_path):
    assert atomic.read_json(tmp_path / "record.json") is None


def test_what_is_written_piece_by_piece_is_whole_or_as_before(tmp_path):
    file = tmp_path / "new" / "model.pt"
    atomic.write_with(file, lambda stream: stream.writelines([b"one", b"two"]))
    assert file.read_bytes() == b"onetwo"

    def die(stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic.write_with(file, die)
    assert [path.read_bytes() for path in file.parent.iterdir()] == [b"onetwo"]


@pytest.mark.parametrize("moment", ["replace", "write_text"])
def test_an_interruption_keeps_the_old_content_and_leaves_nothing_else(
    moment, tmp_path, monkeypatch
):
    file = tmp_path / "record.json"
    atomic.write_json(file, {"old": 1})

    def die(path, *_, **__):
        path.write_bytes(b"half") if moment == "write_text" else None
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, moment, die)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_json(file, {"new": 2})
    assert atomic.read_json(file) == {"old": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_reader_sees_the_old_content_or_the_new_but_never_a_part(tmp_path, monkeypatch):
    file, replace, seen = tmp_path / "record.json", Path.replace, []
    atomic.write_json(file, {"old": 1})

    def look(temporary, target):
        seen.append((atomic.read_json(file), atomic.read_json(temporary)))
        return replace(temporary, target)

    monkeypatch.setattr(Path, "replace", look)
    atomic.write_json(file, {"new": 2})
    assert seen == [({"old": 1}, {"new": 2})]
    assert atomic.read_json(file) == {"new": 2}


def test_a_number_that_json_does_not_know_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(tmp_path / "record.json", {"loss": float("nan")})
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
        atomic.read_json(file, {"a": float})
    assert str(refused.value).startswith(f"{file} is damaged (")
    assert reason in str(refused.value)
    assert str(refused.value).endswith("; delete it to make it again.")
    assert "\n" not in str(refused.value)


def test_a_bit_that_flips_in_json_is_seen_or_of_no_account(tmp_path):
    file, content = (
        tmp_path / "record.json",
        {"run_seconds": 12.5, "name": "ft", "list": [1, 2], "none": None},
    )
    messages = []
    for seed in range(100):
        atomic.write_json(file, content)
        damage(file, np.random.default_rng(seed))
        try:
            read = atomic.read_json(file, {"run_seconds": float, "list": [int]})
            # The name of the digest may be another
            assert {name: read[name] for name in content} == content
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 80
    assert all(
        message.startswith(f"{file} is damaged (") and "\n" not in message for message in messages
    )


def test_a_bit_that_flips_in_arrays_is_seen_or_of_no_account(tmp_path):
    file, arrays = (
        tmp_path / "samples.npz",
        {"a": np.arange(40).reshape(8, 5), "b": np.asarray("words")},
    )
    messages = []
    for seed in range(200):
        atomic.write_arrays(file, **arrays)
        damage(file, np.random.default_rng(seed))
        try:
            read = atomic.read_arrays(file)
            assert all(
                np.array_equal(read[name], arrays[name]) for name in read.keys() & arrays.keys()
            )
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 80
    assert all(
        message.startswith(f"{file} is damaged (") and "\n" not in message for message in messages
    )


def damage(file, rng):
    content = bytearray(file.read_bytes())
    place = rng.integers(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    file.write_bytes(content)


def test_others_may_read_what_the_user_lets_them(tmp_path):
    plain, file = tmp_path / "plain", tmp_path / "record.json"
    plain.touch()
    atomic.write_json(file, {})
    assert file.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    "content", [b"", b'{"status": "fin', b"\xff\xfe", b"[]", b"null", b'"text"']
)
def test_a_damaged_record_is_one_sentence_that_names_the_file(content, tmp_path):
    file = tmp_path / "record.json"
    file.write_bytes(content)
    with pytest.raises(InputError) as refused:
        atomic.read_json(file)
    assert str(refused.value).startswith(f"{file} is damaged (")
    assert str(refused.value).endswith("; delete it to make it again.")
    assert file.read_bytes() == content


def test_windows_waits_for_a_reader_before_a_file_is_replaced(tmp_path, monkeypatch):
    file, replace, refusals = (
        tmp_path / "record.json",
        Path.replace,
        [PermissionError(), PermissionError()],
    )

    def busy(temporary, target):
        if refusals:
            raise refusals.pop()
        return replace(temporary, target)

    monkeypatch.setattr(Path, "replace", busy)
    with pytest.raises(PermissionError):  # elsewhere it is no reader's fault
        atomic.write_json(file, {"new": 1})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    atomic.write_json(file, {"new": 2})
    assert atomic.read_json(file) == {"new": 2}
    refusals += 4 * [PermissionError()]
    with pytest.raises(PermissionError):
        atomic.write_json(file, {"new": 3})
    assert atomic.read_json(file) == {"new": 2}
    assert list(tmp_path.iterdir()) == [file]
