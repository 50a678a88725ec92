"""Text that somebody else wrote, such as a name in a record, made fit to stand in a table or on a terminal."""

from __future__ import annotations

import hashlib
import unicodedata

# control characters, invisible ones such as those that turn the direction of writing, halves of characters, line ends,
# and spaces that only look like one
_UNFIT = ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")
_FIT = " \u200c\u200d"  # though of these kinds: some scripts are written with the latter two


def printable(text: str, most: int | None = None) -> str:
    r"""Return text with a visible escape for each character that is none, cut where it is longer than ``most``.

    What is cut ends in … and six digits of its hash, so that texts which differ stay different.

    >>> from bdjax.files.printable import printable
    >>> print(printable("a\x1b[2Jb"), printable("a" * 100, 5))
    a\x1b[2Jb aaaaa…281659
    """
    written = text if text.isprintable() else "".join(map(_escaped, text))
    if most is None or len(written) <= most:
        return written
    return f"{written[:most]}…{hashlib.sha256(written.encode()).hexdigest()[:6]}"


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _UNFIT or character in _FIT:
        return character
    return character.encode("unicode_escape").decode("ascii")
