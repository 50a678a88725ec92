"""What fails because of the machine, not because of what was asked: no room on the disk, no memory.

Libraries tell of it in errors of many types. What is recognized here ends in one line; anything else is a mistake in
bdjax and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from bdjax.checks import InputError

# How TensorStore, which writes checkpoints, ends the text of a ValueError: [os_error_code='28']
_OS_ERROR = re.compile(r"\[?os_error_code='(\d+)'")
_OUT_OF_MEMORY = re.compile(
    r"RESOURCE_EXHAUSTED|out of memory|OUT_OF_MEMORY|bad_alloc|ALLOC_FAILED", re.IGNORECASE
)
_ROOM = {
    errno.ENOSPC: "there is no room left",
    getattr(errno, "EDQUOT", errno.ENOSPC): "the disk quota is used up",
}
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_OF_MACHINE = (*_ROOM, *_TOO_MANY, errno.EIO, errno.ENOMEM, errno.EFBIG, errno.ENOLCK)
# A path that can be nobody's, wherever it is: a mistake in what was asked
IMPOSSIBLE = (errno.ENAMETOOLONG, errno.ELOOP)


def storage_error(error: BaseException) -> OSError | None:
    """Return the error of the file system that an exception is, or that it tells of; None where it tells of none.

    Orbax and TensorStore raise an OSError for a folder that cannot be made and a ValueError for a file that cannot be
    written.
    """
    if isinstance(error, OSError):
        return error
    if isinstance(error, ValueError | RuntimeError) and (found := _OS_ERROR.search(str(error))):
        number = int(found.group(1))
        return OSError(number, os.strerror(number))
    return None


@contextlib.contextmanager
def blaming_the_path(what: str) -> Iterator[None]:
    """Take an OSError for a mistake in the path that was asked for, unless the machine is to blame, as on a full disk.

    Raises:
      InputError: ``what``, and the reason.
      OSError: as it was.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _OF_MACHINE:
            raise
        raise InputError(f"{what}: {error.strerror or error}.") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the host or a device has not enough memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def explain(error: BaseException) -> str | None:
    """Return a sentence that tells of a failure of the machine and what to do; None for any other error."""
    if (failure := storage_error(error)) is not None:
        return _of_storage(failure)
    if is_out_of_memory(error):
        reason = str(error).partition("\n")[0].rstrip(".") or "MemoryError"
        return (
            f"there is not enough memory: lower batch_size, width, chunk or --at-once ({reason})."
        )
    return None


def _of_storage(failure: OSError) -> str:
    file = "" if failure.filename is None else f": {os.fsdecode(failure.filename)}"
    if failure.errno in _ROOM:
        return f"{_ROOM[failure.errno]}{file}; once there is room, the same command continues."
    if failure.errno in _TOO_MANY:
        return f"too many files are open{file}; raise the limit (ulimit -n), and the same command continues."
    if failure.errno is None or failure.strerror is None:
        return str(failure)
    return f"{failure.strerror}{file}."
