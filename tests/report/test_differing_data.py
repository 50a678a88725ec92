"""Records that were made of different data keep apart; what lacks a digest is no difference."""

from __future__ import annotations

import logging
from pathlib import Path

from made_up import content, ft_sam, write

from bdjax import cli, report, saved
from bdjax.report import bundle, differing_data, labels, paired, tables
from bdjax.report.curves import lines as curves
from bdjax.report.grid import FORMATS
from bdjax.report.records import Record
from bdjax.types import Metrics

A, B, C = ("a1" * 32, "b2" * 32, "c3" * 32)


def of(train, seed=0, defense=None, test=C, files=None, **options):
    """Return a record of data with these digests; none of the split whose digest is None."""
    made = content(seed, defense=defense, **options)
    digests = {"train": train, "test": test, "files": files}
    fingerprint = {key: value for key, value in digests.items() if value is not None}
    name = f"{made['run_id']}-{train}-{options}"
    return {**made, "run_id": name, "data": {**made["data"], "fingerprint": fingerprint}}


def rows_of(folder, *records):
    return report.summarize(report.load([write(folder, *records)]))


def test_records_of_other_data_have_a_row_of_their_own_and_one_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        rows = rows_of(tmp_path, of(A), of(B), of(A, 1), of(B, defense=ft_sam(2)))
    assert caplog.messages == [
        "Records of one name were made of different data (data.train_sha256 is a1a1a1a1 or b2b2b2b2); each has its own "
        "row."
    ]
    assert [(row.data, row.defense, row.n) for row in rows] == [
        ("digits train_sha256=a1a1a1a1", "none", 2),
        ("digits train_sha256=b2b2b2b2", "none", 1),
        ("digits train_sha256=b2b2b2b2", "ft_sam", 1),
    ]
    assert list(report.victims(rows)) == [
        f"badnets · digits train_sha256={digest}" for digest in (A[:8], B[:8])
    ]
    for style in FORMATS:
        assert B[:8] in tables.table(rows, style)


def test_equal_digests_are_no_difference(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        rows = rows_of(tmp_path, of(A), of(A, 1), of(A, defense=ft_sam(2)))
    assert (caplog.messages, [row.data for row in rows]) == ([], ["digits", "digits"])


def test_a_record_without_a_digest_is_no_difference(tmp_path, caplog):
    """Older records have none, or none of files."""
    bare = content(2)
    with caplog.at_level(logging.WARNING):
        (row,) = rows_of(tmp_path, of(A), of(None, 1, test=C), bare)
    assert (caplog.messages, row.n, row.data) == ([], 3, "digits")


def test_where_others_differ_a_record_without_a_digest_is_of_either(tmp_path):
    rows = rows_of(tmp_path, of(A), of(B), content(0))
    assert [row.data for row in rows] == [
        f"digits train_sha256={which}" for which in (A[:8], B[:8], "unknown")
    ]


def test_other_names_and_sizes_are_expected_to_differ(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        rows = rows_of(
            tmp_path, of(A), of(B, data={"image_size": 8}), of(C, data={"name": "cifar10"})
        )
    assert (caplog.messages, {row.data.partition("sha256")[1] for row in rows}) == ([], {""})


def test_a_data_folder_is_no_name(tmp_path):
    rows = rows_of(tmp_path, of(A, data={"data_dir": "/one"}), of(B, data={"data_dir": "/other"}))
    assert len(rows) == 2


def test_files_that_options_name_are_told_where_the_option_is(tmp_path):
    blended = {"name": "blended", "path": "cat.png"}
    other = {"name": "blended", "path": "dog.png"}
    rows = rows_of(
        tmp_path,
        of(A, attack=blended, files={"attack.path": A}),
        of(A, attack=blended, files={"attack.path": B}),
        of(A, attack=other, files={"attack.path": C}),
        of(A),
    )
    assert [row.attack for row in rows] == [
        "badnets",
        *(f"blended path=cat.png path_sha256={digest}" for digest in (A[:8], B[:8])),
        "blended path=dog.png",
    ]


def test_digests_are_shown_as_far_as_they_differ():
    near = [A[:12] + letter * 52 for letter in "de"]
    told = differing_data.told_apart([of(digest) for digest in near])
    assert [one["data.train_sha256"] for one in told] == [digest[:16] for digest in near]


def test_a_bundle_keeps_what_tells_records_apart(tmp_path):
    records = report.load([write(tmp_path / "runs", of(A), of(B))])
    rows = report.summarize(report.load([bundle.write(records, tmp_path / "records.jsonl")]))
    assert [row.data for row in rows] == [
        f"digits train_sha256={digest}" for digest in (A[:8], B[:8])
    ]


def test_pairs_share_their_data(tmp_path):
    nft = {"name": "nft"}
    records = report.load(
        [write(tmp_path, of(A, defense=ft_sam(1)), of(B, defense=ft_sam(1)), of(B, defense=nft))]
    )
    found = paired.compare(records, "ft_sam", "nft", ["clean_accuracy"])
    assert [(one.attack, one.n) for one in found.comparisons] == [
        (f"badnets · digits train_sha256={B[:8]}", 1)
    ]
    assert len(found.unpaired) == 1


def test_a_swept_option_has_a_line_for_each_data_set(tmp_path):
    swept = [of(data, defense=ft_sam(rho)) for data in (A, B) for rho in (1, 2, 4)]
    rows = rows_of(tmp_path, *swept)
    (found,) = curves.find(rows)
    assert [line.values for line in found.lines] == [(1, 2, 4)] * 2
    assert all(row.ranges["defense.rho"] for row in curves.with_ranges(rows))


def test_what_was_told_apart_stays_so_among_fewer():
    records = report.distinct([Record(Path(name), of(name * 64)) for name in "ab"])
    (row,) = report.summarize(records[:1])
    assert labels.identity(row.records[0].settings) == labels.identity(records[0].settings)


def test_the_command_prints_both(tmp_path, capsys):
    write(tmp_path, of(A), of(B))
    assert cli.main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "digits train_sha256=a1a1a1a1" in printed.out
    assert "digits train_sha256=b2b2b2b2" in printed.out


def test_a_result_of_ones_own_is_of_the_data_of_its_run(tmp_path):
    records = report.load([write(tmp_path, of(A), of(B))])
    metrics = Metrics(90, 100, 4, 60, 80)
    own = saved.with_defense(records[1], "mine", metrics)
    rows = report.summarize([records[1], own])
    assert [row.defense for row in rows] == ["none", "mine"]
    assert list(report.victims(rows)) == ["badnets"]
    assert labels.without_defense(own.settings) == labels.without_defense(records[1].settings)
