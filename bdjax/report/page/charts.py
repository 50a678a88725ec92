"""The page's charts: what is kept against what is removed, what that costs, and curves of swept options.

They are inline SVG and not drawn by a charting library, which would have to come along: plotly's script alone is
4.9 MB, many times the rest of the page, draws nothing where scripts are off, and has no marks that are links. These
charts are some ten kilobytes each, can be printed and read without a script, follow the page's colors, and lead to
the rows.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from xml.etree.ElementTree import Element

from bdjax.report.cells import spread
from bdjax.report.curves.lines import Line, Sensitivity, find
from bdjax.report.curves.panels import (
    MOST_PANELS,
    Panels,
    axis_label,
    circumstances,
    heading,
    panel_title,
    panels,
)
from bdjax.report.page import svg
from bdjax.report.page.content import PERCENT, Content, article
from bdjax.report.page.markup import add, tag
from bdjax.report.rows import CONTROLS, Row, is_repeated, names_in
from bdjax.report.statistics import Statistic
from bdjax.tasks.metrics import Metric

COLORS = 10  # as many as style.css has, from c0 on


@dataclasses.dataclass(frozen=True, eq=False)
class Style:
    """A color for each defense and a shape for each attack, the same in all charts."""

    colors: dict[str, str]  # classes of style.css
    shapes: dict[str, int]

    def mark(self, row: Row, place: tuple[float, float]) -> Element:
        """Return the mark of a row; those of controls are hollow."""
        return svg.shape(self.shapes[row.name("attack")], self.colors[row.name("defense")], place)


def style(rows: Sequence[Row]) -> Style:
    """Return colors and shapes for rows, in their order; controls are grey, further defenses share colors."""
    colors: dict[str, str] = {}
    others = itertools.cycle(range(COLORS))
    for name in names_in(rows, "defense"):
        colors[name] = f"control {name}" if name in CONTROLS else f"c{next(others)}"
    attacks = names_in(rows, "attack")
    return Style(colors, dict(zip(attacks, itertools.count())))


def section(content: Content) -> Element:
    """Return the section of charts."""
    made = tag("section", tag("h2", "Charts"), id="charts", aria_label="Charts")
    styled = style(content.rows)
    add(made, tag("p", _how_to_read(content), class_="note"), _legend(styled))
    add(made, tag("div", _trade_off(content, styled), _cost(content, styled), class_="grid"))
    return add(made, [_sensitivity(content, found) for found in find(content.rows)])


def _how_to_read(content: Content) -> str:
    bars = ", with bars of one sample standard deviation" if is_repeated(content.rows) else ""
    return (
        f"Each mark is a row of the table{bars}, and a link to it; the table has all numbers that are drawn. Hollow "
        "marks are the controls: no defense, and plain fine-tuning."
    )


def _legend(made: Style) -> Element:
    """Return what the colors and the shapes mean; where scripts run, an entry filters as the table's filters do."""

    def entries(section: str, pictures: Mapping[str, Element]) -> Element:
        found = [
            tag("li", tag("span", svg.sample(picture), name, data_filter=section, data_value=name))
            for name, picture in pictures.items()
        ]
        return tag("ul", tag("li", tag("b", section)), found, class_="legend")

    legends = [
        entries("defense", {name: svg.shape(0, color) for name, color in made.colors.items()})
    ]
    if len(made.shapes) > 1:
        legends.append(
            entries(
                "attack", {name: svg.shape(place, "plain") for name, place in made.shapes.items()}
            )
        )
    return tag("div", legends)


# --- Rows as marks ---------------------------------------------------------------------------------------------------


def _trade_off(content: Content, made: Style) -> Element:
    """Draw what is kept, the utility, over what is removed, the attack success."""
    utility, attack = content.utility, content.attack
    across, up = svg.rates(), svg.linear(_reach(content.rows, _utility), 0, 100)
    label = f"{_capital(utility.words)} over {attack.words}, one mark for each row of the table"
    chart = svg.chart(
        label, across, up, f"{panel_title(attack)} (%)", f"{panel_title(utility)} (%)"
    )
    _draw(chart, content, made, _success, _utility)
    return _figure(
        chart, f"{_capital(utility.brief)} against {attack.brief}", _of_trade_off(content)
    )


def _cost(content: Content, made: Style) -> Element:
    """Draw the rating over the seconds of the defense."""
    across = svg.costs(row.run_seconds.mean for row in content.rows)
    up = svg.linear(_reach(content.rows, _rating), 0, 100)
    rating = content.rating
    label = f"{_capital(rating.words)} over the seconds of the defense, one mark for each row of the table"
    chart = svg.chart(
        label, across, up, "seconds of the defense, without compiling", f"{rating.head} (%)"
    )
    _draw(chart, content, made, lambda row: row.run_seconds, _rating)
    kinds = len(content.environments)
    machines = (
        ""
        if kinds == 1
        else f" The runs had {kinds} environments, so that seconds compare only roughly."
    )
    words = (
        "Up is better, left is cheaper: what an effective defense costs. No defense takes no time."
        + machines
    )
    return _figure(chart, "Effectiveness against cost", words)


def _draw(
    chart: svg.Chart,
    content: Content,
    made: Style,
    x: Callable[[Row], Statistic],
    y: Callable[[Row], Statistic],
) -> None:
    # Controls lie below
    ordered = sorted(content.rows, key=lambda row: row.name("defense") not in CONTROLS)
    for row in ordered:
        across, up = x(row), y(row)
        if not (math.isfinite(across.mean) and math.isfinite(up.mean)):
            continue
        low, high = _ends(across, 100 if x is _success else math.inf)
        down, top = _ends(up, 100)
        bars = [((low, up.mean), (high, up.mean)), ((across.mean, down), (across.mean, top))]
        drawn = [
            svg.path([chart.at(*one), chart.at(*other)], "spread")
            for one, other in bars
            if one != other
        ]
        color = made.colors[row.name("defense")]
        mark = made.mark(row, chart.at(across.mean, up.mean))
        link = {"href": f"#{content.anchors[row]}", "data_row": content.anchors[row]}
        chart.add(
            tag("a", tag("title", _said(content, row)), drawn, mark, class_=f"mark {color}", **link)
        )


def _ends(statistic: Statistic, most: float) -> tuple[float, float]:
    mean, std = statistic
    return max(0.0, mean - (std or 0.0)), min(most, mean + (std or 0.0))


def _said(content: Content, row: Row) -> str:
    parts = [f"{content.titles[row]} · {row.defense}"]
    parts += [
        f"{metric.head} {spread(row.statistics[metric.name], 1, 100)}" for metric in row.metrics
    ]
    return "\n".join([*parts, f"{spread(row.run_seconds)} s", f"n = {row.n}"])


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _percent(statistic: Statistic) -> Statistic:
    return Statistic(100 * statistic.mean, None if statistic.std is None else 100 * statistic.std)


def _utility(row: Row) -> Statistic:
    return _percent(row.utility)


def _success(row: Row) -> Statistic:
    return _percent(row.attack_success)


def _rating(row: Row) -> Statistic:
    return _percent(row.rating)


def _reach(rows: Iterable[Row], value: Callable[[Row], Statistic]) -> list[float]:
    """Return the ends of all error bars."""
    return [end for row in rows for end in _ends(value(row), 100)]


def _of_trade_off(content: Content) -> str:
    utility, attack = content.utility, content.attack
    words = f"Up and to the left is better: the backdoor is gone, and the {utility.brief} is not."
    defended = [row for row in content.rows if row.name("defense") != "none" and row.competes]
    known = [row for row in defended if not math.isnan(row.attack_success.mean)]
    if not known:
        return words
    lowest = min(known, key=lambda row: (row.attack_success.mean, -row.utility.mean))
    success, kept = (spread(value, 1, 100) for value in (lowest.attack_success, lowest.utility))
    where = f"{lowest.defense} on {content.titles[lowest]}"
    at = f"{article(utility.head)} {utility.head} of {kept}{PERCENT}"
    return f"{words} The lowest mean {attack.head} is {success}{PERCENT}, of {where}, at {at}."


# --- Swept options ---------------------------------------------------------------------------------------------------


def _sensitivity(content: Content, found: Sensitivity) -> Element:
    drawn = panels(found)
    shown = drawn[:MOST_PANELS]
    labels = list(dict.fromkeys(label for one in shown for label in one.lines.values()))
    colors = {label: f"c{i}" for i, label in enumerate(labels)} if len(labels) <= COLORS else {}
    block = tag("div", tag("h3", heading(found)), class_="sweep")
    add(block, tag("p", circumstances(found), class_="note"))
    for one in shown:
        styles = {
            line: colors.get(label, f"c{i % COLORS}")
            for i, (line, label) in enumerate(one.lines.items())
        }
        pair = [_curves(found, styles, one, metric) for metric in found.drawn]
        title = tag("h4", one.title) if one.title else None
        add(block, title, _lines_key(one, styles), tag("div", pair, class_="grid"))
    if left_out := drawn[len(shown) :]:
        lines = sum(len(one.lines) for one in left_out)
        add(
            block,
            tag(
                "p",
                f"{lines} further lines are not drawn; their values are in the table.",
                class_="note",
            ),
        )
    return block


def _curves(
    found: Sensitivity, styles: Mapping[Line, str], panels: Panels, metric: Metric
) -> Element:
    values = [value for line in panels.lines for value in line.values]
    axis, title, rate = axis_label(found.option), panel_title(metric), metric.name
    chart = svg.chart(
        f"{title} over {axis}", svg.swept(values), svg.rates(), axis, f"{metric.head} (%)"
    )
    for control in dict.fromkeys(control for line in panels.lines for control in line.controls):
        chart.add(_control(chart, control, rate))
    for line in panels.lines:
        chart.add(*_line(chart, line, rate, styles[line]))
    return _figure(chart, title, _of_curves(panels, rate))


def _control(chart: svg.Chart, control: Line, rate: str) -> Element:
    means = [100 * row.statistics[rate].mean for row in control.rows]
    name = control.row.name("defense")
    if control.values:
        points = [chart.at(value, mean) for value, mean in zip(control.values, means, strict=True)]
    else:
        points = [(svg.LEFT, chart.at(0, means[0])[1]), (svg.RIGHT, chart.at(0, means[0])[1])]
    return tag(
        "g", tag("title", f"{name}: {means[0]:.1f} %"), svg.path(points, f"line control {name}")
    )


def _line(chart: svg.Chart, line: Line, rate: str, color: str) -> list[Element]:
    """Return a band of one sample standard deviation to either side, the line of means, and a mark at each value."""
    statistics = [_percent(row.statistics[rate]) for row in line.rows]
    measured = [
        (x, one) for x, one in zip(line.values, statistics, strict=True) if not math.isnan(one.mean)
    ]
    low = [chart.at(x, _ends(one, 100)[0]) for x, one in measured]
    high = [chart.at(x, _ends(one, 100)[1]) for x, one in measured]
    drawn = [svg.path([*low, *reversed(high)], f"band {color}", closed=True)] if low != high else []
    points = [chart.at(x, one.mean) for x, one in measured]
    drawn.append(svg.path(points, f"line {color}"))
    for point, (x, one) in zip(points, measured, strict=True):
        said = f"{line.row.defense} at {x:g}\n{spread(one)} %"
        drawn.append(tag("g", tag("title", said), svg.shape(0, color, point), class_="point"))
    return drawn


def _lines_key(panels: Panels, styles: dict[Line, str]) -> Element:
    entries = [(svg.shape(0, styles[line]), label) for line, label in panels.lines.items()]
    names = dict.fromkeys(
        control.row.name("defense") for line in panels.lines for control in line.controls
    )
    dashes = [(svg.path([(-10, 0), (10, 0)], f"line control {name}"), name) for name in names]
    return tag(
        "ul",
        [tag("li", svg.sample(picture), label) for picture, label in (*entries, *dashes)],
        class_="legend",
    )


def _of_curves(panels: Panels, rate: str) -> str:
    """Say from where to where the first lines lead."""
    parts = []
    for line, label in list(panels.lines.items())[:3]:
        first, last = (
            spread(row.statistics[rate], 1, 100) for row in (line.rows[0], line.rows[-1])
        )
        parts.append(f"{label}: {first} % at {line.values[0]:g}, {last} % at {line.values[-1]:g}")
    return "; ".join(parts) + "."


# --- Frames ----------------------------------------------------------------------------------------------------------


def _figure(chart: svg.Chart, title: str, words: Sequence[str] | str) -> Element:
    return tag("figure", tag("h4", title), chart.element, tag("figcaption", words), class_="card")
