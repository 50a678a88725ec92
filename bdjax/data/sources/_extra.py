"""What to say when an optional package is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bdjax.checks import InputError


@contextmanager
def required() -> Iterator[None]:
    """Turn an import that fails inside the block into a sentence that says what to install."""
    try:
        yield
    except ImportError as error:
        remedy = "run: pip install 'bdjax[data]'"
        raise InputError(f"this data set needs the extra 'data' ({error}); {remedy}.") from error
