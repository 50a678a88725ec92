"""Of which data runs and victims were made, and whether those are the data that are there now."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bdjax.checks import InputError
from bdjax.devices import hosts
from bdjax.files import atomic
from bdjax.runs import inputs
from bdjax.runs.config import Config
from bdjax.runs.folder import Folder, RunsFolder, VictimFolder, fingerprint_of
from bdjax.runs.inputs import Fingerprint, Inputs

# What to do where the data are others than those that a run was begun with
CHANGED = ("refuse", "rerun")


def is_of_these_data(folder: Folder, config: Config, changed: str = "refuse") -> bool:
    """Say whether a run, or a victim, was begun with the data that are there now; one that was not begun is.

    The data are read only if their files look otherwise than they did then.

    Args:
      folder: of the run, or of the victim.
      config: what it was made by.
      changed: of ``CHANGED``: refuse other data, or say so, for `begin` to make room.

    Raises:
      InputError: the data have changed, which is refused; or they are gone.
    """
    stamp = inputs.stamp(config)
    begun = hosts.from_first(folder.begun_with)
    if begun is None or hosts.from_first(lambda: begun["stamp"] == stamp):
        return True
    now = _made_of(folder, inputs.load(config))
    hosts.check_same(data=now)
    if not _is_same(folder.path, begun, now, config, changed):
        return False
    with contextlib.suppress(OSError):  # of an archive, that cannot be written to
        hosts.from_first(lambda: folder.write_begun_with(now, stamp))
    return True


def begin(
    folder: Folder, config: Config, of: Inputs, runs: RunsFolder, changed: str = "refuse"
) -> None:
    """Write down with which data a run, or a victim, is begun; what was begun with others is refused, or set aside.

    To be called while the folder is held. What is set aside keeps its names, in a folder of ``runs`` that is named
    after its data, so that it can still be reported.

    Args:
      folder: of the run, or of the victim.
      config: what it is made by.
      of: the data that it is made of.
      runs: folder of the run folders.
      changed: of ``CHANGED``.

    Raises:
      InputError: the data have changed, which is refused.
    """
    begun, made_of = hosts.from_first(folder.begun_with), _made_of(folder, of)
    if begun is not None and not _is_same(folder.path, begun, made_of, config, changed):
        name = f"data-{atomic.digest(fingerprint_of(begun))[:8]}"
        hosts.from_first(lambda: runs.set_aside(folder, name))
        begun = None
    if begun is None or begun["stamp"] != of.stamp:
        hosts.from_first(lambda: folder.write_begun_with(made_of, of.stamp))


def check(made_of: Fingerprint, config: Config, of: Inputs, whose: Path) -> None:
    """Refuse other data than something was made of.

    Raises:
      InputError: which of the data have changed.
    """
    _is_same(whose, made_of, of.fingerprint, config, "refuse")


def _made_of(folder: Folder, of: Inputs) -> Fingerprint:
    """Return what tells the data that decide a run, or a victim."""
    return inputs.of_victim(of.fingerprint) if isinstance(folder, VictimFolder) else of.fingerprint


def _is_same(
    folder: Path, begun: Mapping[str, Any], now: Fingerprint, config: Config, changed: str
) -> bool:
    different = inputs.differences(begun, now, config)
    if different and changed != "rerun":
        raise InputError(
            f"the data have changed since {folder} was begun: {', '.join(different)}. Put them back, or delete that "
            "folder to train anew, or let --changed-data rerun set it aside."
        )
    return not different
