"""What every attack keeps to. The folder is the list: a new file is tested as soon as it is there."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from quick import quick_jit
from small_attacks import FACTS, create, facts

from bdjax import attacks, models, poison, registry
from bdjax.attacks import AllToOne
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.types import Attack, LabelMap, Split, Trigger

KEY = jax.random.key(7)
RATES = (0.0, 0.1, 0.5, 1.0)


@pytest.fixture(params=attacks.names())
def name(request) -> str:
    return request.param


TRACES: list[str] = []  # one entry per trace


def _poison_train(key, attack, state, split):
    TRACES.append("poison_train")
    return poison.poison_train(key, attack, state, split)


poison_train = quick_jit(_poison_train)
poison_test = quick_jit(poison.poison_test)


def as_split(split: Split, dtype: str) -> Split:
    return split if dtype == "uint8" else split._replace(input=np.float32(split.input) / 255)


def expected_count(name: str, attack: Attack, split: Split) -> int:
    classes = (0,) if attack.clean_label else facts(name).candidates
    candidates = split.valid & np.isin(split.label, classes)
    of = candidates if attack.rate_of == "candidates" else split.valid
    return min(round(attack.poison_rate * int(of.sum())), int(candidates.sum()))


def assert_close_images(actual, expected) -> None:
    """Equal up to float32 rounding, which may move a uint8 image by one level."""
    tolerance = 1 if actual.dtype == jnp.uint8 else 1e-6
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), np.asarray(expected, np.float64), rtol=0, atol=tolerance
    )


def test_is_an_attack(name, spec):
    attack, _ = create(name, spec)
    assert isinstance(attack, Attack)
    assert isinstance(attack.trigger, Trigger)
    assert isinstance(attack.label_map, LabelMap)
    assert attack.clean_label is facts(name).clean_label
    assert attack.test_trigger is None or isinstance(attack.test_trigger, Trigger)


def test_every_float_is_a_leaf(name, spec):
    def floats(config: Any) -> Iterator[float]:
        for value in (getattr(config, field.name) for field in dataclasses.fields(config)):
            if isinstance(value, float):
                yield value
            for part in value if isinstance(value, tuple) else (value,):
                if dataclasses.is_dataclass(part):
                    yield from floats(part)

    attack, _ = create(name, spec)
    assert sorted(jax.tree.leaves(attack)) == sorted(floats(attack))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_keeps_shape_type_and_range(name, spec, split, dtype):
    attack, state = create(name, spec, poison_rate=0.5)
    given = as_split(split, dtype)
    for poisoned in (
        poison_train(KEY, attack, state, given),
        poison_test(KEY, attack, state, given),
    ):
        for array, expected in zip(poisoned.visible, given, strict=True):
            assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
        assert poisoned.visible.input.min() >= 0
        assert poisoned.visible.input.max() <= (255 if dtype == "uint8" else 1)
        np.testing.assert_array_equal(poisoned.original_label, split.label)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_poisons_the_exact_count_and_nothing_else(name, spec, split, rate, dtype):
    attack, state = create(name, spec, poison_rate=rate)
    given = as_split(split, dtype)
    visible, original, poisoned = (
        jax.tree.map(np.asarray, part) for part in poison_train(KEY, attack, state, given)
    )
    assert poisoned.sum() == expected_count(name, attack, split)
    np.testing.assert_array_equal(visible.input[~poisoned], given.input[~poisoned])
    np.testing.assert_array_equal(visible.label[~poisoned], split.label[~poisoned])
    wanted = original if attack.clean_label else np.zeros_like(original)
    np.testing.assert_array_equal(visible.label[poisoned], wanted[poisoned])
    changed = (visible.input[poisoned] != given.input[poisoned]).any((1, 2, 3))
    assert changed.all() or not facts(name).visible, "a trigger that changes nothing"


def test_same_key_same_bits_other_key_other_rows(name, spec, split):
    attack, state = create(name, spec, poison_rate=0.5)
    first, again, other = (
        poison_train(key, attack, state, split) for key in (KEY, KEY, jax.random.key(8))
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    if not facts(name).from_one_class:  # else all of them are taken
        assert (first.is_poisoned != other.is_poisoned).any()


def test_rows_depend_on_the_key_alone(name, spec, split):
    attack, state = create(name, spec, poison_rate=0.5)
    rows = poison_train(KEY, attack, state, split).is_poisoned
    other_images = split._replace(input=255 - split.input)
    np.testing.assert_array_equal(poison_train(KEY, attack, state, other_images).is_poisoned, rows)
    other_state = attack.trigger.init(jax.random.key(1), spec)
    np.testing.assert_array_equal(poison_train(KEY, attack, other_state, split).is_poisoned, rows)
    if not attack.clean_label and len(facts(name).candidates) == 4:
        twin, twin_state = create("badnets", spec, poison_rate=0.5)
        np.testing.assert_array_equal(poison_train(KEY, twin, twin_state, split).is_poisoned, rows)


def test_a_larger_rate_only_adds_rows(name, spec, split):
    sets = []
    for rate in RATES:
        attack, state = create(name, spec, poison_rate=rate)
        sets.append(poison_train(KEY, attack, state, split).is_poisoned)
    for smaller, larger in itertools.pairwise(sets):
        assert (smaller <= larger).all()


def test_jit_equals_eager(name, spec, split):
    attack, state = create(name, spec, poison_rate=0.5)
    for compiled, eager in ((poison_train, poison.poison_train), (poison_test, poison.poison_test)):
        ours, expected = compiled(KEY, attack, state, split), eager(KEY, attack, state, split)
        assert_close_images(ours.visible.input, expected.visible.input)
        jax.tree.map(
            np.testing.assert_array_equal,
            (ours.visible[1:], ours.original_label, ours.is_poisoned),
            (expected.visible[1:], expected.original_label, expected.is_poisoned),
        )


def test_vmap_over_the_rate_equals_a_loop(name, spec, split):
    points = [create(name, spec, poison_rate=rate) for rate in RATES]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(attack for attack, _ in points))
    swept = quick_jit(jax.vmap(poison.poison_train, (None, 0, None, None)))(
        KEY, stacked, points[0][1], split
    )
    for index, (attack, state) in enumerate(points):
        single = poison_train(KEY, attack, state, split)
        at = jax.tree.map(lambda array, index=index: array[index], swept)
        assert_close_images(at.visible.input, single.visible.input)
        np.testing.assert_array_equal(at.visible.label, single.visible.label)
        np.testing.assert_array_equal(at.is_poisoned, single.is_poisoned)


def test_a_changed_float_traces_nothing_anew(name, spec, split):
    attack, state = create(name, spec)
    poison_train(KEY, attack, state, split)
    before = len(TRACES)
    poison_train(KEY, jax.tree.map(lambda leaf: leaf / 2, attack), state, split)
    poison_train(KEY, create(name, spec)[0], state, split)  # an equal attack, made anew
    assert len(TRACES) == before


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (64, 64, 3)])
def test_defaults_run_at_the_usual_sizes(name, shape):
    spec = image_spec("usual", shape, 10, (0.5,) * shape[2], (0.25,) * shape[2])
    attack = attacks.create(name, spec=spec)
    state = attack.trigger.init(KEY, spec)
    image = np.random.default_rng(0).integers(0, 256, (4, *shape), dtype=np.uint8)
    split = Split(image, np.arange(4, dtype=np.int32), np.ones(4, bool))

    test = jax.eval_shape(poison.poison_test, KEY, attack, state, split)
    assert test.visible.input.shape == image.shape
    if shape == (32, 32, 3):  # once: the others would be compiled for the same answer
        test = poison_test(KEY, attack, state, split)
        assert (test.visible.input != image).any() or not facts(name).visible


@pytest.mark.parametrize(
    ("shape", "classes", "learns"),
    [
        ((1, 1, 1), 2, True),
        ((2, 2, 3), 4, False),
        ((3, 3, 1), 2, False),
        ((3, 5, 2), 4, True),
        ((5, 1, 1), 4, False),
    ],
)
def test_every_shape_works_or_is_refused_in_one_sentence(name, shape, classes, learns):
    """All that an attacker does, from the fresh trigger to a step of training it; nothing is compiled."""
    spec = image_spec("tiny", shape, classes, (0.5,) * shape[2], (0.25,) * shape[2])
    model = models.create("small_cnn", spec, width=2)
    label = jnp.arange(8) % classes
    stored = Split(jnp.zeros((8, *shape), jnp.uint8), label, jnp.ones(8, bool))
    worked_on = stored._replace(input=jnp.zeros((8, *shape)))

    def plant(key):
        attack, state = create(name, spec)
        trigger, variables = attack.trigger, model.init(key)
        if learns and "fit" in trigger.hooks:
            batch = stored if trigger.batch_size is None else worked_on
            state, _ = trigger.fit(key, model, variables, state, batch)
        if learns and "learn" in trigger.hooks:
            state, _ = trigger.learn(key, model, variables, state, worked_on)
        if learns and "cover" in trigger.hooks:
            assert trigger.cover(key, state, worked_on).shape == worked_on.input.shape
        train = poison.poison_train(key, attack, state, stored)
        return train.visible.input, poison.poison_test(key, attack, state, worked_on).visible.input

    if facts(name).least is None:
        try:
            train, test = jax.eval_shape(plant, KEY)
        except InputError:
            return
    elif (
        min(shape[:2]) < facts(name).least
        or (name == "cba" and classes == 2)
        or (name == "wanet" and shape[:2] == (1, 1))
        or (name == "sig" and shape[1] <= 2 * facts(name).options["frequency"])
    ):
        with pytest.raises(InputError, match=r"must|need"):
            jax.eval_shape(plant, KEY)
        return
    else:
        train, test = jax.eval_shape(plant, KEY)
    assert (train.shape, train.dtype) == (stored.input.shape, jnp.uint8)
    assert (test.shape, test.dtype) == (worked_on.input.shape, jnp.float32)


def test_state_survives_a_checkpoint(name, spec, tmp_path):
    _, state = create(name, spec)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", {"trigger": state})
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(
            tmp_path / "state", jax.eval_shape(lambda: {"trigger": state})
        )["trigger"]
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_state_depends_on_its_key_alone(name, spec):
    attack, state = create(name, spec)
    jax.tree.map(np.testing.assert_array_equal, state, attack.trigger.init(jax.random.key(0), spec))


def test_the_trigger_draws_from_the_key_only_if_it_says_so(name, spec, split):
    attack, state = create(name, spec)
    one, other = (
        poison_test(key, attack, state, split).visible.input for key in (KEY, jax.random.key(8))
    )
    differ = bool((one != other).any())
    assert facts(name).uses_key in (differ, None)


@pytest.mark.parametrize(
    ("label_map", "counted"), [(AllToOne(3), 36), ("all_to_all", 48)], ids=["to_one", "to_all"]
)
def test_the_test_set_counts_rows_whose_label_changes(name, spec, split, label_map, counted):
    only_one = len(facts(name).candidates) == 1
    if label_map == "all_to_all" and (facts(name).clean_label or only_one):
        with pytest.raises(InputError, match="label_map must be 'all_to_one'"):
            create(name, spec, label_map=label_map)
        return
    counted = 12 if only_one else counted
    attack, state = create(name, spec, label_map=label_map)
    test = poison_test(KEY, attack, state, split)
    assert test.visible.valid.sum() == counted
    wanted = attack.label_map(jnp.asarray(split.label))
    np.testing.assert_array_equal(test.visible.valid, wanted != split.label)
    np.testing.assert_array_equal(test.visible.label, wanted)


def test_padding_is_never_poisoned_nor_counted(name, spec, split):
    attack, state = create(name, spec, poison_rate=0.5)
    padded = split._replace(valid=np.arange(48) < 30)
    train = poison_train(KEY, attack, state, padded)
    assert train.is_poisoned.sum() == expected_count(name, attack, padded)
    assert not train.is_poisoned[30:].any()
    np.testing.assert_array_equal(train.visible.input[30:], split.input[30:])
    np.testing.assert_array_equal(train.visible.valid, padded.valid)
    test = poison_test(KEY, attack, state, padded)
    assert not test.visible.valid[30:].any()
    assert not test.is_poisoned[30:].any()


def test_a_wrong_option_is_named_with_the_nearest_one(name, spec):
    with pytest.raises(
        InputError, match=rf"{name} has no option 'poison_rat' \(did you mean 'poison_rate'\?\)"
    ):
        attacks.create(name, spec=spec, poison_rat=0.1)


def test_a_wrong_name_is_answered_with_the_nearest_one(name):
    with pytest.raises(InputError, match=rf"no '{name}x' in attacks \(did you mean '{name}'\?\)"):
        attacks.create(name + "x")


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_a_rate_outside_0_to_1_is_refused(name, spec, rate):
    with pytest.raises(InputError, match="poison_rate must"):
        create(name, spec, poison_rate=rate)


def test_is_documented(name):
    factory = registry.factory("bdjax.attacks", name)
    text = inspect.getdoc(factory) or ""
    assert "Args:" in text
    assert "Raises:" in text
    for parameter in inspect.signature(factory).parameters:
        assert f"  {parameter}: " in text, f"{parameter} is not explained"
    assert inspect.getdoc(inspect.getmodule(factory))


def test_facts_name_attacks_that_exist():
    assert set(FACTS) <= set(attacks.names())
