"""Tables read back by programs that know nothing of how they were written: LaTeX, Markdown and CSV say the same."""

import csv
import io
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import content, ft_sam
from markdown_it import MarkdownIt
from pylatexenc import latexwalker
from pylatexenc.latex2text import LatexNodes2Text, MacroTextSpec, get_default_latex_context_db

from bdjax import report
from bdjax.report import cells, grid, tables, values
from bdjax.report.curves import lines as curves
from bdjax.report.records import Record
from bdjax.report.statistics import Statistic
from bdjax.tasks.metrics import SINGLE_LABEL, names

HOSTILE = (r"a_b & 50% #$ {x} ~ ^ \ ", "[x]", "*", "a|b", "<b>`c`</b> && **d** ~~e~~ &amp;")
# which this reader of LaTeX does not know, or prints as an accent
PRINTS = get_default_latex_context_db()
CHARACTERS = {"textbar": "|", "textasciigrave": "`", "textasciicircum": "^"}
PRINTS.add_context_category(
    "own", [MacroTextSpec(*item) for item in CHARACTERS.items()], prepend=True
)
NAMES = (
    st.text(st.sampled_from(r"ab12 _&%#${}~^\[]*|<>`=.ρ"), min_size=1).map(str.strip).filter(bool)
)


def rows_of(*contents, **options):
    return report.summarize(
        [Record(Path(str(i)), made) for i, made in enumerate(contents)], **options
    )


def read_latex(text):
    """Return the cells of the tabular in LaTeX text, and its caption, as they print."""
    (table,) = latexwalker.LatexWalker(text).get_latex_nodes()[0]
    prints = LatexNodes2Text(latex_context=PRINTS, keep_comments=True)
    children = [node for node in table.nodelist if node is not None]
    (tabular,) = (node for node in children if getattr(node, "environmentname", "") == "tabular")
    columns = tabular.nodeargd.argnlist[-1].latex_verbatim().strip("{}")
    (at,) = (i for i, node in enumerate(children) if getattr(node, "macroname", "") == "caption")
    caption = prints.nodelist_to_text(
        children[at].nodeargd.argnlist[-1:] or children[at + 1 : at + 2]
    )
    rows, cells, cell = [], [], []
    for node in tabular.nodelist:
        if getattr(node, "macroname", "") in ("toprule", "midrule", "bottomrule"):
            cell = []
        elif getattr(node, "macroname", "") == "\\":
            assert not any(node.nodeargd.argnlist), "a cell was taken for its argument"
            rows.append([prints.nodelist_to_text(part).strip() for part in (*cells, cell)])
            cells, cell = [], []
        elif getattr(node, "specials_chars", "") == "&":
            cells, cell = [*cells, cell], []
        else:
            cell.append(node)
    assert {len(row) for row in rows} == {len(columns)}
    return rows, caption


def read_markdown(text):
    """Return the cells of a Markdown table as they print."""
    tokens = MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse(text)
    rows = []
    for i, token in enumerate(tokens):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("td_open", "th_open"):
            parts = tokens[i + 1].children or []
            rows[-1].append("".join(part.content for part in parts if part.type != "html_inline"))
    return rows


def printed(line, name, scale=100):
    mean, std = line[f"{name}_mean"], line[f"{name}_std"]
    return f"{scale * float(mean):.1f}" + (f" ± {scale * float(std):.1f}" if std else "")


def made(count=3):
    plans = [
        ({"name": "none"}, 80, 0.5),
        ({"name": "ft"}, 61, 0.6),
        (ft_sam(2.0), 8, 0.9),
        (ft_sam(10.0), 4, 0.93),
    ]
    return [
        content(seed, {"name": attack}, defense, hits - 2 * seed, rating - seed / 99)
        for attack in ("blended", "badnets")
        for defense, hits, rating in plans
        for seed in range(count)
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_latex_and_markdown_say_what_the_csv_says(count):
    rows = rows_of(*made(count))
    lines = list(csv.DictReader(io.StringIO(tables.table(rows, "csv"))))
    (heads, *latex), caption = read_latex(tables.table(rows, "latex"))
    assert heads == ["attack", "defense", "ACC", "ASR", "RA", "DER", "n", "seconds", "gradients"]
    markdown_heads, *markdown = read_markdown(tables.table(rows, "markdown"))
    assert markdown_heads == heads
    for line, of_latex, of_markdown in zip(lines, latex, markdown, strict=True):
        label = line["defense"] + (
            f" ρ={float(line['defense.rho']):g}" if line["defense.rho"] else ""
        )
        rates = [printed(line, name) for name in names(SINGLE_LABEL)]
        gradients = line["gradient_evaluations_mean"].removesuffix(".0")
        expected = [label, *rates, line["n"], printed(line, "run_seconds", 1), gradients]
        assert of_latex[1:] == of_markdown[1:] == expected
        assert of_markdown[0] == line["attack"]
    assert [line[0] for line in latex] == ["badnets", "", "", "", "blended", "", "", ""]
    assert "± sample standard deviation over n seeds" in caption or count == 1


def test_best_and_second_best_are_marked_everywhere():
    rows = rows_of(*made())
    latex, markdown, console = (
        tables.table(rows, style) for style in ("latex", "markdown", "console")
    )
    best, second = r"92.0 (?:\$\\pm\$|±) 1.0", r"89.0 (?:\$\\pm\$|±) 1.0"
    assert len(re.findall(rf"\\textbf{{{best}}}", latex)) == latex.count(r"\textbf") == 2
    assert len(re.findall(rf"\\underline{{{second}}}", latex)) == latex.count(r"\underline") == 2
    assert len(re.findall(rf"\*\*{best}\*\*", markdown)) == 2
    assert len(re.findall(rf"<u>{second}</u>", markdown)) == markdown.count("<u>") == 2
    assert len(re.findall(rf"{best} \*", console)) == 2
    assert len(re.findall(rf"{second} \+", console)) == 2
    for text, marks in (
        (latex, ("Bold", "underlined")),
        (markdown, ("Bold", "underlined")),
        (console, "*+"),
    ):
        assert (
            f"{marks[0]}: highest mean DER of each attack, {marks[1]}: second highest."
            in " ".join(text.split())
        )


def test_the_console_prints_bold_and_underlined(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    text = tables.table(rows_of(*made()), "console")
    assert len(re.findall("\x1b\\[4m89.0 ± 1.0\x1b\\[0m", text)) == 2
    assert len(re.findall("\x1b\\[1m92.0 ± 1.0 \\*\x1b\\[0m", text)) == 2


def test_without_a_second_the_caption_names_none():
    text = tables.table(rows_of(content()), "markdown")
    assert text.endswith("Bold: highest mean DER of each attack.")
    assert "<u>" not in text


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(name):
    check_names(name, f"{name}2")


@given(attack=NAMES, defense=NAMES)
@settings(max_examples=60, deadline=None)
def test_names_of_any_characters(attack, defense):
    check_names(attack, defense)


def check_names(attack, defense):
    """Check that names come back from each format as they went in (white space aside)."""
    names = [" ".join(attack.split()), " ".join(defense.split())]
    rows = rows_of(content(attack={"name": attack}, defense={"name": defense}))
    (_, line), _ = read_latex(tables.table(rows, "latex"))
    assert ["".join(cell.split()) for cell in line[:2]] == ["".join(name.split()) for name in names]
    _, line = read_markdown(tables.table(rows, "markdown"))
    assert [" ".join(cell.split()) for cell in line[:2]] == names
    (line,) = csv.DictReader(io.StringIO(tables.table(rows, "csv")))
    assert [line["attack"], line["defense"]] == [
        f"'{name}" if name[0] in "=-" else name for name in (attack, defense)
    ]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_text_is_no_formula_in_a_spreadsheet(start):
    name = f"{start}HYPERLINK(1)"
    text = values.write([name, "plain"], [[name, -1.5], [None, -2], ["a=b", float("-inf")]])
    head, *lines = csv.reader(io.StringIO(text))
    shown = "'" + name.replace("\t", r"\t").replace("\r", r"\r")
    assert head == [shown, "plain"]
    assert lines == [[shown, "-1.5"], ["", "-2"], ["a=b", "-inf"]]


# --- Captions ---


def targeted(target, names=("plane", "car", "cat"), **attack):
    made = content(attack={"target_label": target, **attack})
    return {**made, "data": {**made["data"], "class_names": list(names)}}


@pytest.mark.parametrize(
    ("target", "told"),
    [(2, "target class: 2 (cat)"), ("cat", "target class: 2 (cat)"), ("dog", "target class: dog")],
)
def test_the_class_that_the_attacker_wants_is_named(target, told):
    for style in ("console", "markdown", "latex"):
        assert f"triggered ones), {told}. DER" in " ".join(
            tables.table(rows_of(targeted(target)), style).split()
        )


def test_a_class_whose_name_is_its_number_is_named_once():
    assert "target class: 2. DER" in tables.table(rows_of(targeted(2, "0123")), "markdown")
    assert "target class: 7. DER" in tables.table(rows_of(targeted(7)), "markdown")


def test_target_classes_that_differ_are_named_with_their_attacks():
    rows = rows_of(
        targeted(2), targeted(0, name="blended"), targeted(0, name="wanet", label_map="all_to_all")
    )
    assert "target classes: 2 (cat) of badnets; 0 (plane) of blended. DER" in tables.table(
        rows, "markdown"
    )
    assert "target class" not in tables.table(rows[2:], "markdown")


# --- Statistics ---


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (200.0, None, "200"),
        (1200.0, 0.0, "1,200"),
        (23.3, 7.1, "23 ± 7"),
        (20.5, None, "20"),
        (math.nan, None, "–"),
    ],
)
def test_a_count_has_a_deviation_where_seeds_differ(mean, std, text):
    assert cells.count(Statistic(mean, std)) == text


def test_intervals_have_columns_of_their_own():
    rows = rows_of(*made(), intervals=True)
    (heads, *latex), caption = read_latex(tables.table(rows, "latex"))
    assert heads[9:] == ["ACC 95 %", "ASR 95 %", "DER 95 %", "ASR < 10 %"]
    # hits 8, 6, 4 of 80; ratings 0.9 - seed / 99; of three seeds the interval is the range
    assert latex[2][9:] == ["[90.0, 90.0]", "[5.0, 10.0]", "[88.0, 90.0]", "2/3"]
    assert "of two or three seeds, their range" in caption
    line = list(csv.DictReader(io.StringIO(tables.table(rows, "csv"))))[2]
    bounds = [float(line[f"attack_success_rate_{bound}"]) for bound in ("low", "high")]
    assert bounds == pytest.approx([4 / 80, 8 / 80])


@pytest.mark.parametrize("style", grid.FORMATS)
def test_one_seed_has_no_interval(style):
    text = tables.table(rows_of(content(), intervals=True), style)
    if style == "csv":
        (line,) = csv.DictReader(io.StringIO(text))
        assert line["clean_accuracy_low"] == line["defense_effectiveness_rating_high"] == ""
    else:
        assert "[9" not in text
        assert "±" not in text
        assert "0/1" not in text
        assert "1/1" in text


def test_ranges_stand_where_an_option_is_swept():
    plain = [content(0, defense={"name": "none"}), content(1, defense={"name": "none"})]
    swept = [
        content(seed, defense=ft_sam(rho), hits=hits + 2 * seed)
        for rho, hits in ((0.5, 70), (1.0, 30), (2.0, 10))
        for seed in (0, 1)
    ]
    rows = curves.with_ranges(rows_of(*plain, *swept))
    # means 71, 31 and 11 of 80
    assert [row.ranges for row in rows[1:]] == [
        {"defense.rho": {"clean_accuracy": 0, "attack_success_rate": pytest.approx(60 / 80)}}
    ] * 3
    heads, *cells = read_markdown(tables.table(rows, "markdown"))
    assert heads[-2:] == ["ACC over ρ", "ASR over ρ"]
    assert [line[-2:] for line in cells] == [["–", "–"]] + [["0.0", "75.0"]] * 3
    lines = list(csv.DictReader(io.StringIO(tables.table(rows, "csv"))))
    assert [line["attack_success_rate_range_over_defense.rho"] for line in lines] == [
        "",
        "0.75",
        "0.75",
        "0.75",
    ]
    assert "Over ρ: largest less smallest of the means over its values (points)." in tables.table(
        rows, "markdown"
    )
    assert not any(row.ranges for row in curves.with_ranges(rows[:3]))
