"""All that only an accelerator can show, in minutes: is it right, how fast is it, what do the papers' cells come to.

    python experiments/on_accelerator.py --minutes 9 --out DIR --data-dir ~/tensorflow_datasets
    python experiments/on_accelerator.py --debug --minutes 3 --out DIR

Parts come in the order of their worth. One that does not fit into what is left is skipped, and the same command goes on
with what is missing. It runs from a checkout; PyTorch, where it is installed, is measured beside.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

# PyTorch takes its turn on the same device, and JAX would take three quarters of its memory at the start.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# In miniature, compiling is nearly all that there is to wait for: as in the tests, two thirds of it do.
if "--debug" in sys.argv:
    cheap = "--xla_backend_optimization_level=1 --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
    os.environ.setdefault("XLA_FLAGS", cheap)

import _checkout  # noqa: F401  # the checkout's bdjax, where none is installed
from accelerator import flags, methods, right, speed, victims, when
from accelerator.session import LOG, Part, Row, Session, Settings, check_only, wanted

from bdjax import data
from bdjax.checks import InputError
from bdjax.cli._parser import (
    EXIT_FAILED,
    EXIT_MISTAKE,
    EXIT_STOPPED,
    Parser,
    check_folders,
    one_line,
)
from bdjax.devices import compilation
from bdjax.files import failures, locks

SUBJECTS = (right, speed, victims, methods, when, flags)
NEED_DATA = ("victims/", "methods/", "when/")
FURTHER = (speed.further_parts,)  # worth less than what the subjects begin with


def main(words: Sequence[str] | None = None) -> int:
    """Carry out the parts and return the exit code: 0, 1 some failed, 2 a mistake in what was asked, 143 stopped."""
    try:
        return _carry_out(_settings(words))
    except InputError as mistake:
        return _complain(mistake, EXIT_MISTAKE)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command continues.", EXIT_STOPPED)
    except Exception as error:
        if (reason := failures.explain(error)) is None:
            raise
        return _complain(reason, EXIT_FAILED)


def _carry_out(settings: Settings) -> int:
    settings.check()
    compilation.require_devices()
    todo = parts(settings)
    check_only(settings.only, todo)
    _check_data(settings, todo)
    with locks.claimed([settings.work]) as taken:  # two at a time would measure each other
        if taken is not None:
            raise InputError(
                f"work must be a folder that no other call is using; {taken} is in use."
            )
        failed = Session(settings).carry_out(todo, summary)
    if failed:
        log = settings.out / LOG
        return _complain(
            f"failed: {', '.join(failed)}; {log} says why, the same command tries again.",
            EXIT_FAILED,
        )
    return 0


def _check_data(settings: Settings, todo: Sequence[Part]) -> None:
    """Refuse to begin without the images, which parts that are minutes away would miss, or begin to download."""
    needing = [part for part in wanted(settings.only, todo) if part.name.startswith(NEED_DATA)]
    if not needing or settings.debug or data.is_ready("cifar10", settings.data_dir):
        return
    without = "leave out what needs it with --only right/ speed/ flags/"
    raise InputError(
        f"data-dir must be a folder with a prepared CIFAR-10, or {without}; got {settings.data_dir!r}."
    )


def _complain(what: object, code: int) -> int:
    print(f"on_accelerator: {one_line(str(what))}", file=sys.stderr, flush=True)
    return code


def parts(settings: Settings) -> list[Part]:
    """Return all parts, in the order of their worth."""
    listed = [*(subject.parts for subject in SUBJECTS), *FURTHER]
    return [part for parts_of in listed for part in parts_of(settings)]


def summary(rows: Sequence[Row]) -> str:
    """Return the tables as Markdown."""
    tables = [table for subject in SUBJECTS if (table := _table(subject, rows))]
    return "\n\n".join([_heading(rows), *tables]) + "\n"


def _heading(rows: Sequence[Row]) -> str:
    """Return what all that follows was measured on."""
    last = [row for row in rows if "device" in row][-1]
    device, versions = last["device"], last["versions"]
    where = f"{device['count']} × {device['kind']}, jax {versions['jax']}, bdjax {versions['bdjax']}, {last['date']}."
    if last["debug"]:
        where += " In miniature: this shows that everything runs; no number says anything of a paper or a device."
    return f"# On an accelerator\n\n{where}"


def _table(subject: ModuleType, rows: Sequence[Row]) -> str:
    """Return the tables of a subject; one that cannot be made must not cost what comes after it."""
    try:
        return subject.tables(rows)
    except Exception:
        return f"No table of {subject.__name__}:\n\n```\n{traceback.format_exc()}```"


def _settings(words: Sequence[str] | None) -> Settings:
    parser = Parser(
        "on_accelerator", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="folder of the results, few and small files")
    parser.add_argument("--work", help="folder of runs and victims; <out>-work unless given")
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole call")
    parser.add_argument("--data-dir", help="where CIFAR-10 lies prepared; else BDJAX_DATA_DIR")
    parser.add_argument(
        "--only", nargs="+", default=(), help="beginnings of the names of parts, such as speed/"
    )
    parser.add_argument(
        "--debug", action="store_true", help="all of it in miniature, to try it out"
    )
    asked = parser.parse_args(words)
    check_folders(out=asked.out, work=asked.work)
    out = Path(asked.out)
    work = Path(asked.work or out.with_name(out.name + "-work"))
    return Settings(out, work, asked.minutes, asked.debug, asked.data_dir, tuple(asked.only))


if __name__ == "__main__":
    sys.exit(main())
