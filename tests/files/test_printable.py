"""Texts that somebody else wrote do nothing but stand where they are printed."""

from __future__ import annotations

import csv
import io
import re

import pytest
from made_up import content, write

from bdjax import report
from bdjax.files.printable import printable
from bdjax.report import page, paired, tables
from bdjax.report.grid import FORMATS

HOSTILE = "x\x1b]0;title\x07\x9b2J\r\n\t\u202ey\u2028z"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ρ=2 · ±", "plain ρ=2 · ±"),
        ("a\x1b[31m", r"a\x1b[31m"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\u202eabc", r"\u202eabc"),
        ("\ud800", r"\ud800"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("", ""),
    ],
)
def test_only_what_is_no_character_is_escaped(text, shown):
    assert printable(text) == shown


def test_long_texts_are_cut_and_stay_different():
    one, other = (printable("a" * 1000 + end, 20) for end in "bc")
    assert len(one) == len(other) == 20 + 1 + 6
    assert one != other
    assert printable("a" * 20, 20) == "a" * 20


@pytest.mark.parametrize("style", FORMATS)
def test_a_hostile_name_keeps_a_table_in_its_lines(tmp_path, style):
    record = content(attack={"name": HOSTILE, "note": "b" * 5000})
    rows = report.summarize(
        report.load([write(tmp_path, record, content(attack={"name": HOSTILE, "note": "c"}))])
    )
    text = tables.table(rows, style)
    assert not re.search(r"[^\S \n]|[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", text)
    if style == "csv":
        lines = list(csv.reader(io.StringIO(text)))
        assert len({len(line) for line in lines}) == 1
        assert len(lines) == 3
    else:
        assert max(map(len, text.splitlines())) < 1000
        assert r"\x1b]0;title" in text.replace(r"\textbackslash{}", "\\").replace("\\\\", "\\")


def test_a_hostile_name_is_text_in_the_page_and_in_a_comparison(tmp_path):
    runs = [content(attack={"name": HOSTILE}, defense={"name": name}) for name in ("ft", "nft")]
    runs[0]["data"]["class_names"][0] = HOSTILE
    records = report.load([write(tmp_path, *runs)])
    text = page.html(records, tmp_path)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e]", text)
    assert "\x1b" not in paired.table(paired.compare(records, "ft", "nft"))
    assert "\x1b" not in tables.table(report.summarize(records))
