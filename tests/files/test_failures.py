"""What fails because of the machine, told from mistakes: by the errors that libraries raise for it."""

from __future__ import annotations

import errno
import os

import pytest

from bdjax.checks import InputError
from bdjax.files import failures

# As TensorStore 0.1.86 writes them, with the paths shortened.
FULL_DISK = (
    'RESOURCE_EXHAUSTED: Error writing "a/0" in OCDBT database at local file "/c/ocdbt.process_0/": Failed writing: '
    '"/c/ocdbt.process_0/d/d4f6": Failed to write 2685382 bytes to file 7: No space left on device '
    "[os_error_code='28']"
)
TOO_LARGE = "OUT_OF_RANGE: Error writing \"a/0\": Failed to write 9 bytes: File too large [os_error_code='27']"
NO_MEMORY = [
    MemoryError(),
    MemoryError(
        "Unable to allocate 728. TiB for an array with shape (100000000000000,) and data type float64"
    ),
    RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 14400000000 bytes."),
    RuntimeError(
        "INTERNAL: Error preparing computation: Out of memory allocating 400000000000000 bytes."
    ),
    RuntimeError("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
]
MISTAKES = [
    KeyError("k"),
    ValueError("embedded"),
    RuntimeError("INTERNAL: a bug"),
    AssertionError(),
    TypeError("no"),
]


@pytest.mark.parametrize(("text", "number"), [(FULL_DISK, errno.ENOSPC), (TOO_LARGE, errno.EFBIG)])
def test_the_error_of_the_file_system_is_found_in_what_tensorstore_raises(text, number):
    found = failures.storage_error(ValueError(text))
    assert (type(found), found.errno, found.strerror) == (OSError, number, os.strerror(number))


def test_an_error_of_the_file_system_is_itself():
    error = PermissionError(errno.EACCES, "Permission denied", "file")
    assert failures.storage_error(error) is error


@pytest.mark.parametrize("error", [*MISTAKES, *NO_MEMORY], ids=repr)
def test_anything_else_is_no_error_of_the_file_system(error):
    assert failures.storage_error(error) is None


@pytest.mark.parametrize("error", NO_MEMORY, ids=repr)
def test_a_lack_of_memory_is_known_on_every_device(error):
    assert failures.is_out_of_memory(error)
    said = failures.explain(error)
    assert said.startswith("there is not enough memory: lower batch_size, ")
    assert (str(error).rstrip(".") or "MemoryError") in said


@pytest.mark.parametrize(
    "error", [*MISTAKES, ValueError(FULL_DISK), OSError(errno.ENOSPC, "full")], ids=repr
)
def test_a_full_disk_and_a_mistake_are_no_lack_of_memory(error):
    assert not failures.is_out_of_memory(error)


@pytest.mark.parametrize("error", MISTAKES, ids=repr)
def test_a_mistake_in_the_code_is_not_explained_away(error):
    assert failures.explain(error) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ValueError(FULL_DISK),
            "there is no room left; once there is room, the same command continues.",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/runs/record.json"),
            "there is no room left: /runs/record.json; once there is room, the same command continues.",
        ),
        (
            OSError(errno.EDQUOT, "x"),
            "the disk quota is used up; once there is room, the same command continues.",
        ),
        (
            OSError(errno.EMFILE, "Too many open files", "f"),
            "too many files are open: f; raise the limit (ulimit -n), and the same command continues.",
        ),
        (OSError(errno.EROFS, "Read-only file system", "f"), "Read-only file system: f."),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", b"f"),
            "No such file or directory: f.",
        ),
        (OSError("another host failed"), "another host failed"),
    ],
)
def test_what_is_said_of_the_file_system(error, said):
    assert failures.explain(error) == said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EIO])
def test_the_machine_is_not_blamed_on_the_path(number):
    with (
        pytest.raises(OSError, match="why") as raised,
        failures.blaming_the_path("f cannot be written"),
    ):
        raise OSError(number, "why", "f")
    assert raised.value.errno == number


@pytest.mark.parametrize(
    "number", [errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.ENAMETOOLONG, errno.EROFS]
)
def test_a_path_that_cannot_be_is_a_mistake(number):
    with (
        pytest.raises(InputError, match=r"^f cannot be written: why\.$"),
        failures.blaming_the_path("f cannot be written"),
    ):
        raise OSError(number, "why", "f")
