"""Label maps: values, equality, what they refuse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import attacks
from bdjax.attacks import AllToAll, AllToOne, _label_maps
from bdjax.checks import InputError
from bdjax.types import LabelMap

LABELS = jnp.arange(4)


@pytest.mark.parametrize(
    ("label_map", "wanted"),
    [
        (AllToOne(), [0, 0, 0, 0]),
        (AllToOne(2), [2, 2, 2, 2]),
        (AllToAll(4), [1, 2, 3, 0]),
        (AllToAll(4, shift=3), [3, 0, 1, 2]),
    ],
)
def test_values(label_map, wanted):
    assert isinstance(label_map, LabelMap)
    mapped = label_map(LABELS)
    assert mapped.tolist() == wanted
    assert mapped.dtype == LABELS.dtype
    np.testing.assert_array_equal(jax.vmap(label_map)(LABELS), wanted)  # one label at a time


def test_equal_maps_are_one_static_value():
    assert AllToOne(1) == AllToOne(1) != AllToOne(2)
    assert len({AllToAll(4), AllToAll(4), AllToAll(5)}) == 2


def test_by_name(spec):
    assert attacks.create("badnets", target_label=3).label_map == AllToOne(3)
    assert attacks.create("badnets", label_map="all_to_all", spec=spec).label_map == AllToAll(spec.num_classes)
    assert attacks.create("badnets", label_map=AllToAll(7, 2)).label_map == AllToAll(7, 2)
    assert set(_label_maps.NAMES) == {"all_to_one", "all_to_all"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "all_to_non"}, r"label_map must be one of .*; got 'all_to_non' \(did you mean 'all_to_one'\?\)"),
        ({"target_label": -1}, "target_label must be 0 or more, got -1"),
        ({"target_label": 4, "num_classes": 4}, "target_label must be below 4, the number of classes; got 4"),
        ({"name": "all_to_all"}, "label_map 'all_to_all' needs the number of classes"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(InputError, match=words):
        _label_maps.create(**arguments)
