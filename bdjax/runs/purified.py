"""The folder of a purified network: what lies where in it, and what says that it is done.

::

    <out>/model.safetensors config.json model.pt README.md report.html inversion.npz purified.json
    <out>/.purifying/<digest>/trial-<number>-<stage>/     checkpoints, while it is worked on

``purified.json`` is written last of what is computed; from then on the folder is finished. Card and page are made of it
alone. Nothing here computes, so that a page starts at once.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bdjax.checks import InputError
from bdjax.files import atomic, locks
from bdjax.files.atomic import Plain
from bdjax.runs.folder import LoopFolder

SCHEMA_VERSION = 1
RECORD, SAFETENSORS, TORCH, CONFIG = "purified.json", "model.safetensors", "model.pt", "config.json"
CARD, PAGE, INVERSION = "README.md", "report.html", "inversion.npz"
NAMES = (RECORD, SAFETENSORS, TORCH, CONFIG, CARD, PAGE, INVERSION)
LIBRARY = "bdjax"  # in a config, as the Hugging Face Hub has it
_WORK = ".purifying"
_COUNT = {"right": int, "of": int}
_SHAPE = {
    "identity": dict,
    "suspect": {"name": str, "sha256": str, "format": str},
    "network": {"name": str, "num_classes": int, "shape": [int]},
    "normalization": {"mean": [float], "std": [float], "why": str},
    "data": {"name": str, "count": int, "given": int, "choosing": int, "kept": int},
    "accuracy": {"before": _COUNT, "after": _COUNT, "changed_answers": int},
    "weights": {"whole": float, "layers": [{"name": str, "relative": float, "count": int}]},
    "inversion": (None, {"words": {"before": [str], "after": [str]}, "limits": str}),
    "files": {"entry": str, "prefix": str},
    "selection": (None, {"option": str, "chosen": float, "trials": [dict]}),
    "seconds": {str: float},
}


@dataclasses.dataclass(frozen=True)
class PurifiedFolder:
    """The folder of one purification."""

    path: Path

    def file(self, name: str) -> Path:
        """Return the path of one of `NAMES`."""
        return self.path / name

    def locked(self):
        """Hold the folder for this process."""
        return locks.locked(self.path)

    def check_free(self) -> None:
        """Refuse a folder that holds what no purification has made.

        Raises:
          InputError: some of what is there would be somebody else's.
        """
        if not self.path.is_dir():
            return
        own = {*NAMES, _WORK, locks.LOCK}
        others = sorted(
            entry.name
            for entry in self.path.iterdir()
            if entry.name not in own and not atomic.is_left_over(entry.name, NAMES)
        )
        there = any(self.file(name).exists() for name in NAMES)
        if others or (
            there and not self.file(RECORD).exists() and not (self.path / _WORK).exists()
        ):
            shown = ", ".join(others[:3]) or "files of another origin"
            wanted = "a new folder, or that of the same purification"
            raise InputError(f"out must be {wanted}; {self.path} holds {shown}.")

    def record(self) -> Plain | None:
        """Return the record of a finished purification, None where there is none.

        Raises:
          InputError: it is damaged.
        """
        return atomic.read_json(self.file(RECORD), _SHAPE)

    def finished(self, identity: Mapping[str, Any]) -> Plain | None:
        """Return the record, if the folder is finished, of just this.

        Raises:
          InputError: it is damaged, or of another purification.
        """
        record = self.record()
        if record is None:
            return None
        if different := differences(record["identity"], identity):
            what = ", ".join(different)
            raise InputError(
                f"{self.path} holds another purification, of another {what}; name another folder with --out."
            )
        return record

    def check_unfinished(self, digest: str) -> None:
        """Refuse a folder with the checkpoints of another purification, whose end would delete them.

        Raises:
          InputError: it holds some.
        """
        work = self.path / _WORK
        there = work.iterdir() if work.is_dir() else ()
        if any(one.name != digest and one.is_dir() and any(one.iterdir()) for one in there):
            remedy = f"name another folder with --out, or delete {work}"
            raise InputError(
                f"out must be that of the same purification; {self.path} holds another, unfinished: {remedy}."
            )

    def begin(self, digest: str) -> None:
        """Mark the folder as a purification's before anything is written to it."""
        (self.path / _WORK / digest).mkdir(parents=True, exist_ok=True)

    def trial(self, digest: str, number: int, stage: int) -> LoopFolder:
        """Return where a stage of the defense is saved, with the strength of that number."""
        return LoopFolder(self.path / _WORK / digest / f"trial-{number}-{stage}")

    def write_record(self, content: Mapping[str, Any]) -> None:
        """Write the record; from then on the purification is finished."""
        atomic.write_json(self.file(RECORD), {"schema_version": SCHEMA_VERSION, **content})

    def clear(self) -> None:
        """Remove what only a purification on its way needs."""
        shutil.rmtree(self.path / _WORK, ignore_errors=True)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Name the keys in which two identities differ; of sections, the options."""
    found: list[str] = []
    for key in sorted({*one, *other}):
        mine, its = one.get(key), other.get(key)
        if mine == its:
            continue
        if isinstance(mine, Mapping) and isinstance(its, Mapping):
            found += [f"{key}.{part}" for part in differences(mine, its)]
        else:
            found.append(key)
    return found[:4]
