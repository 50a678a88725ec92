"""Analyses of finished runs: measured once for each run, kept beside its record, drawn together on a page."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from bdjax import records, registry, report, saved, schema
from bdjax.analysis._subject import Analysis, Findings
from bdjax.checks import InputError, one_of
from bdjax.layout import FORMATS, STYLE, need_matplotlib, save
from bdjax.report import Record

PACKAGE = "bdjax.analysis"
_SETTINGS = "settings"  # the array of a file that tells with which options it was made


def analyze(
    name: str,
    paths: Iterable[Any],
    folder: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    format: str = "png",
    data_dir: str | None = None,
    on_run: Callable[[int, int, Record], None] = lambda number, count, record: None,
) -> list[Path]:
    """Measure finished runs and draw what was found; return the files, the figure first.

    What was measured of a run is kept in its folder as ``analysis-<name>.npz``, and not measured again with the same
    options.

    Args:
      name: of a file in `bdjax.analysis`.
      paths: as for `bdjax.report.load`.
      folder: of the figure.
      options: the analysis' own, over its defaults.
      format: of the figure: png, pdf or svg.
      data_dir: where the data lie now.
      on_run: called with (its number, how many there are, the record) before a run is measured.

    Raises:
      InputError: an unknown name, option or format, no matplotlib, or a run that cannot be loaded.
    """
    one_of(FORMATS, format=format)
    need_matplotlib()
    choice = schema.read_choice("analysis", PACKAGE, {**(options or {}), "name": name})
    analysis = cast(Analysis, registry.create(PACKAGE, name, **choice.options))
    runs = report.load(paths)
    found: dict[str, Findings] = {}
    files = []
    for number, (title, record) in enumerate(titles(runs).items(), 1):
        file = record.folder / f"analysis-{name}.npz"
        findings = _stored(file, choice.options)
        if findings is None:
            on_run(number, len(runs), record)
            findings = analysis.measure(saved.subject(record, data_dir))
            settings = np.asarray(json.dumps(choice.options, sort_keys=True))
            records.write_arrays(file, **findings, **{_SETTINGS: settings})
        found[title] = findings
        files.append(file)
    return [_draw(analysis, found, Path(folder) / f"{name}.{format}"), *files]


def stored(name: str, runs: Sequence[Record]) -> dict[str, Findings]:
    """Return what has been measured of runs with whatever options, by title."""
    found = {title: _stored(record.folder / f"analysis-{name}.npz") for title, record in titles(runs).items()}
    return {title: findings for title, findings in found.items() if findings is not None}


def titles(runs: Sequence[Record]) -> dict[str, Record]:
    """Return the runs in the order of a summary, by titles that tell them apart: attack, defense, seed."""
    found: dict[str, Record] = {}
    for victim, rows in report.victims(report.summarize(runs)).items():
        for row in rows:
            for record in row.records:
                found[" · ".join([victim, row.defense] + ([f"seed {record.seed}"] if row.n > 1 else []))] = record
    return found


def _draw(analysis: Analysis, found: Mapping[str, Findings], file: Path) -> Path:
    import matplotlib

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(cast(Any, STYLE)):
            return save(analysis.draw(found), file)
    except OSError as error:
        raise InputError(f"the figure cannot be written to {file}: {error.strerror}.") from error


def _stored(file: Path, options: Mapping[str, Any] | None = None) -> Findings | None:
    """Return the arrays in a file, None where there is none or, if options are given, it was made with others."""
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as content:
            findings = {key: content[key] for key in content.files}
        settings = json.loads(str(findings.pop(_SETTINGS)))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} is damaged ({error}); delete it to make it again.") from error
    return findings if options is None or settings == dict(options) else None
