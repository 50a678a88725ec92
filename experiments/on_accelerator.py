"""All that only an accelerator can show, in minutes: is it right, how fast is it, what do the papers' cells come to.

    python experiments/on_accelerator.py --minutes 9 --out DIR --data-dir ~/tensorflow_datasets
    python experiments/on_accelerator.py --debug --minutes 3 --out DIR

Parts come in the order of their worth. One that does not fit into what is left is skipped, and the same command goes on
with what is missing. It runs from a checkout; PyTorch, where it is installed, is measured beside.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

# PyTorch takes its turn on the same device, and JAX would take three quarters of its memory at the start.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import _checkout  # noqa: F401  # the checkout's bdjax, where none is installed
from accelerator import methods, right, speed, victims, when
from accelerator.session import Part, Row, Session, Settings

SUBJECTS = (right, speed, victims, methods, when)


def main(words: Sequence[str] | None = None) -> None:
    settings = _settings(words)
    session = Session(settings)
    session.carry_out(parts(settings), summary)


def parts(settings: Settings) -> list[Part]:
    """Return all parts, in the order of their worth."""
    return [part for subject in SUBJECTS for part in subject.parts(settings)]


def summary(rows: Sequence[Row]) -> str:
    """Return the tables as Markdown."""
    return "\n\n".join(table for subject in SUBJECTS if (table := subject.tables(rows))) + "\n"


def _settings(words: Sequence[str] | None) -> Settings:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, few and small files")
    parser.add_argument("--work", type=Path, help="folder of runs and victims; <out>-work unless given")
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole call")
    parser.add_argument("--data-dir", help="where CIFAR-10 lies prepared; else BDJAX_DATA_DIR")
    parser.add_argument("--only", nargs="+", default=(), help="beginnings of the names of parts, such as speed/")
    parser.add_argument("--debug", action="store_true", help="all of it in miniature, to try it out")
    asked = parser.parse_args(words)
    work = asked.work or asked.out.with_name(asked.out.name + "-work")
    return Settings(asked.out, work, asked.minutes, asked.debug, asked.data_dir, tuple(asked.only))


if __name__ == "__main__":
    main()
