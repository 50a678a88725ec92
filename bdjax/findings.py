"""What analyses found of finished runs: arrays in a file beside each record, and the figures that they make."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from bdjax import records, registry, report
from bdjax.checks import InputError
from bdjax.layout import STYLE, encode, need_matplotlib
from bdjax.report import Record

PACKAGE = "bdjax.analysis"
_ON_A_PAGE = 130  # dots to an inch, where many figures share one page
_SETTINGS = "settings"  # the array of a file that tells with which options it was made


class Found(NamedTuple):
    """What an analysis found of one run, and the options with which it did."""

    arrays: dict[str, np.ndarray]
    options: dict[str, Any]


def file_of(record: Record, name: str) -> Path:
    """Return where the findings of an analysis are kept."""
    return record.folder / f"analysis-{name}.npz"


def write(file: Path, found: Found) -> None:
    """Write findings whole or not at all."""
    records.write_arrays(file, **found.arrays, **{_SETTINGS: np.asarray(json.dumps(found.options, sort_keys=True))})


def read(file: Path) -> Found | None:
    """Return the findings in a file, None where there is none.

    Raises:
      InputError: it is damaged.
    """
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {key: content[key] for key in content.files}
        return Found(arrays, json.loads(str(arrays.pop(_SETTINGS))))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} is damaged ({error}); delete it to make it again.") from error


def titles(runs: Sequence[Record]) -> dict[str, Record]:
    """Return the runs in the order of a summary, by titles that tell them apart: attack, defense, seed."""
    found: dict[str, Record] = {}
    for victim, rows in report.victims(report.summarize(runs)).items():
        for row in rows:
            for record in row.records:
                found[" · ".join([victim, row.defense] + ([f"seed {record.seed}"] if row.n > 1 else []))] = record
    return found


def draw(name: str, found: Mapping[str, Found], format: str = "png", dpi: float = 200) -> bytes:
    """Return the figure of findings that were made with the same options, by titles, as a file in a format."""
    need_matplotlib()
    import matplotlib

    (options, *others) = [one.options for one in found.values()]
    assert all(other == options for other in others)
    analysis = registry.create(PACKAGE, name, **options)
    with matplotlib.rc_context(cast(Any, STYLE)):
        page = analysis.draw({title: one.arrays for title, one in found.items()})
        return encode(page, format, dpi)


def pictures(runs: Sequence[Record]) -> dict[str, bytes]:
    """Return PNG files of whatever analyses found of these runs, by captions; one for each set of options."""
    groups: dict[tuple[str, str], dict[str, Found]] = {}
    for title, record in titles(runs).items():
        for file in sorted(record.folder.glob("analysis-*.npz")):
            name = file.stem.partition("-")[2]
            if name in registry.names(PACKAGE) and (found := read(file)) is not None:
                groups.setdefault((name, json.dumps(found.options, sort_keys=True)), {})[title] = found
    drawn = {}
    for (name, options), found in sorted(groups.items()):
        values = ", ".join(f"{key} = {value}" for key, value in json.loads(options).items() if value is not None)
        caption = f"{name}: {registry.summary(PACKAGE, name)}" + (f" Options: {values}." if values else "")
        drawn[caption] = draw(name, found, dpi=_ON_A_PAGE)
    return drawn
