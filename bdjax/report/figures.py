"""Figures of a set of runs: rates per defense, test images with their predictions, and both on one page.

Everything is laid out in inches from the top left corner of the page, so that nothing overlaps whatever the number of
attacks, defenses and images.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bdjax.checks import InputError, one_of
from bdjax.files import failures
from bdjax.files.atomic import damaged, read_arrays, write_text
from bdjax.files.printable import printable
from bdjax.report import sensitivity
from bdjax.report.layout import (
    BLUE,
    FORMATS,
    GREEN,
    GREY,
    HEADING,
    MARGIN,
    ORANGE,
    STYLE,
    WIDTH,
    axes,
    cut,
    legend,
    need_matplotlib,
    print_width,
    save,
    write,
)
from bdjax.report.rows import LONGEST, RATES, Record, Row, best, common, summarize, victims
from bdjax.report.tables import spread, write_csv
from bdjax.runs.folder import SAMPLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

OVERVIEW_ATTACKS = 4  # more do not fit on one page

_GAP, _LINE, _HEADER = 0.3, 0.155, 0.75  # inches
_SERIES = (
    ("clean_accuracy", "ACC: clean accuracy", BLUE, "o", -0.18),
    ("attack_success_rate", "ASR: attack success rate", ORANGE, "D", 0.18),
)
_OUTCOMES = {
    "right": (GREEN, "✓", "true label"),
    "hit": (ORANGE, "✗", "attacker's label"),
    "other": (GREY, "–", "other label"),
}
_log = logging.getLogger(__name__)


def draw(records: Iterable[Record], folder: str | Path, format: str = "png") -> list[Path]:
    """Draw ``overview``, ``summary`` and ``samples`` into a folder as ``png``, ``pdf`` or ``svg``.

    The values behind them go beside them: ``summary.csv`` (one line per run) and ``samples.csv`` (one line per image).
    Where the run folders hold no test images, ``samples`` is left out with a warning. Where an option was swept, its
    curve is ``sensitivity-defense.rho``, with its values in the csv of the same name.

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
    curves = sensitivity.find(rows)
    folder = Path(folder)
    with failures.blaming_the_path(f"The figures cannot be written to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(cast(Any, STYLE)):
            pages = _pages(rows, samples) | {found.name: sensitivity.draw(found) for found in curves}
            paths = [save(page, folder / f"{name}.{format}") for name, page in pages.items()]
        texts = {"summary.csv": _summary_csv(rows)} | ({"samples.csv": _samples_csv(samples)} if samples else {})
        texts |= {f"{found.name}.csv": sensitivity.as_csv(found) for found in curves}
        for name, text in texts.items():
            write_text(folder / name, text + "\n")
    return paths + [folder / name for name in texts]


# --- Test images -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Test images of one run and what the model made of them before and after the defense."""

    row: Row
    record: Record
    best: bool  # whether no other defense has a higher mean DER
    arrays: dict[str, np.ndarray]  # clean, triggered [k, h, w, c]; label and predictions [k]
    attacker_label: np.ndarray  # [k]; -1 where the label map is unknown

    def outcome(self, prediction: str, i: int) -> str:
        """Say whether a prediction is ``right``, the attacker's (``hit``), or ``other``."""
        value = self.arrays[prediction][i]
        if value == self.arrays["label"][i]:
            return "right"
        return "hit" if value == self.attacker_label[i] else "other"

    def class_name(self, label: int) -> str:
        names = self.record.content["data"]["class_names"]
        return printable(str(names[label]), LONGEST) if 0 <= label < len(names) else str(label)


def read_samples(rows: Sequence[Row]) -> dict[str, Sample]:
    """Return one run with test images per victim: the lowest seed of the defense with the highest mean DER.

    Where that one has no images, it is the first row that has.

    Raises:
        InputError: damaged test images.
    """
    found, lacking = {}, []
    for title, group in victims(rows).items():
        marked = best([row for row in group if row.name("defense") != "none"] or group)
        ranked = sorted(group, key=lambda row: (row not in marked, row.name("defense") == "none"))
        having = [(row, record) for row in ranked for record in row.records if (record.folder / SAMPLES).is_file()]
        if having:
            found[title] = _read(*having[0], best=having[0][0] in marked)
        else:
            lacking.append(title)
    if lacking:
        _log.warning("No test images are drawn of %s: no run of theirs has a %s.", ", ".join(lacking), SAMPLES)
    return found


def _read(row: Row, record: Record, best: bool) -> Sample:
    file = record.folder / SAMPLES
    predictions = [f"{images}_{when}" for images in ("clean", "triggered") for when in ("before", "after")]
    stored = read_arrays(file) or {}
    if str(stored.pop("run", record.run_id)) != record.run_id:
        raise damaged(file, "it is of another run")
    names = ("clean", "triggered", "label", *predictions)
    if lacking := [name for name in names if name not in stored]:
        raise damaged(file, f"it lacks the array {lacking[0]}")
    arrays = {name: stored[name] for name in names}
    shape = arrays["clean"].shape
    if len(shape) != 4 or not shape[0] or shape[3] not in (1, 3):
        raise InputError(f"clean in {file} must have the shape (images, height, width, 1 or 3), got {shape}.")
    expected = {"clean": (shape, "u"), "triggered": (shape, "u")}
    for name, array in arrays.items():
        right_shape, kinds = expected.get(name, (shape[:1], "iu"))
        if array.shape != right_shape or array.dtype.kind not in kinds:
            raise InputError(f"{name} in {file} must hold whole numbers of the shape {right_shape}, got {array.shape}.")
    for name in ("label", *predictions):
        arrays[name] = arrays[name].astype(np.int64)
    return Sample(row, record, best, arrays, _attacker_label(record, arrays["label"]))


def _attacker_label(record: Record, label: np.ndarray) -> np.ndarray:
    attack, names = record.config["attack"], record.content["data"]["class_names"]
    if attack.get("label_map") == "all_to_one":
        target = attack.get("target_label", -1)
        if isinstance(target, str):  # a class by its name
            names = record.content["data"]["class_names"]
            named = record.content["data"].get("target_class", target)
            target = names.index(named) if named in names else -1
        return np.full_like(label, target)
    if attack.get("label_map") == "all_to_all":
        return (label + 1) % record.content["data"]["num_classes"]
    return np.full_like(label, -1)


def choose(sample: Sample, most: int) -> list[int]:
    """Choose images that the attack is meant to change, one of each class first; predictions play no part."""
    label = sample.arrays["label"]
    changed = [i for i in range(len(label)) if label[i] != sample.attacker_label[i]] or list(range(len(label)))
    first = {label[i]: i for i in reversed(changed)}.values()
    return sorted(sorted(changed, key=lambda i: i not in first)[:most])


def _cells(sample: Sample, width: float) -> tuple[list[int], float, float]:
    """Return the images that fit into a block of that width, and the width of a column and height of an image."""
    names = [sample.class_name(label) for label in np.unique(sample.arrays["label"])]
    least = min(max(0.5, 0.14 + max(print_width(f"✗ {name}") for name in names)), 1.2)
    room = width - _HEADER
    chosen = choose(sample, min(int(room / least), 10))
    column = min(room / len(chosen), 1.2)
    height, across = sample.arrays["clean"].shape[1:3]
    return chosen, column, min(0.9 * column * height / across, 1.5 * column)


def _samples_height(sample: Sample, width: float) -> float:
    """Return how high the images of a sample stand in a block of that width, in inches."""
    return 0.18 + 2 * (_cells(sample, width)[2] + 2 * _LINE + 0.05) + 0.08


def _draw_samples(ax: Axes, sample: Sample, width: float) -> None:
    """Draw clean and triggered images in two rows, each with the predictions before and after below it.

    The data units of the axes are inches, so that print and images keep their distance at every size.
    """
    chosen, column, height = _cells(sample, width)
    ax.axis("off")
    labels = [sample.class_name(sample.arrays["label"][i]) for i in chosen]
    _line(ax, 0.07, column, "true label", labels, [GREY] * len(chosen))
    for images, top in (("clean", 0.18), ("triggered", 0.18 + height + 2 * _LINE + 0.13)):
        ax.text(0, top + height / 2, images, weight="bold", va="center")
        for j, i in enumerate(chosen):
            _image(ax, sample.arrays[images][i], _HEADER + (j + 0.5) * column, top, height)
        for line, when in enumerate(("before", "after")):
            seen = [_OUTCOMES[sample.outcome(f"{images}_{when}", i)] for i in chosen]
            names = [sample.class_name(sample.arrays[f"{images}_{when}"][i]) for i in chosen]
            words = [f"{sign} {name}" for (_, sign, _), name in zip(seen, names, strict=True)]
            y = top + height + 0.05 + (line + 0.5) * _LINE
            _line(ax, y, column, when, words, [color for color, _, _ in seen])
    ax.set_xlim(0, width)
    ax.set_ylim(_samples_height(sample, width), 0)


def _line(ax: Axes, y: float, column: float, head: str, words: Sequence[str], colors: Sequence[str]) -> None:
    """Write a line of words, each centered in its column and cut where it is wider."""
    ax.text(0, y, head, va="center", color=GREY)
    for j, (word, color) in enumerate(zip(words, colors, strict=True)):
        ax.text(_HEADER + (j + 0.5) * column, y, cut(word, column - 0.08), ha="center", va="center", color=color)


def _image(ax: Axes, image: np.ndarray, center: float, top: float, height: float) -> None:
    half = height * image.shape[1] / image.shape[0] / 2
    gray = image.shape[-1] == 1
    ax.imshow(
        image[..., 0] if gray else image,
        cmap="gray" if gray else None,
        vmin=0,
        vmax=255,
        interpolation="nearest",
        extent=(center - half, center + half, top + height, top),
        aspect="auto",
    )


# --- Rates -----------------------------------------------------------------------------------------------------------


def _rates_height(rows: Sequence[Row]) -> float:
    return 0.4 * len(rows) + 0.42


def _defense_label(row: Row, room: float) -> str:
    """Return a defense and its settings on one or two lines of that width."""
    if print_width(row.defense) <= room:
        return row.defense
    words = row.defense.split()
    fitting = [i for i in range(1, len(words)) if print_width(" ".join(words[:i])) <= room] or [1]
    return "\n".join(cut(" ".join(part), room) for part in (words[: fitting[-1]], words[fitting[-1] :]) if part)


def _rates_margins(rows: Sequence[Row], width: float) -> tuple[float, float]:
    """Return the room for the names on the left and the numbers on the right, in inches."""
    names = [line for row in rows for line in _defense_label(row, 0.4 * width).splitlines()]
    numbers = [_number(row, series[0]) for row in rows for series in _SERIES]
    return max(_HEADER, 0.1 + max(map(print_width, names))), 0.1 + max(map(print_width, numbers))


def _draw_rates(ax: Axes, rows: Sequence[Row], width: float, numbers: float) -> None:
    """Draw ACC and ASR of each defense: single seeds, mean, standard deviation, and the numbers on the right.

    ``width`` is that of the block and ``numbers`` that of the room to the right of the axes, in inches.
    """
    right = 1 + numbers / (ax.get_position().width * WIDTH)
    for y, row in enumerate(rows):
        if y % 2 == 0:
            ax.axhspan(y - 0.5, y + 0.5, color="#F3F3F3", lw=0, zorder=0)
        for name, _, color, marker, offset in _SERIES:
            _dot(ax, row, name, y + offset, color, marker)
            style = {"color": color, "ha": "right", "va": "center", "transform": ax.get_yaxis_transform()}
            ax.text(right, y + offset, _number(row, name), **style)
    ax.set_yticks(range(len(rows)), [_defense_label(row, 0.4 * width) for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(-3, 103)
    ax.set_xticks(range(0, 101, 25), ["0", "25", "50", "75", "100 %"])
    ax.grid(axis="x", color="#D5D5D5", lw=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _dot(ax: Axes, row: Row, name: str, y: float, color: str, marker: str) -> None:
    statistic = getattr(row, name)
    if statistic.std is not None:
        seeds = [100 * record.value(name) for record in row.records]
        ax.plot(seeds, np.full(len(seeds), y), marker, color=color, ms=3.2, alpha=0.35, mew=0, zorder=2)
        ends = np.clip([statistic.mean - statistic.std, statistic.mean + statistic.std], 0, 1)
        ax.plot(100 * ends, [y, y], "-", color=color, lw=1.4, zorder=3)
    ax.plot([100 * statistic.mean], [y], marker, color=color, ms=5.5, mec="white", mew=0.7, zorder=4)


def _number(row: Row, name: str) -> str:
    return spread(getattr(row, name), 1, 100)


def _rates_key(rows: Sequence[Row]) -> list[Line2D]:
    from matplotlib.lines import Line2D

    keys = [Line2D([], [], color=color, marker=marker, ls="", label=label) for _, label, color, marker, _ in _SERIES]
    if any(row.n > 1 for row in rows):
        keys.append(Line2D([], [], color=GREY, marker="o", ms=5.5, lw=1.4, label="mean ± std"))
        keys.append(Line2D([], [], color=GREY, marker="o", ms=3.2, alpha=0.5, mew=0, ls="", label="one seed"))
    return keys


def _samples_key() -> list[Line2D]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=color, marker=f"${sign}$", ls="", ms=6, mew=0, label=label)
        for color, sign, label in _OUTCOMES.values()
    ]


# --- Pages -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """What a page shows of one victim: test images, rates, or the one above the other."""

    title: str
    sample: Sample | None = None
    rows: Sequence[Row] = ()

    def heights(self, width: float) -> tuple[float, float, float]:
        """Return the inches of the heading, the images and the rates."""
        images = _samples_height(self.sample, width) + 0.2 if self.sample else 0.0
        return 0.22 + (0.2 if self.sample else 0.0), images, _rates_height(self.rows) if self.rows else 0.0


def _pages(rows: Sequence[Row], samples: dict[str, Sample]) -> dict[str, Figure]:
    groups = victims(rows)
    shown = dict(list(groups.items())[:OVERVIEW_ATTACKS])
    heading = common(rows)
    some = f" ({len(shown)} of {len(groups)} attacks)" if len(shown) < len(groups) else ""
    columns = 2 if max(print_width(row.defense) for row in rows) < 0.22 * WIDTH else 1
    both = [Block(title, samples.get(title), group) for title, group in shown.items()]
    pages = {
        "overview": _page(heading + some, both, columns),
        "summary": _page(heading, [Block(title, rows=group) for title, group in groups.items()], columns),
    }
    if samples:
        pages["samples"] = _page(heading, [Block(title, sample) for title, sample in samples.items()], 1)
    return pages


def _page(heading: str, blocks: Sequence[Block], columns: int) -> Figure:
    """Draw the blocks from left to right and down, under a heading and above the keys of what they hold."""
    from matplotlib.figure import Figure

    columns = min(columns, len(blocks))
    width = (WIDTH - 2 * MARGIN - (columns - 1) * _GAP) / columns
    lines = [blocks[i : i + columns] for i in range(0, len(blocks), columns)]
    heights = [tuple(map(max, zip(*(block.heights(width) for block in line), strict=True))) for line in lines]
    keys = _keys(blocks)
    rows = [row for block in blocks for row in block.rows]
    margins = _rates_margins(rows, width) if rows else (0.0, 0.0)  # the same in all blocks, so that axes line up
    top = 0.42 if heading else 0.12
    page = Figure(figsize=(WIDTH, top + sum(map(sum, heights)) + 0.22 * len(keys) + 0.1), facecolor="white")
    write(page, MARGIN, 0.12, heading, **HEADING)
    for line, parts in zip(lines, heights, strict=True):
        for column, block in enumerate(line):
            _draw_block(page, block, (MARGIN + column * (width + _GAP), top, width), parts, margins)
        top += sum(parts)
    for key in keys:
        legend(page, key, top)
        top += 0.22
    return page


def _draw_block(
    page: Figure,
    block: Block,
    place: tuple[float, float, float],
    heights: tuple[float, ...],
    margins: tuple[float, float],
) -> None:
    """Draw a block at its place: left, top and width in inches."""
    left, top, width = place
    heading, images, _ = heights
    write(page, left, top, cut(block.title, 0.75 * width), size=10, weight="bold")
    if block.sample:
        run = f"seed {block.sample.record.seed}, before and after {block.sample.row.defense}"
        why = " (highest DER)" if block.sample.best else ""
        write(page, left, top + 0.2, cut(run, width - print_width(why)) + why, color=GREY)
        height = _samples_height(block.sample, width)
        _draw_samples(axes(page, left, top + heading, width, height), block.sample, width)
    if block.rows:
        names, numbers = margins
        inner = (left + names, top + heading + images, width - names - numbers, _rates_height(block.rows) - 0.42)
        _draw_rates(axes(page, *inner), block.rows, width, numbers)


def _keys(blocks: Sequence[Block]) -> list[list[Line2D]]:
    rows = [row for block in blocks for row in block.rows]
    keys = [_samples_key()] if any(block.sample for block in blocks) else []
    return keys + ([_rates_key(rows)] if rows else [])


# --- Values ----------------------------------------------------------------------------------------------------------


def _summary_csv(rows: Sequence[Row]) -> str:
    lines = [
        (title, row.defense, record.seed, record.run_id, *map(record.value, RATES))
        for title, group in victims(rows).items()
        for row in group
        for record in row.records
    ]
    return write_csv(("attack", "defense", "seed", "run_id", *RATES), lines)


def _samples_csv(samples: dict[str, Sample]) -> str:
    predictions = ("clean_before", "clean_after", "triggered_before", "triggered_after")
    lines = [
        (
            title,
            of.row.defense,
            of.record.seed,
            of.record.run_id,
            i,
            label,
            *(of.arrays[name][i] for name in predictions),
        )
        for title, of in samples.items()
        for i, label in enumerate(of.arrays["label"])
    ]
    return write_csv(("attack", "defense", "seed", "run_id", "image", "label", *predictions), lines)
