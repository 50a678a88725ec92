"""The section of metrics in a record: description, counts, values and rating, as the report reads them."""

import json
from typing import NamedTuple

import numpy as np
from made_up import content

from bdjax.runs import record, record_format
from bdjax.tasks.metrics import MULTI_LABEL, SINGLE_LABEL
from bdjax.types import Metrics


class Counted(NamedTuple):
    """What a task might count of images with several classes."""

    mean_average_precision: np.float32
    clean_total: np.int32
    attack_hits: np.int32
    attack_total: np.int32

    @property
    def attack_success_rate(self):
        return self.attack_hits / self.attack_total


def counted(clean, hits, restored):
    return Metrics(*map(np.int32, (clean, 100, hits, restored, 80)))


def test_a_section_is_what_the_report_reads():
    section = record.metrics_between(SINGLE_LABEL, counted(99, 80, 0), counted(90, 4, 60))
    written = {**content(), "metrics": json.loads(json.dumps(section))}
    record_format.check(written, "x")
    assert record_format.metrics_of(written) == SINGLE_LABEL
    assert list(section) == ["description", "before", "after", "defense_effectiveness_rating"]
    assert section["after"] == content()["metrics"]["after"]


def test_a_value_that_is_no_ratio_stays_a_number():
    before, after = (
        Counted(np.float32(share), *map(np.int32, (100, hits, 80)))
        for share, hits in ((0.75, 80), (0.5, 8))
    )
    section = record.metrics_between(MULTI_LABEL, before, after, {"mean_average_precision": 0.25})
    assert section["before"]["mean_average_precision"] == 0.75
    assert section["after"] == {
        "mean_average_precision": 0.5,
        "clean_total": 100,
        "attack_hits": 8,
        "attack_total": 80,
        "attack_success_rate": 0.1,
    }
    record_format.check({**content(), "metrics": json.loads(json.dumps(section))}, "x")
    assert section["chance"] == {"mean_average_precision": 0.25}
    assert section["defense_effectiveness_rating"] == np.float32((0.9 - 0.25 + 1) / 2)
