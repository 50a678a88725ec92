"""Where something is to be written: what cannot be is told before the work."""

from __future__ import annotations

import os

import pytest

from bdjax.checks import InputError
from bdjax.files import places


def test_what_is_there_or_could_be_made_is_a_place(tmp_path):
    assert places.check_folder("out", tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert places.check_folder("out", tmp_path) == tmp_path
    (tmp_path / "file").touch()
    for file in ("file", "a/b/file"):
        assert places.check_file("out", tmp_path / file) == tmp_path / file
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file", r"out must be a folder; .*file is a file"),
        ("file/below/it", r"out must be a folder; .*file is a file"),
        ("pipe/below", r"out must be a folder; .*pipe is none"),
        ("loop", "out must be a shorter path, or one that leads somewhere"),
        ("a" * 300, "out must be a shorter path"),
    ],
)
def test_what_cannot_be_a_folder_is_refused(tmp_path, place, reason):
    make_obstacles(tmp_path)
    with pytest.raises(InputError, match=reason):
        places.check_folder("out", tmp_path / place)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("folder", r"out must be a file; .*folder is a folder"),
        # As a device is, which must not be replaced
        ("pipe", r"out must be a file; .*pipe is none"),
        ("file/below", r"the folder of out must be a folder; .*file is a file"),
        ("loop/below", "out must be a shorter path, or one that leads somewhere"),
        ("loop", "out must be a shorter path, or one that leads somewhere"),
    ],
)
def test_what_cannot_be_a_file_is_refused(tmp_path, place, reason):
    make_obstacles(tmp_path)
    with pytest.raises(InputError, match=reason):
        places.check_file("out", tmp_path / place)


def make_obstacles(folder):
    (folder / "file").touch()
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")


@pytest.mark.parametrize("check", [places.check_folder, places.check_file])
def test_nothing_names_no_place(check):
    with pytest.raises(InputError, match=r"out must (name a folder|be a file), got ''"):
        check("out", "")


def test_a_path_that_only_the_longest_file_in_it_makes_too_long_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="shorter path"):
        places.check_folder("out", tmp_path / "a", tmp_path / ("b" * 300))
