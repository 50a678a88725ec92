"""Figures of a set of runs: rates per defense, test images with their predictions, and both on one page.

Everything is laid out in inches from the top left corner of the page, so that nothing overlaps whatever the number of
attacks, defenses and images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bdjax.checks import InputError, one_of
from bdjax.files import failures
from bdjax.files.atomic import write_text
from bdjax.report import values
from bdjax.report.curves import figure, lines
from bdjax.report.figures.pages import pages
from bdjax.report.layout import FORMATS, STYLE, need_matplotlib, save
from bdjax.report.records import Record
from bdjax.report.rows import Row, by_task, metrics_of, summarize, victims
from bdjax.report.samples import PREDICTIONS, Sample, read_samples
from bdjax.report.tables import of_several_tasks
from bdjax.tasks.metrics import UTILITY, names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)


def draw(records: Iterable[Record], folder: str | Path, format: str = "png") -> list[Path]:
    """Draw ``overview``, ``summary`` and ``samples`` into a folder as ``png``, ``pdf`` or ``svg``.

    The values behind them go beside them: ``summary.csv`` (one line per run) and ``samples.csv`` (one line per image).
    Where the run folders hold no test images, ``samples`` is left out with a warning. Where an option was swept, its
    curve is ``sensitivity-defense.rho``, with its values in the csv of the same name. Tasks with different metrics have
    pages of their own, under names that end in that of their utility, and a line tells so.

    Returns:
        The files written: figures, overview first, then values.

    Raises:
        InputError: no records, no matplotlib, an unknown format, damaged test images, or an unwritable folder.
    """
    one_of(FORMATS, format=format)
    need_matplotlib()
    import matplotlib

    rows = summarize(records)
    if not rows:
        raise InputError("There are no records to draw.")
    samples = read_samples(rows)
    curves = lines.find(rows)
    if said := of_several_tasks(by_task(rows)):
        _log.warning("%s", said)
    folder = Path(folder)
    with failures.blaming_the_path(f"The figures cannot be written to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(cast(Any, STYLE)):
            drawn = _pages(rows, samples) | {found.name: figure.draw(found) for found in curves}
            paths = [save(page, folder / f"{name}.{format}") for name, page in drawn.items()]
        texts = {"summary.csv": _summary_csv(rows)}
        if samples:
            texts["samples.csv"] = _samples_csv(samples)
        texts |= {f"{found.name}.csv": lines.as_csv(found) for found in curves}
        for name, text in texts.items():
            write_text(folder / name, text + "\n")
    return paths + [folder / name for name in texts]


def _pages(rows: Sequence[Row], samples: Mapping[str, Sample]) -> dict[str, Figure]:
    """Return the pages of each kind of task, which end in its name where there are several."""
    kinds = by_task(rows)
    if len(kinds) == 1:
        return pages(rows, samples)
    made: dict[str, Figure] = {}
    for own in kinds:
        shown = read_samples(own) if samples else {}  # under titles as among these rows alone
        utility = own[0].metric(UTILITY).name
        made |= {f"{name}-{utility}": page for name, page in pages(own, shown).items()}
    return made


# --- Values ----------------------------------------------------------------------------------------------------------


def _summary_csv(rows: Sequence[Row]) -> str:
    columns = names(metrics_of(rows))
    lines = []
    for title, group in victims(rows).items():
        for row in group:
            for record in row.records:
                measured = map(record.values.get, columns)
                lines.append((title, row.defense, record.seed, record.run_id, *measured))
    return values.write(("attack", "defense", "seed", "run_id", *columns), lines)


def _samples_csv(samples: Mapping[str, Sample]) -> str:
    lines = []
    for title, of in samples.items():
        about = (title, of.row.defense, of.record.seed, of.record.run_id)
        for i, label in enumerate(of.arrays["label"]):
            lines.append((*about, i, label, *(of.arrays[name][i] for name in PREDICTIONS)))
    return values.write(
        ("attack", "defense", "seed", "run_id", "image", "label", *PREDICTIONS), lines
    )
