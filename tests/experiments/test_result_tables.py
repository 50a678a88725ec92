"""The tables in `experiments/results` are those that the records and benchmarks beside them make."""

import sys
from pathlib import Path

import pytest

from bdjax import report

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import result_tables as made


def tables() -> dict[str, str]:
    """Return every table whose records are in the repository."""
    found = made.benchmark_tables()
    found["cifar table"] = made.holdout_tables(
        report.load([made.RESULTS / "cifar10_defenses.jsonl"]), smoothness=True
    )
    rows = report.summarize(report.load([made.RESULTS / "cifar10_attacks.jsonl"]), stealth=True)
    found["cifar attack table"] = made.attack_table(rows)
    found["cifar attack defenses"] = made.attack_defenses(rows)
    return found


def test_tables_are_those_of_the_records_beside_them():
    for name, text in tables().items():
        page = made.PAGES[name].read_text(encoding="utf-8")
        assert made.replaced(page, name, text) == page, (
            f"{name}: write it anew with experiments/result_tables.py"
        )


def test_every_table_has_its_place():
    for name, page in made.PAGES.items():
        text = page.read_text(encoding="utf-8")
        assert "ours instead" in made.replaced(text, name, "ours instead")


def test_a_page_without_the_marks_is_refused():
    with pytest.raises(
        SystemExit, match=r"speed\.md must have one pair of marks for 'bench table', found 0"
    ):
        made.replaced("nothing", "bench table", "text")
