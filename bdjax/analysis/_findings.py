"""What analyses found of finished runs: arrays in a file beside each record, and the figures that they make."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from bdjax import registry, report
from bdjax.files import atomic, shapes
from bdjax.report.layout import STYLE, encode, need_matplotlib
from bdjax.report.records import Record
from bdjax.runs.folder import RunFolder

PACKAGE = "bdjax.analysis"
_ON_A_PAGE = 130.0  # dots to an inch, where many figures share one page
_ABOUT = "about"  # the array of a file that tells what it is of, and with which options it was made


class Found(NamedTuple):
    """What an analysis found of one run, and the options with which it did."""

    arrays: dict[str, np.ndarray]
    options: dict[str, Any]


def file_of(record: Record, name: str) -> Path:
    """Return where the findings of an analysis are kept."""
    return RunFolder(record.folder).findings(name)


def write_findings(record: Record, name: str, found: Found) -> None:
    """Write what an analysis found of a run, whole or not at all."""
    about = {"analysis": name, "run": record.run_id, "options": found.options}
    arrays = {**found.arrays, _ABOUT: np.asarray(json.dumps(about, sort_keys=True))}
    atomic.write_arrays(file_of(record, name), **arrays)


def read_findings(record: Record, name: str) -> Found | None:
    """Return what an analysis found of a run, None where it has not looked.

    Raises:
      InputError: the file is damaged, or of another run or analysis.
    """
    file = file_of(record, name)
    if (arrays := atomic.read_arrays(file)) is None:
        return None
    try:
        about = atomic.parse_json(str(arrays.pop(_ABOUT)))
    except (KeyError, ValueError) as error:
        raise atomic.damaged(file, error) from error
    if (wrong := shapes.misfit(about, {"analysis": str, "run": str, "options": dict})) is not None:
        raise atomic.damaged(file, wrong)
    if (about["analysis"], about["run"]) != (name, record.run_id):
        raise atomic.damaged(file, f"it is what {about['analysis']} found of {about['run']}")
    return Found(arrays, about["options"])


def titles(runs: Sequence[Record]) -> dict[str, Record]:
    """Return the runs in the order of a summary, by titles that tell them apart: attack, defense, seed."""
    found: dict[str, Record] = {}
    for victim, rows in report.victims(report.summarize(runs)).items():
        for row in rows:
            for record in row.records:
                title = f"{victim} · {row.defense}"
                if row.n > 1:
                    title += f" · seed {record.seed}"
                found[title] = record
    return found


def draw_findings(
    name: str, found: Mapping[str, Found], format: str = "png", dpi: float = 200.0
) -> bytes:
    """Return the figure of findings that were made with the same options, by titles, as a file in a format."""
    need_matplotlib()
    import matplotlib

    options, *others = [one.options for one in found.values()]
    assert all(other == options for other in others)
    analysis = registry.create(PACKAGE, name, **options)
    with matplotlib.rc_context(cast(Any, STYLE)):
        page = analysis.draw({title: one.arrays for title, one in found.items()})
        return encode(page, format, dpi)


def pictures(runs: Sequence[Record]) -> dict[str, bytes]:
    """Return PNG files of whatever analyses found of these runs, by captions; one for each set of options."""
    groups: dict[tuple[str, str], dict[str, Found]] = {}
    for title, record in titles(runs).items():
        for name in RunFolder(record.folder).analyses():
            if name not in registry.names(PACKAGE):
                continue
            if (found := read_findings(record, name)) is not None:
                options = json.dumps(found.options, sort_keys=True)
                groups.setdefault((name, options), {})[title] = found
    drawn = {}
    for (name, options), found in sorted(groups.items()):
        values: list[str] = []
        for key, value in json.loads(options).items():
            if value is not None:
                values.append(f"{key} = {value}")
        caption = f"{name}: {registry.summary(PACKAGE, name)}"
        if values:
            caption += f" Options: {', '.join(values)}."
        drawn[caption] = draw_findings(name, found, dpi=_ON_A_PAGE)
    return drawn
