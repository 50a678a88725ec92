"""Records of many runs in one file, small enough to be committed, from which tables are made as from the runs.

A line of JSON for each run: its ``record.json`` with the smoothness that was measured, without the epochs' losses and
without the folder of its data, which is nobody else's. `bdjax.report.load` reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bdjax.checks import InputError
from bdjax.files import places
from bdjax.files.atomic import write_text
from bdjax.report.labels import identity
from bdjax.report.records import BUNDLE, Record


def check(file: str | os.PathLike[str]) -> Path:
    """Return the path of a bundle to write.

    Raises:
      InputError: its suffix is not ``.jsonl``, by which it would be known, or it is no file that could be.
    """
    if Path(file).suffix != BUNDLE:
        raise InputError(
            f"out must name a {BUNDLE} file, such as records{BUNDLE}; got {str(file)!r}."
        )
    return places.check_file("out", file)


def write(records: Iterable[Record], file: str | os.PathLike[str]) -> Path:
    """Write records as a bundle and return its path; a file that is there is replaced, whole or not at all.

    The order is that of configs and seeds, so that the same runs give the same file.

    Raises:
      InputError: as `check`; the smoothness of a run is damaged; or a number in a record is not finite.
    """
    path = check(file)
    ordered = sorted(records, key=lambda record: (identity(record.settings), record.seed))
    write_text(path, "".join(f"{_line(record)}\n" for record in ordered))
    return path


def _line(record: Record) -> str:
    try:
        return json.dumps(_packed(record), allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise InputError(f"{record.source} holds what is no JSON ({error}).") from error


def _packed(record: Record) -> dict[str, Any]:
    content = {key: value for key, value in record.content.items() if key != "history"}
    data = {
        **record.config["data"],
        **({"data_dir": None} if "data_dir" in record.config["data"] else {}),
    }
    content["config"] = {**record.config, "data": data}
    if smoothness := record.smoothness():
        content["smoothness"] = smoothness
    return content
