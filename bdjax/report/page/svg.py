"""Charts as inline SVG: scales, axes and marks, with the page's colors by class and every mark a link to its row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element

from bdjax.report.curves.axis import scale as scale_of
from bdjax.report.labels import plain
from bdjax.report.page.markup import add, tag

# Of a chart's own pixels: small enough that its print can be read on a phone
WIDTH, HEIGHT = 400, 290
LEFT, RIGHT = 50, WIDTH - 14  # of the axes
_TOP, _BOTTOM = 12, 46
_SIZE = 5.2  # half of a mark
_LABEL = 34  # least pixels between numbers on an axis


# --- Scales ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Scale:
    """An axis from ``low`` to ``high``; a logarithmic one may begin with a zero, at ``zero`` on its own scale."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False
    zero: float = math.nan

    def __call__(self, value: float) -> float:
        """Return where a value lies: 0 at the low end, 1 at the high one."""
        return (self._place(value) - self.low) / (self.high - self.low)

    def _place(self, value: float) -> float:
        if not self.logarithmic:
            return value
        return math.log10(value) if value > 0 else self.zero


def linear(values: Iterable[float], least: float = -math.inf, most: float = math.inf) -> Scale:
    """Return a scale with round numbers around the values, not beyond ``least`` and ``most``."""
    low, high = _range(values)
    if high - low < 1e-9:
        low, high = low - max(1.0, 0.05 * abs(low)), high + max(1.0, 0.05 * abs(high))
    step = _step((high - low) / 4)
    low, high = max(least, step * math.floor(low / step)), min(most, step * math.ceil(high / step))
    first = math.ceil(low / step - 1e-9)
    ticks = [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]
    margin = 0.03 * (high - low)
    return Scale(low - margin, high + margin, tuple((tick, f"{tick:.10g}") for tick in ticks))


def rates() -> Scale:
    """Return a scale of percentages from 0 to 100."""
    return Scale(-3, 103, tuple((tick, f"{tick}") for tick in range(0, 101, 25)))


def costs(values: Iterable[float]) -> Scale:
    """Return a scale of what is 0 or more and may differ by orders of magnitude."""
    found = sorted(filter(math.isfinite, values)) or [0.0]
    positive = [value for value in found if value > 0]
    if not positive:
        return linear(found, least=0)
    low, high = math.log10(positive[0]), math.log10(positive[-1])
    decades = range(math.floor(low), math.ceil(high) + 1)
    digits = (1, 2, 5) if high - low < 2 else (1, 3) if high - low < 3 else (1,)
    ticks = [digit * 10.0**decade for decade in decades for digit in digits]
    ticks = [tick for tick in ticks if low - 0.35 <= math.log10(tick) <= high + 0.35]
    low, high = min(low, math.log10(ticks[0])) - 0.1, max(high, math.log10(ticks[-1])) + 0.1
    numbers = [
        (tick, f"{tick:g}" if tick < 1e5 else f"{tick:.0e}".replace("e+0", "e")) for tick in ticks
    ]
    if found[0] > 0:
        return Scale(low, high, tuple(numbers), logarithmic=True)
    zero = low - 0.12 * (high - low)
    return Scale(
        zero - 0.05 * (high - low), high, ((0.0, "0"), *numbers), logarithmic=True, zero=zero
    )


def swept(values: Iterable[float]) -> Scale:
    """Return the scale of an option's values, logarithmic as in `bdjax.report.curves.axis`, with a number at each."""
    found = sorted(set(values))
    name, options = scale_of(found)
    logarithmic = name != "linear"
    zero = math.log10(options["linthresh"]) - options["linscale"] / 0.9 if options else math.nan
    bare = Scale(0, 1, (), logarithmic, zero)
    low, high = bare(found[0]), bare(found[-1])
    margin = 0.05 * (high - low)
    wide = Scale(low - margin, high + margin, (), logarithmic, zero)
    return dataclasses.replace(
        wide, ticks=tuple((value, plain(value)) for value in _with_room(wide, found))
    )


def _with_room(scale: Scale, values: Sequence[float]) -> list[float]:
    """Return the last value, and from the first on those that lie far enough from the ones before and from it."""
    chosen: list[float] = []
    room = _LABEL / (RIGHT - LEFT)
    for value in values[:-1]:
        if all(abs(scale(value) - scale(other)) >= room for other in (*chosen, values[-1])):
            chosen.append(value)
    return [*chosen, values[-1]]


def _range(values: Iterable[float]) -> tuple[float, float]:
    found = [value for value in values if math.isfinite(value)]
    return (min(found), max(found)) if found else (0.0, 1.0)


def _step(wanted: float) -> float:
    """Return the least of 1, 2, 5, 10, … times a power of ten that is at least what is wanted."""
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= 0.999 * wanted)


# --- A chart ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Chart:
    """An SVG element with axes, and where values lie in it."""

    element: Element
    across: Scale
    up: Scale

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixels of a point."""
        return (
            round(LEFT + self.across(x) * (RIGHT - LEFT), 1),
            round(HEIGHT - _BOTTOM - self.up(y) * (HEIGHT - _TOP - _BOTTOM), 1),
        )

    def add(self, *content: Element) -> None:
        """Draw elements above what is there."""
        add(self.element, *content)


def chart(label: str, across: Scale, up: Scale, x: str, y: str) -> Chart:
    """Return an empty chart: ``label`` is what a screen reader says, ``x`` and ``y`` name the axes."""
    box = f"0 0 {WIDTH} {HEIGHT}"
    made = Chart(
        tag("svg", viewBox=box, role="group", aria_label=label, class_="chart"), across, up
    )
    bottom = HEIGHT - _BOTTOM
    grid = tag("g", class_="axes", aria_hidden="true")
    for value, number in across.ticks:
        place, _ = made.at(value, 0)
        add(
            grid,
            tag("path", d=f"M{place} {_TOP}V{bottom}"),
            _text(number, place, bottom + 17, "middle"),
        )
    for value, number in up.ticks:
        _, place = made.at(across.ticks[0][0] if across.ticks else 0, value)
        add(
            grid,
            tag("path", d=f"M{LEFT} {place}H{RIGHT}"),
            _text(number, LEFT - 7, place + 4, "end"),
        )
    add(grid, tag("path", d=f"M{LEFT} {bottom}H{RIGHT}", class_="base"))
    add(grid, _text(x, (LEFT + RIGHT) / 2, HEIGHT - 8, "middle", "name"))
    middle = (_TOP + bottom) / 2
    add(
        grid,
        tag(
            "text",
            y,
            class_="name",
            text_anchor="middle",
            transform=f"translate(13 {middle}) rotate(-90)",
        ),
    )
    made.add(grid)
    return made


def _text(words: str, x: float, y: float, anchor: str, class_: str | None = None) -> Element:
    return tag("text", words, x=x, y=y, text_anchor=anchor, class_=class_)


# --- Marks -----------------------------------------------------------------------------------------------------------


def _polygon(corners: int, turned: float = 0.0, size: float = 1.2) -> str:
    angles = [2 * math.pi * (k / corners + turned) for k in range(corners)]
    return _closed([(size * math.sin(angle), -size * math.cos(angle)) for angle in angles])


def _star() -> str:
    angles = [math.pi * k / 5 for k in range(10)]
    radii = (1.4, 0.6)
    return _closed(
        [(radii[k % 2] * math.sin(a), -radii[k % 2] * math.cos(a)) for k, a in enumerate(angles)]
    )


def _closed(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_SIZE * x:.2f} {_SIZE * y:.2f}" for x, y in points) + "Z"


_CIRCLE = "M-{r} 0a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0 -{d} 0Z".format(r=_SIZE, d=2 * _SIZE)
_ARM = ((-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4))
_PLUS = (*_ARM, *((-x, -y) for x, y in _ARM))
_CROSS = tuple((0.75 * (x - y), 0.75 * (x + y)) for x, y in _PLUS)
_HOURGLASS = ((-1, -1.1), (1, -1.1), (-1, 1.1), (1, 1.1))
SHAPES = (
    _CIRCLE,
    _polygon(4, size=1.3),
    _polygon(4, 1 / 8, size=1.35),
    _polygon(3, size=1.35),
    _polygon(3, 1 / 2, size=1.35),
    _closed(_PLUS),
    _closed(_CROSS),
    _star(),
    _polygon(6),
    _polygon(3, 1 / 4, size=1.35),
    _polygon(3, 3 / 4, size=1.35),
    _polygon(5),
    _closed(_HOURGLASS),
)


def shape(number: int, class_: str | None = None, place: tuple[float, float] = (0, 0)) -> Element:
    """Return the outline of a mark; after the last shape comes the first again."""
    x, y = place
    return tag(
        "path", d=SHAPES[number % len(SHAPES)], class_=class_, transform=f"translate({x} {y})"
    )


def sample(*content: Element) -> Element:
    """Return a small picture of a mark or a line for a legend, its middle at 0, 0."""
    return tag("svg", *content, viewBox="-10 -8 20 16", class_="key", aria_hidden="true")


def path(points: Sequence[tuple[float, float]], class_: str, closed: bool = False) -> Element:
    """Return a line through points in pixels."""
    return tag(
        "path",
        d="M" + "L".join(f"{x} {y}" for x, y in points) + ("Z" if closed else ""),
        class_=class_,
    )
