"""Label maps: values, equality, what they refuse."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import attacks
from bdjax.attacks import AddLabel, AllToAll, AllToOne, OneToOne, _label_maps
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.tasks.single_label import SingleLabel
from bdjax.types import LabelMap

PETS = image_spec("pets", (8, 8, 3), 4, (0.5,) * 3, (0.25,) * 3, ("ant", "café", "cat", "dog"))
COUNTED = image_spec("counted", (8, 8, 3), 4, (0.5,) * 3, (0.25,) * 3, ("1", "2", "3", "10"))
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


def test_a_class_joins_every_set():
    sets = jnp.array([[0, 0, 1], [0, 1, 0], [0, 0, 0]], bool)
    mapped = AddLabel(1)(sets)
    assert mapped.tolist() == [[False, True, True], [False, True, False], [False, True, False]]
    assert mapped.dtype == bool
    np.testing.assert_array_equal(jax.vmap(AddLabel(1))(sets), mapped)
    assert attacks.target_class(AddLabel(2), PETS) == "cat"
    assert _label_maps.create("add_label", "dog", PETS) == AddLabel(3)


@dataclasses.dataclass(frozen=True)
class Several(SingleLabel):
    """A task in which an input has a set of classes."""

    labels = "set"


SCENES = dataclasses.replace(PETS, name="scenes", task=Several(4, PETS.class_names))


@pytest.mark.parametrize(
    ("label_map", "spec", "words"),
    [
        (
            "all_to_one",
            SCENES,
            r"label_map must map a set of classes to another, .* of scenes; got AllToOne\(",
        ),
        (
            "all_to_all",
            SCENES,
            "label_map must map a set of classes to another, as 'add_label' does",
        ),
        (OneToOne(0, 1), SCENES, "label_map must map a set of classes to another"),
        (
            "add_label",
            PETS,
            r"label_map must map a class to a class, as 'all_to_one' .* of pets; got AddLabel\(",
        ),
    ],
)
def test_a_map_for_other_labels_is_refused(label_map, spec, words):
    with pytest.raises(InputError, match=words):
        attacks.create("badnets", label_map=label_map, spec=spec)


@pytest.mark.parametrize("name", ["badnets", "blended", "sig", "bpp", "trojan"])
def test_sets_of_classes_are_attacked_by_adding_one(name):
    assert attacks.create(
        name, label_map="add_label", target_label="dog", spec=SCENES
    ).label_map == AddLabel(3)


@pytest.mark.parametrize("name", ["lf", "lc", "cba"])
def test_attacks_that_need_a_class_refuse_sets(name):
    with pytest.raises(InputError, match="label_map must"):
        attacks.create(name, label_map="add_label", spec=SCENES)


def test_a_map_of_ones_own_is_taken_for_what_it_is():
    assert attacks.create("badnets", label_map=jnp.sort, spec=SCENES).label_map is jnp.sort


def test_equal_maps_are_one_static_value():
    assert AllToOne(1) == AllToOne(1) != AllToOne(2)
    assert len({AllToAll(4), AllToAll(4), AllToAll(5)}) == 2


def test_by_name(spec):
    assert attacks.create("badnets", target_label=3).label_map == AllToOne(3)
    assert attacks.create("badnets", label_map="all_to_all", spec=spec).label_map == AllToAll(
        spec.num_classes
    )
    assert attacks.create("badnets", label_map=AllToAll(7, 2)).label_map == AllToAll(7, 2)
    assert set(_label_maps.NAMES) == {"all_to_one", "all_to_all", "add_label"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"name": "all_to_non"},
            r"label_map must be one of .*; got 'all_to_non' \(did you mean 'all_to_one'\?\)",
        ),
        ({"target_label": -1}, "target_label must be 0 or more, got -1"),
        (
            {"target_label": 4, "spec": PETS},
            "target_label must be below 4, the number of classes; got 4",
        ),
        ({"name": "all_to_all"}, "label_map 'all_to_all' needs the number of classes"),
        (
            {"target_label": "cut", "spec": PETS},
            r"target_label must be a class of pets, by number or by name \(ant, café, cat, dog\); got 'cut' "
            r"\(did you mean 'cat'\?\)",
        ),
        (
            {"target_label": "cat"},
            "target_label 'cat' is the name of a class, which needs the names",
        ),
        (
            {"target_label": 10, "spec": COUNTED},
            r"below 4, .* got 10 \(the class named '10' has the number 3\)",
        ),
        ({"target_label": True}, "target_label must be a whole number, got True"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(InputError, match=words):
        _label_maps.create(**arguments)


@pytest.mark.parametrize("name", ["café", "cafe\u0301", 1])
def test_a_target_by_name_in_either_spelling_of_unicode_or_by_number(name):
    assert attacks.create("blended", target_label=name, spec=PETS).label_map == AllToOne(1)


def test_a_target_by_name_reaches_triggers_that_are_made_for_it():
    assert attacks.create("lf", target_label="cat", spec=PETS).trigger.target_label == 2


def test_the_class_that_a_map_aims_at_has_a_name():
    assert attacks.target_class(AllToOne(2), PETS) == "cat"
    assert attacks.target_class(AllToOne(3), COUNTED) == "10"
    assert attacks.target_class(attacks.OneToOne(0, 3), PETS) == "dog"
    assert attacks.target_class(AllToAll(4), PETS) is None
    assert (
        attacks.target_class(AllToOne(2), image_spec("bare", (8, 8, 3), 4, (0.5,), (0.5,))) == "2"
    )


@pytest.mark.parametrize(
    ("number", "remark"), [(0, ""), (1, " (the class named '1' has the number 0)"), (9, "")]
)
def test_a_number_that_is_the_name_of_another_class_is_remarked(number, remark):
    assert attacks.namesake(number, COUNTED) == remark
