"""Sensitivity curves of made-up sweeps: which options have one, its lines, controls and values, and the figure."""

import csv
import io
import itertools
import logging
import math
from pathlib import Path

import pytest
from made_up import ATTACK_TOTAL, content, ft_sam, write

from bdjax import report
from bdjax.report import figures, layout
from bdjax.report.curves import axis, figure, lines
from bdjax.report.curves import panels as pairs

AUTO = {"selection": {"budget": 0.02, "aside": 0.2}}


def with_selection(record):
    return {**record, "config": {**record["config"], **AUTO}}


def find(*contents):
    return lines.find(report.summarize(report.Record(Path("nowhere"), one) for one in contents))


def only(*contents):
    (found,) = find(*contents)
    return found


def chain(rho, **last):
    return {
        "name": "chain",
        "first": {"name": "fine_pruning", "epochs": 5},
        "second": ft_sam(rho, **last),
    }


def read(found):
    return list(csv.reader(io.StringIO(lines.as_csv(found))))


def drawn(found):
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context(layout.STYLE):
        return figure.draw(found)


# --- Finding ---


@pytest.mark.parametrize(
    ("contents", "options"),
    [
        ([content(0, defense=ft_sam(rho)) for rho in (1, 2, 4)], ["defense.rho"]),
        ([content(0, defense=ft_sam(rho)) for rho in (1, 2, 2.0)], []),
        ([content(seed, defense=ft_sam(rho)) for seed in (0, 1, 2) for rho in (1, 2)], []),
        ([content(seed, defense=ft_sam(2)) for seed in (0, 1, 2)], []),
        ([content(0, defense=ft_sam(rho, epochs=10 * rho)) for rho in (1, 2, 4)], []),
        (
            [
                content(0, defense=ft_sam(rho, learning_rate=lr))
                for rho in (1, 2, 4)
                for lr in (0.1, 0.2, 0.3)
            ],
            ["defense.rho", "defense.learning_rate"],
        ),
        (
            [content(0, attack={"poison_rate": rate}) for rate in (0.01, 0.05, 0.1)],
            ["attack.poison_rate"],
        ),
        ([content(0, defense=chain(rho)) for rho in (1, 2, 4)], ["defense.second.rho"]),
        (
            [
                content(0, defense=ft_sam(2, schedule={"kind": "step", "period": n}))
                for n in (None, 10, 20, 30)
            ],
            ["defense.schedule.period"],
        ),
        ([content(0, holdout={"share": share}) for share in (0.01, 0.05, 0.1)], ["holdout.share"]),
        ([content(0, model={"width": width}) for width in (8, 16, 32)], ["model.width"]),
        ([content(0, data={"image_size": side}) for side in (8, 16, 32)], ["data.image_size"]),
        ([content(0, training={"epochs": epochs}) for epochs in (5, 10, 20)], ["training.epochs"]),
        ([content(0, attack={"target_label": label}) for label in (0, 1, 2)], []),
        (
            [
                content(0, defense=ft_sam(2, augment=name))
                for name in ("standard", "mixup", "cutout")
            ],
            [],
        ),
        ([content(0, defense=ft_sam(2, adaptive=value)) for value in (True, False, None, 0)], []),
        ([content(0, defense=ft_sam(value)) for value in (1, 2, math.nan, math.inf)], []),
        ([content(0, defense=ft_sam(2, **{"../up": value})) for value in (1, 2, 3)], []),
    ],
)
def test_an_option_is_found_where_it_alone_takes_three_values(contents, options):
    assert [found.option for found in find(*contents)] == options
    assert [found.option for found in find(*reversed(contents))] == options


def test_chosen_strengths_have_no_place_on_the_axis():
    swept = [content(0, defense=ft_sam(rho)) for rho in (4, 1, 2)]
    found = only(
        *swept,
        with_selection(content(0, defense=ft_sam("auto"))),
        content(0, defense={"name": "nft"}),
    )
    assert [line.values for line in found.lines] == [(1, 2, 4)]
    budgets = [with_selection(content(0, defense=ft_sam("auto"))) for _ in range(3)]
    for record, budget in zip(budgets, (0.01, 0.02, 0.05), strict=True):
        record["config"]["selection"] = {"budget": budget, "aside": 0.2}
    assert [found.option for found in find(*budgets)] == ["selection.budget"]


def test_a_line_is_what_agrees_in_everything_else():
    star = [content(0, defense=ft_sam(rho, learning_rate=0.1)) for rho in (1, 2, 4, 10)]
    star += [content(0, defense=ft_sam(2, learning_rate=lr)) for lr in (0.2, 0.3)]
    rho, rate = find(*star)
    assert [(line.row.defense, line.values) for line in rho.lines] == [("ft_sam", (1, 2, 4, 10))]
    assert [(line.row.defense, line.values) for line in rate.lines] == [("ft_sam", (0.1, 0.2, 0.3))]
    two = [content(0, {"name": "blended"}, ft_sam(rho)) for rho in (1, 10)]
    one = [content(0, {"name": "sig"}, ft_sam(1))]
    found = only(*(content(0, defense=ft_sam(rho)) for rho in (1, 2, 4)), *two, *one)
    assert [(line.row.attack, line.values) for line in found.lines] == [
        ("badnets", (1, 2, 4)),
        ("blended", (1, 10)),
    ]


def test_labels_tell_lines_apart_and_leave_the_option_out():
    grid = itertools.product((1, 2, 10), (0.01, 0.1), (5, 10))
    found = only(*(content(0, {"poison_rate": p}, ft_sam(rho, epochs=n)) for rho, p, n in grid))
    assert [(line.row.attack, line.row.defense) for line in found.lines] == [
        ("badnets poison_rate=0.01", "ft_sam epochs=5"),
        ("badnets poison_rate=0.01", "ft_sam epochs=10"),
        ("badnets poison_rate=0.1", "ft_sam epochs=5"),
        ("badnets poison_rate=0.1", "ft_sam epochs=10"),
    ]
    found = only(*(content(0, {"poison_rate": p}, ft_sam(2)) for p in (0.01, 0.05, 0.1)))
    assert (found.lines[0].row.attack, found.lines[0].row.settings) == ("badnets", {})


# --- Controls ---


def controls(line):
    return [(control.row.attack, control.row.defense, control.values) for control in line.controls]


def test_controls_are_those_of_the_victim():
    swept = [
        content(0, {"name": name}, ft_sam(rho))
        for name in ("badnets", "blended", "sig")
        for rho in (1, 2, 4)
    ]
    plain = [
        content(0, {"name": name}, {"name": "none"}) for name in ("badnets", "blended", "wanet")
    ]
    # Its only one, though of other epochs
    plain += [content(0, {"name": "blended"}, {"name": "ft", "epochs": 5})]
    badnets, blended, sig = only(*swept, *plain).lines
    assert controls(badnets) == [("badnets", "none", ())]
    assert controls(blended) == [("blended", "none", ()), ("blended", "ft", ())]
    assert controls(sig) == []
    elsewhere = only(
        *swept[:3], content(0, holdout={"share": 0.1}), content(0, {"poison_rate": 0.5})
    )
    assert (controls(elsewhere.lines[0]), elsewhere.lines[0].row.attack) == ([], "badnets")


def test_of_several_fine_tunings_each_line_has_that_with_its_options():
    swept = [
        content(0, defense=ft_sam(rho, learning_rate=lr))
        for rho in (1, 2, 4)
        for lr in (0.1, 0.2, 0.4)
    ]
    swept = [one for one in swept if one["config"]["defense"]["learning_rate"] != 0.4]
    tuned = [
        content(0, defense={"name": "ft", "learning_rate": lr, "epochs": 100}) for lr in (0.1, 0.2)
    ]
    low, high = only(*swept, *tuned).lines
    assert (controls(low), controls(high)) == (
        [("badnets", "ft learning_rate=0.1", ())],
        [("badnets", "ft learning_rate=0.2", ())],
    )
    chained = [content(0, defense=chain(rho, learning_rate=0.2)) for rho in (1, 2, 4)]
    assert controls(only(*chained, *tuned).lines[0]) == [("badnets", "ft learning_rate=0.2", ())]


def test_controls_that_have_the_option_are_lines_themselves():
    defenses = [{"name": "none"}, {"name": "ft"}, ft_sam(2)]
    rates = [
        content(0, {"poison_rate": p}, defense) for p in (0.01, 0.05, 0.1) for defense in defenses
    ]
    found = only(*rates)
    assert [line.row.defense for line in found.lines] == ["ft_sam"]
    swept = (0.01, 0.05, 0.1)
    assert controls(found.lines[0]) == [("badnets", "none", swept), ("badnets", "ft", swept)]
    assert [line.row.defense for line in found.everything] == ["ft_sam", "none", "ft"]


def test_where_no_defense_was_swept_fine_tuning_is():
    rates = [content(0, defense={"name": "ft", "learning_rate": lr}) for lr in (0.1, 0.2, 0.4)]
    found = only(content(0), *rates)
    assert [(line.row.defense, controls(line)) for line in found.lines] == [
        ("ft", [("badnets", "none", ())])
    ]
    apart = [content(0, {"name": "blended"}, ft_sam(2, learning_rate=lr)) for lr in (0.1, 0.2, 0.4)]
    both = only(*rates, *apart)
    assert [line.row.defense for line in both.lines] == ["ft_sam", "ft"], (
        "of a victim without another line, it is one"
    )


# --- Values ---


def test_values_by_hand():
    hits = {1: (80, 72, 64), 2: (40, 40, 16), 4: (8,)}
    swept = [
        content(seed, defense=ft_sam(rho), hits=n)
        for rho in hits
        for seed, n in enumerate(hits[rho])
    ]
    head, *lines = read(only(*swept, content(0, hits=80)))
    assert head == [
        *("defense.rho", "attack", "defense", "n"),
        *(
            "clean_accuracy_mean",
            "clean_accuracy_std",
            "attack_success_rate_mean",
            "attack_success_rate_std",
        ),
        *("robust_accuracy_mean", "robust_accuracy_std"),
    ]
    assert [line[:4] for line in lines] == [
        ["1", "badnets", "ft_sam", "3"],
        ["2", "badnets", "ft_sam", "3"],
        ["4", "badnets", "ft_sam", "1"],
        ["", "badnets", "none", "1"],
    ]
    one, two, four, none = (
        [float(value) if value else None for value in line[4:]] for line in lines
    )
    # of 80: 1, 0.9, 0.8 and 0.5, 0.5, 0.2
    assert one == pytest.approx([0.9, 0, 0.9, 0.1, 0.75, 0], abs=1e-12)
    assert two == pytest.approx(
        [0.9, 0, 0.4, math.sqrt((0.01 + 0.01 + 0.04) / 2), 0.75, 0], abs=1e-12
    )
    assert four == [0.9, None, 0.1, None, 0.75, None]
    assert none == [0.9, None, 1.0, None, 0.75, None]
    assert ATTACK_TOTAL == 80


def test_values_keep_their_columns_whatever_the_settings():
    odd = 'a, "b"\nc'
    swept = [content(0, {"pattern": p}, ft_sam(rho)) for rho in (1, 2, 4) for p in (odd, "white")]
    lines = read(only(*swept))
    assert {len(line) for line in lines} == {10}
    assert [line[1] for line in lines[1:]] == ['badnets pattern=a, "b"\\nc'] * 3 + [
        "badnets pattern=white"
    ] * 3


def test_an_undefined_rate_is_an_empty_field():
    swept = [content(0, defense=ft_sam(rho)) for rho in (1, 2, 4)]
    swept[1]["metrics"]["after"]["attack_success_rate"] = math.nan
    found = only(*swept)
    assert [line[6] for line in read(found)[1:]] == ["0.05", "", "0.05"]
    drawn(found)


# --- Figure ---


def sweep(rhos, attacks, seeds, rates=(0.1,)):
    """Return a sweep with its controls; hits fall with ρ, a little later for each next attack."""
    swept = []
    for i, attack in enumerate(attacks):
        for seed in range(seeds):
            swept.append(content(seed, {"name": attack}, {"name": "none"}, hits=80 - 4 * i))
            swept += [
                content(
                    seed, {"name": attack}, {"name": "ft", "learning_rate": lr}, hits=60 - 5 * i
                )
                for lr in rates
            ]
            swept += [
                content(
                    seed,
                    {"name": attack},
                    ft_sam(rho, learning_rate=lr),
                    hits=max(0, 70 - int(10 * rho * lr * 10) + 5 * i + seed),
                )
                for rho in rhos
                for lr in rates
            ]
    return swept


def test_a_figure_shows_means_bands_single_runs_and_controls():
    found = only(*sweep((1, 2, 4), ("badnets",), 3))
    accuracy, success = drawn(found).axes
    lines = {
        (line.get_linestyle(), line.get_marker(), len(line.get_xdata())): line
        for line in success.lines
    }
    assert lines["-", "o", 3].get_xdata().tolist() == [1, 2, 4]
    # hits of 80, with seeds 0, 1, 2: 60, 61, 62, then 50, …, then 30, …
    assert lines["-", "o", 3].get_ydata() == pytest.approx(
        [100 * 61 / 80, 100 * 51 / 80, 100 * 31 / 80]
    )
    assert {
        line.get_ydata()[0] for line in success.lines if line.get_linestyle() in (":", "--")
    } == {100, 75}
    (runs,) = [line for line in success.lines if line.get_linestyle() == "None"]
    assert list(runs.get_xdata()) == [1, 1, 1, 2, 2, 2, 4, 4, 4]
    assert list(runs.get_ydata()) == pytest.approx(
        [75, 76.25, 77.5, 62.5, 63.75, 65, 37.5, 38.75, 40]
    )
    (band, bars) = success.collections
    # 76.25 + a standard deviation of 1.25
    assert band.get_paths()[0].get_extents().y1 == pytest.approx(77.5)
    assert len(bars.get_segments()) == 3
    assert (accuracy.get_ylim(), accuracy.get_xlabel()) == ((-3, 103), "ρ  (defense.rho)")


def test_single_seeds_have_no_band():
    page = drawn(only(*sweep((1, 2, 4), ("badnets",), 1)))
    assert [
        len(path.vertices) for band in page.axes[1].collections[:1] for path in band.get_paths()
    ] == []
    assert {line.get_linestyle() for line in page.axes[1].lines} == {"-", "--", ":"}
    words = {text.get_text() for key in page.legends for text in key.get_texts()}
    assert words == {"ft_sam", "none (attacked network)", "ft (plain fine-tuning)"}
    assert "· one seed ·" in page.texts[1].get_text()


CASES = {
    "lines": sweep((0.5, 1, 2, 4, 8), ("badnets", "blended"), 3),
    "many values": sweep([i / 4 for i in range(1, 30)], ("badnets",), 2),
    "one decade after another": sweep([10**i for i in range(-6, 7)], ("badnets",), 1),
    "two options": sweep((1, 2, 4), ("badnets", "blended"), 2, (0.003, 0.01, 0.03)),
    "nine attacks": sweep((1, 2, 4), [f"attack{i}" for i in range(9)], 1),
    "long labels": [
        content(
            0, {"name": a}, ft_sam(rho, label_smoothing=s, momentum=m, learning_rate=0.0123456789)
        )
        for a in ("a_long_" * 7, "an_attack_of_some_name_or_other_with_a_long_tail")
        for rho in (1, 2, 4)
        for s in (0.0, 0.1)
        for m in (0.0, 0.123456789)
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_no_words_lie_on_others_or_leave_the_page(case, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    boxes = []
    original = Text.draw

    def draw(text, renderer):
        original(text, renderer)
        if text.get_visible() and text.get_text().strip():
            boxes.append((text.get_text(), text.get_window_extent(renderer)))

    monkeypatch.setattr(Text, "draw", draw)
    for found in find(*CASES[case]):
        page = drawn(found)
        boxes.clear()
        FigureCanvasAgg(page).draw()
        assert len(boxes) > 10
        for (first, box), (second, other) in itertools.combinations(boxes, 2):
            assert not box.overlaps(other), f"{first!r} lies on {second!r}"
        right, top = page.bbox.size
        for words, box in boxes:
            assert box.min.min() >= 0, words
            assert (box.max <= (right, top)).all(), words


def panels(*contents):
    return [(one.title, list(one.lines.values())) for one in pairs.panels(only(*contents))]


def test_victims_of_several_lines_have_panels_of_their_own():
    pytest.importorskip("matplotlib")  # which measures the labels
    two = ("badnets", "blended")
    assert panels(*sweep((1, 2, 4), two, 1)) == [("", ["badnets", "blended"])]
    rates = ["learning_rate=0.1", "learning_rate=0.2"]
    assert panels(*sweep((1, 2, 4), two, 1, (0.1, 0.2))) == [("badnets", rates), ("blended", rates)]
    assert panels(*sweep((1, 2, 4), ("badnets",), 1)) == [("", ["ft_sam"])]
    assert panels(*sweep((1, 2), two, 2), *sweep((4,), ("badnets",), 1)) == [
        ("", ["badnets (n=1–2)", "blended (n=2)"])
    ]


def test_more_lines_than_colors_are_shared_out(caplog, monkeypatch):
    pytest.importorskip("matplotlib")
    nine = [f"attack{i}" for i in range(9)]
    assert panels(*sweep((1, 2, 4), nine, 1)) == [("", nine[:4]), ("", nine[4:])]
    rates = [i / 10 for i in range(1, 18)]
    found = next(
        one
        for one in find(*sweep((1, 2, 4), ("badnets",), 1, rates))
        if one.option == "defense.rho"
    )
    assert [len(one.lines) for one in pairs.panels(found)] == [5, 6, 6]
    monkeypatch.setattr(figure, "MOST_PANELS", 2)
    with caplog.at_level(logging.WARNING):
        page = drawn(found)
    assert len(page.axes) == 2 * 2
    assert [record.message for record in caplog.records] == [
        "sensitivity-defense.rho shows the first lines; 6 more are in the csv beside it."
    ]


def test_controls_have_the_color_of_their_line_where_they_are_its_alone():
    found = only(*sweep((1, 2, 4), ("badnets", "blended"), 1))
    (one,) = pairs.panels(found)
    styles = one.colors({})
    first, second = found.lines
    assert styles[first][0] != styles[second][0]
    assert styles[first][1] != styles[second][1]
    assert {styles[control][0] for control in first.controls} == {styles[first][0]}
    two = sweep((1, 2, 4), ("badnets",), 1, (0.1, 0.2))
    (one,) = pairs.panels(only(*two))
    styles = one.colors({})
    shared = {
        control.row.name("defense"): styles[control][0]
        for line in one.lines
        for control in line.controls
    }
    assert shared["none"] == layout.GREY
    assert shared["ft"] != layout.GREY


def test_controls_that_lie_on_each_other_are_grey():
    swept = sweep((1, 2, 4), ("badnets", "blended", "sig"), 1)
    for record in swept:
        if (
            record["config"]["defense"]["name"] == "none"
            and record["config"]["attack"]["name"] == "blended"
        ):
            record["metrics"]["after"]["attack_success_rate"] = (
                0.995  # that of badnets is 1, that of sig 0.9
            )
    found = only(*swept)
    success = drawn(found).axes[1]
    dotted = {
        round(line.get_ydata()[0], 1): line.get_color()
        for line in success.lines
        if line.get_linestyle() == ":"
    }
    assert dotted == {100: layout.GREY, 99.5: layout.GREY, 90: pairs.COLORS[2]}


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((1, 2, 3, 4, 5, 6, 7, 8), "linear"),
        ((1, 2, 4, 8), "linear"),  # less than a decade
        ((0.5, 1, 2, 4, 8), "log"),
        ((0.003, 0.01, 0.03), "log"),
        (tuple(range(1, 30)), "linear"),  # evenly spaced as it is
        ((0, 1, 2, 4, 8, 16), "symlog"),
        ((0, 5, 10), "linear"),
        ((-1, 1, 100), "linear"),
    ],
)
def test_the_axis_is_logarithmic_where_the_values_are(values, name):
    assert axis.scale(values)[0] == name


def test_labels_that_have_no_room_are_left_out_but_never_the_last():
    assert axis.with_room([0, 1, 2], [0.9, 0.9, 0.9]) == {0, 1, 2}
    assert axis.with_room([0, 1, 1.5, 2], [0.9, 0.9, 0.9, 0.9]) == {0, 1, 3}
    assert axis.with_room([0, 0.1], [1, 1]) == {1}


def test_wrapped_words_lose_nothing():
    pytest.importorskip("matplotlib")
    assert layout.wrap("one two", 5) == ["one two"]
    words = "short " + 30 * "x" + " learning_rate=0.1 n"
    lines = layout.wrap(words, 1.2)
    assert "".join(lines).replace(" ", "") == words.replace(" ", "")
    assert lines[0] == "short"
    assert len(lines) > 3
    assert max(map(layout.print_width, lines)) <= 1.2
    assert layout.wrap("", 1) == [""]


# --- Files ---


def test_figures_of_a_sweep_come_with_its_curve(tmp_path):
    pytest.importorskip("matplotlib")
    records = report.load([write(tmp_path / "runs", *sweep((1, 2, 4), ("badnets",), 2))])
    for format in ("png", "svg"):
        paths = figures.draw(records, tmp_path / "first", format)
        again = figures.draw(records[::-1], tmp_path / "second", format)
        names = [f"{name}.{format}" for name in ("overview", "summary", "sensitivity-defense.rho")]
        assert [path.name for path in paths] == [
            *names,
            "summary.csv",
            "sensitivity-defense.rho.csv",
        ]
        assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    head, *lines = (tmp_path / "first" / "sensitivity-defense.rho.csv").read_text().splitlines()
    assert head.startswith("defense.rho,attack,defense,n,")
    assert [line[:2] for line in lines] == ["1,", "2,", "4,", ",b", ",b"]


def test_nothing_is_drawn_where_nothing_is_swept(tmp_path):
    pytest.importorskip("matplotlib")
    records = report.load([write(tmp_path / "runs", *sweep((1, 2), ("badnets", "blended"), 3))])
    figures.draw(records, tmp_path / "figures")
    assert not list((tmp_path / "figures").glob("sensitivity*"))
