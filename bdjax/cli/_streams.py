"""Standard streams that can be written: in whatever encoding, and where they are closed, full, or read by nobody."""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import os
import sys
import threading
import unicodedata
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import TextIO

_HANDLER = "bdjax.plain"
# Signs of tables, messages and help for those encodings that lack them; Greek letters are spelled out.
_SIGNS = """
± +-  ∓ -+  × x  · .  ⊙ *  √ sqrt  ½ 1/2  ° deg  ∇ grad  ∂ d  ∞ inf  ℓ l  ‖ ||  ⟨ <  ⟩ >  ≤ <=  ≥ >=  † +  ‡ ++
– -  — -  − -  … ...  → ->  ← <-  ↦ ->  ⌊ floor(  ⌋ )  ⌈ ceil(  ⌉ )  ✓ v  ✗ x  “ "  ” "  ’ '  • *
─ -  ━ -  ╺ -  ╸ -  │ |
"""
_PLAIN = dict(zip(_SIGNS.split()[::2], _SIGNS.split()[1::2], strict=True))


@contextlib.contextmanager
def writable() -> Iterator[None]:
    """Let nothing that is written fail for its characters, and nothing be written into a file by accident.

    What an encoding lacks is written in plain letters, or escaped. A standard stream that is closed is replaced by one
    that goes nowhere, before a file that is opened gets its number.
    """
    _occupy()
    changed = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            changed.append((stream, stream.errors))
            stream.reconfigure(errors=_HANDLER)
    try:
        yield
    finally:
        settle()
        for stream, errors in changed:
            with contextlib.suppress(ValueError):  # it was closed
                stream.reconfigure(errors=errors)


def hush_helpers() -> None:
    """Leave to the main thread what helpers of libraries would print of an error that it raises, too.

    Where TensorStore cannot write, its threads print hundreds of lines on their way out, some when Python ends.
    """

    def of_main_thread(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = of_main_thread
    sys.unraisablehook = lambda _: None
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def flush() -> None:
    """Write out what is printed so far, so that what goes wrong is noticed here and not when Python ends.

    Raises:
      OSError: it cannot be written; of a reader who has gone, BrokenPipeError.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def settle() -> None:
    """Leave nothing behind that Python would try, and fail, to write when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _silence(stream)
        except ValueError:  # it is closed
            pass


def _silence(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _occupy() -> None:
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free: this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spelled, error.object[error.start : error.end])), error.end


def _spelled(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    kind, _, letter = unicodedata.name(character, "").partition(" LETTER ")
    if kind in ("GREEK SMALL", "GREEK CAPITAL") and letter.isalpha():
        letter = letter.lower().replace("lamda", "lambda")
        return letter if kind == "GREEK SMALL" else letter.capitalize()
    if unicodedata.decomposition(character).startswith(("<super>", "<sub>")):
        plain = unicodedata.normalize("NFKC", character).replace("−", "-")
        return plain if plain.isascii() else character.encode("ascii", "backslashreplace").decode()
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("ascii", "backslashreplace").decode()


codecs.register_error(_HANDLER, _in_plain_letters)
