"""Of which data the runs and victims in a folder are, and whether those are the data that are there now."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from bdjax.checks import InputError
from bdjax.devices import hosts
from bdjax.runs import inputs, records
from bdjax.runs.config import Config
from bdjax.runs.inputs import Fingerprint
from bdjax.runs.plans import Plan

CHANGED = ("refuse", "rerun")  # what to do where the data are others than those that a run was begun with
_SHAPE = {"train": str, "test": str, "files?": {str: str}, "stamp?": str}


def finished(folder: Path) -> dict[str, Any] | None:
    """Return the record of a run that is finished.

    Raises:
      InputError: the record is damaged, or of another run.
    """
    record = hosts.from_first(lambda: records.read_record(folder))
    return record if record is not None and record["status"] == "finished" else None


def is_of_these_data(folder: Path, config: Config, changed: str = "refuse") -> bool:
    """Say whether a run, or a victim, was begun with the data that are there now; one that was not begun is.

    The data are read only if their files look otherwise than they did then.

    Args:
      folder: of the run, or of the victim.
      config: what it was made by.
      changed: of ``CHANGED``: refuse other data, or say so, for `settle` to make room.

    Raises:
      InputError: the data have changed, which is refused; or they are gone.
    """
    stamp = inputs.stamp(config)
    begun = hosts.from_first(lambda: _begun_with(folder))
    if begun is None or hosts.from_first(lambda: begun["stamp"] == stamp):
        return True
    now = inputs.load(config).fingerprint
    hosts.check_same(data=now)
    if not _is_same(folder, begun, now, config, changed):
        return False
    with contextlib.suppress(OSError):  # of an archive, that cannot be written to
        _write(folder, now, stamp)
    return True


def settle(folder: Path, plan: Plan, out: Path, changed: str = "refuse") -> None:
    """Write down with which data a run, or a victim, is begun; what was begun with others is refused, or set aside.

    To be called while the folder is held. What is set aside keeps its names, in a folder of ``out`` that is named after
    its data, so that it can still be reported.

    Args:
      folder: of the run, or of the victim.
      plan: what it is made by.
      out: folder of the run folders.
      changed: of ``CHANGED``.

    Raises:
      InputError: the data have changed, which is refused.
    """
    begun = hosts.from_first(lambda: _begun_with(folder))
    if begun is not None and not _is_same(folder, begun, plan.fingerprint, plan.config, changed):
        name = f"data-{records.digest(_fingerprint(begun))[:8]}"
        hosts.from_first(lambda: records.set_aside(folder, out, name))
        begun = None
    if begun is None or begun["stamp"] != plan.stamp:
        _write(folder, plan.fingerprint, plan.stamp)


def check(made_of: Fingerprint, plan: Plan, whose: Path) -> None:
    """Refuse a plan with other data than something was made of.

    Raises:
      InputError: which of the data have changed.
    """
    _is_same(whose, made_of, plan.fingerprint, plan.config, "refuse")


def _begun_with(folder: Path) -> dict[str, Any] | None:
    """Return the fingerprint with which a folder was begun and the stamp of its files, which may not be known."""
    begun = records.read_json(folder / records.DATA, _SHAPE)
    record = records.read_record(folder)
    if record is None or record["status"] != "finished":
        return begun and {"stamp": None, **begun}
    own = record["data"]["fingerprint"]  # which counts, whatever lies beside it
    is_own = begun is not None and _fingerprint(begun) == own
    return {**own, "stamp": begun.get("stamp") if begun and is_own else None}


def _fingerprint(begun: dict[str, Any]) -> Fingerprint:
    return {key: value for key, value in begun.items() if key != "stamp"}


def _is_same(folder: Path, begun: Fingerprint, now: Fingerprint, config: Config, changed: str) -> bool:
    different = inputs.differences(begun, now, config)
    if different and changed != "rerun":
        raise InputError(
            f"the data have changed since {folder} was begun: {', '.join(different)}. Put them back, or delete that "
            "folder to train anew, or let --changed-data rerun set it aside."
        )
    return not different


def _write(folder: Path, fingerprint: Fingerprint, stamp: str) -> None:
    hosts.from_first(lambda: records.write_json(folder / records.DATA, {**fingerprint, "stamp": stamp}))
