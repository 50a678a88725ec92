"""The one table of metrics: it says what the task counts, and can be read back from a record."""

import numpy as np
import pytest

from bdjax import evaluate
from bdjax.tasks.metrics import (
    ATTACK,
    RATING,
    RESTORED,
    SINGLE_LABEL,
    UTILITY,
    described,
    effectiveness,
    first,
    from_text,
    names,
    of_roles,
    to_text,
    totals,
)
from bdjax.types import Metrics


def test_single_labels_are_counted_under_the_names_of_the_table():
    counted = Metrics(np.int32(90), np.int32(100), np.int32(4), np.int32(60), np.int32(80))
    for metric in SINGLE_LABEL:
        if metric.role != RATING:
            assert getattr(counted, metric.name) == getattr(counted, metric.part) / getattr(
                counted, metric.total
            )
    assert totals(SINGLE_LABEL) == ("clean_total", "attack_total")
    assert [metric.head for metric in SINGLE_LABEL] == ["ACC", "ASR", "RA", "DER"]


def test_a_description_is_read_back():
    assert described([metric.plain() for metric in SINGLE_LABEL]) == SINGLE_LABEL
    assert from_text(to_text(SINGLE_LABEL)) == SINGLE_LABEL
    later = {**SINGLE_LABEL[0].plain(), "unit": "share"}
    assert described([later]) == SINGLE_LABEL[:1]
    bare = {key: later[key] for key in ("name", "head", "words", "role")}
    assert described([bare])[0].brief == "clean accuracy"


def test_roles_find_the_first_of_a_kind():
    second = SINGLE_LABEL[0].plain() | {"name": "recall"}
    metrics = (*SINGLE_LABEL, *described([second]))
    assert first(metrics, UTILITY) is SINGLE_LABEL[0]
    assert names(of_roles(metrics, RATING, UTILITY)) == (
        "defense_effectiveness_rating",
        "clean_accuracy",
    )
    assert of_roles(SINGLE_LABEL[:2], RESTORED, ATTACK) == SINGLE_LABEL[1:2]


@pytest.mark.parametrize(
    ("attack_drop", "utility_drop", "rating"),
    [(1, 0, 1), (0, 0, 0.5), (0.5, 0.25, 0.625), (-1, -1, 0.5), (0, 1, 0)],
)
def test_the_rating_by_hand(attack_drop, utility_drop, rating):
    assert effectiveness(attack_drop, utility_drop) == rating
    before, after = (
        Metrics(u, 1, a, 0, 1) for u, a in ((1.0, 1.0), (1 - utility_drop, 1 - attack_drop))
    )
    assert evaluate.defense_effectiveness_rating(before, after) == rating
