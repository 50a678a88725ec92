"""Analyses of finished runs: each run is measured once, and all are drawn together on a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from bdjax import registry, report, saved
from bdjax.analysis import _findings
from bdjax.analysis._findings import PACKAGE, Found
from bdjax.checks import one_of
from bdjax.files import atomic, failures, places
from bdjax.report.layout import FORMATS, need_matplotlib
from bdjax.report.records import Record
from bdjax.runs import schema
from bdjax.runs.subject import Analysis, NeedsLibrary, check_fits


def analyze(
    name: str,
    paths: Iterable[str | Path],
    folder: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    format: str = "png",
    data_dir: str | None = None,
    on_run: Callable[[int, int, Record], None] = lambda number, count, record: None,
) -> list[Path]:
    """Measure finished runs and draw what was found; return the files, the figure first.

    What was measured of a run is kept in its folder as ``analysis-<name>.npz``, and not measured again with the same
    options. A run that cannot be loaded does not keep the others from being measured and drawn.

    Args:
      name: of a file in `bdjax.analysis`.
      paths: as for `bdjax.report.load`.
      folder: of the figure.
      options: the analysis' own, over its defaults.
      format: of the figure: png, pdf or svg.
      data_dir: where the data lie now.
      on_run: called with (its number, how many there are, the record) before a run is measured.

    Raises:
      InputError: an unknown name, option or format, no matplotlib, or runs that cannot be loaded (the first reason).
    """
    one_of(FORMATS, format=format)
    need_matplotlib()
    choice = schema.read_choice("analysis", PACKAGE, {**(options or {}), "name": name})
    analysis = cast(Analysis, registry.create(PACKAGE, name, **choice.options))
    figure = Path(folder) / f"{name}.{format}"
    places.check_folder("figures", folder)
    runs = _findings.titles(report.load(paths))
    found: dict[str, Found] = {}
    known: saved.Known = {}
    lacking = saved.Failures()
    for number, (title, record) in enumerate(runs.items(), 1):
        stored = _findings.read_findings(record, name)
        if stored is None or stored.options != choice.options:
            if isinstance(analysis, NeedsLibrary):  # looked for before a network is loaded
                analysis.require()
            on_run(number, len(runs), record)
            with lacking.noted(), saved.computing(record):
                subject = saved.subject(record, data_dir, known)
                check_fits(name, analysis, subject.model.spec)
                found[title] = Found(analysis.measure(subject), dict(choice.options))
                _findings.write_findings(record, name, found[title])
        else:
            found[title] = stored
    if found:
        picture = _findings.draw_findings(name, found, format)
        with failures.blaming_the_path(f"the figure cannot be written to {figure}"):
            atomic.write_bytes(figure, picture)
    lacking.tell()
    return [figure, *(_findings.file_of(record, name) for record in runs.values())]
