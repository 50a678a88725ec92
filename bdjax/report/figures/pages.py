"""Pages of figures: the test images and the rates of each victim as blocks, from left to right and down."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bdjax.report.figures import images, rates
from bdjax.report.layout import GREY, HEADING, MARGIN, WIDTH, axes, cut, legend, print_width, write
from bdjax.report.rows import Row, common, victims
from bdjax.report.samples import Sample
from bdjax.tasks.metrics import RATING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

OVERVIEW_ATTACKS = 4  # more do not fit on one page
_GAP = 0.3  # inches between blocks


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """What a page shows of one victim: test images, rates, or the one above the other."""

    title: str
    sample: Sample | None = None
    rows: Sequence[Row] = ()

    def heights(self, width: float) -> tuple[float, float, float]:
        """Return the inches of the heading, the images and the rates."""
        pictures = images.height_of(self.sample, width) + 0.2 if self.sample else 0.0
        return (
            0.22 + (0.2 if self.sample else 0.0),
            pictures,
            rates.height_of(self.rows) if self.rows else 0.0,
        )


def pages(rows: Sequence[Row], samples: Mapping[str, Sample]) -> dict[str, Figure]:
    """Return the pages of rows of one kind of task: ``overview``, ``summary``, and ``samples`` if there are any."""
    groups = victims(rows)
    shown = dict(list(groups.items())[:OVERVIEW_ATTACKS])
    heading = common(rows)
    some = f" ({len(shown)} of {len(groups)} attacks)" if len(shown) < len(groups) else ""
    columns = 2 if max(print_width(row.defense) for row in rows) < 0.22 * WIDTH else 1
    both = [Block(title, samples.get(title), group) for title, group in shown.items()]
    made = {
        "overview": _page(heading + some, both, columns),
        "summary": _page(
            heading, [Block(title, rows=group) for title, group in groups.items()], columns
        ),
    }
    if samples:
        made["samples"] = _page(
            heading, [Block(title, sample) for title, sample in samples.items()], 1
        )
    return made


def _page(heading: str, blocks: Sequence[Block], columns: int) -> Figure:
    """Draw the blocks from left to right and down, under a heading and above the keys of what they hold."""
    from matplotlib.figure import Figure

    columns = min(columns, len(blocks))
    width = (WIDTH - 2 * MARGIN - (columns - 1) * _GAP) / columns
    lines = [blocks[i : i + columns] for i in range(0, len(blocks), columns)]
    heights = [_highest([block.heights(width) for block in line]) for line in lines]
    keys = _keys(blocks)
    rows = [row for block in blocks for row in block.rows]
    # The same in all blocks, so that axes line up
    margins = rates.margins(rows, width) if rows else (0.0, 0.0)
    top = 0.42 if heading else 0.12
    page = Figure(
        figsize=(WIDTH, top + sum(map(sum, heights)) + 0.22 * len(keys) + 0.1), facecolor="white"
    )
    write(page, MARGIN, 0.12, heading, **HEADING)
    for line, parts in zip(lines, heights, strict=True):
        for column, block in enumerate(line):
            _draw_block(page, block, (MARGIN + column * (width + _GAP), top, width), parts, margins)
        top += sum(parts)
    for key in keys:
        legend(page, key, top)
        top += 0.22
    return page


def _highest(heights: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Return how high each part of a line of blocks is: as its highest one."""
    return tuple(map(max, zip(*heights, strict=True)))


def _draw_block(
    page: Figure,
    block: Block,
    place: tuple[float, float, float],
    heights: tuple[float, ...],
    margins: tuple[float, float],
) -> None:
    """Draw a block at its place: left, top and width in inches."""
    left, top, width = place
    heading, pictures, _ = heights
    write(page, left, top, cut(block.title, 0.75 * width), size=10, weight="bold")
    if block.sample:
        run = f"seed {block.sample.record.seed}, before and after {block.sample.row.defense}"
        rating = block.sample.row.metric(RATING).head
        why = f" (highest {rating})" if block.sample.best else ""
        write(page, left, top + 0.2, cut(run, width - print_width(why)) + why, color=GREY)
        height = images.height_of(block.sample, width)
        images.draw(axes(page, left, top + heading, width, height), block.sample, width)
    if block.rows:
        names, numbers = margins
        inner = (
            left + names,
            top + heading + pictures,
            width - names - numbers,
            rates.height_of(block.rows) - 0.42,
        )
        rates.draw(axes(page, *inner), block.rows, width, numbers)


def _keys(blocks: Sequence[Block]) -> list[list[Line2D]]:
    rows = [row for block in blocks for row in block.rows]
    keys = [images.key()] if any(block.sample for block in blocks) else []
    return keys + ([rates.key(rows)] if rows else [])
