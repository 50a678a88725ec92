"""Trigger inversion: the planted backdoor's target and place, a clean network, how the search moves, bad input."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
from quick import quick_jit

from bdjax import models
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.defenses import _inversion
from bdjax.defenses._inversion import Inverted, Settings, invert, of_preset

KEY = jax.random.key(0)
SETTINGS = Settings(
    rounds=100, batch_size=10, steps=2, at_once=20, learning_rate=0.2, wait=2, success=0.9
)


def inverted(variables, seed: int = 0) -> Inverted:
    return invert(jax.random.key(seed), planted.MODEL, variables, planted.holdout(), SETTINGS)


@pytest.fixture(scope="module")
def backdoored() -> Inverted:
    return inverted(planted.variables())


@pytest.fixture(scope="module")
def clean() -> Inverted:
    variables = planted.variables()
    kernel = variables["params"]["linear"]["kernel"]
    variables["params"]["linear"]["kernel"] = kernel.at[0].set(0)
    return inverted(variables)


def test_the_target_has_by_far_the_smallest_trigger_and_it_is_the_patch(backdoored):
    norm, target = backdoored.norm, planted.TARGET
    assert norm[target] < 5 < 20 < np.delete(norm, target).min()
    assert backdoored.success[target] == 1
    rows, columns = np.nonzero(backdoored.mask[target] > 0.2)
    assert np.ptp(rows) == np.ptp(columns) == 1
    assert len(rows) == 4
    assert backdoored.pattern[target][rows, columns].mean() > 0.9  # and white


def test_the_classes_of_a_clean_network_need_triggers_of_about_the_same_size(clean):
    assert clean.norm.min() > 0.8 * clean.norm.max() > 5
    assert (clean.success >= 0.8).all()
    assert clean.found.all()


def test_what_is_returned_is_what_was_measured(backdoored):
    image, label, _ = planted.holdout()
    np.testing.assert_allclose(backdoored.mask.sum((1, 2)), backdoored.norm, rtol=1e-5)
    for target in range(3):
        mask, others = backdoored.mask[target][..., None], image[label != target] / 255
        x = jnp.asarray((1 - mask) * others + mask * backdoored.pattern[target], jnp.float32)
        answer = planted.MODEL.apply(planted.variables(), x)[0].argmax(-1)
        assert float((answer == target).mean()) == pytest.approx(backdoored.success[target])


def test_the_key_decides_and_neither_network_nor_numbers_compile_again(backdoored, clean):
    programs = _inversion._program()._cache_size()
    again, other = inverted(planted.variables()), inverted(planted.variables(), seed=1)
    jax.tree.map(np.testing.assert_array_equal, again, backdoored)
    assert (other.mask != backdoored.mask).any()
    short = dataclasses.replace(SETTINGS, rounds=2, learning_rate=0.1)
    invert(KEY, planted.MODEL, planted.variables(), planted.holdout(), short)
    assert _inversion._program()._cache_size() == programs


def test_a_search_that_ends_where_it_began_has_found_nothing():
    short = dataclasses.replace(SETTINGS, rounds=1, learning_rate=1e-3)
    found = invert(KEY, planted.MODEL, planted.variables(), planted.holdout(), short)
    pixels = found.mask[0].size
    assert (
        found.success >= SETTINGS.success
    ).any()  # a mask of nearly all works, and is no finding
    assert not found.found.any()
    np.testing.assert_array_equal(found.size, pixels)


def test_rows_that_are_not_valid_do_not_count(backdoored):
    image, label, valid = planted.holdout()
    more = planted.holdout(1)
    padded = more._replace(
        input=np.concatenate([image, 255 - more.input]),
        label=np.concatenate([label, more.label + 2]),
        valid=np.append(valid, False),
    )
    found = invert(KEY, planted.MODEL, planted.variables(), padded, SETTINGS)
    jax.tree.map(np.testing.assert_array_equal, found, backdoored)


judged = quick_jit(_inversion._judged)


def searching(**changed) -> _inversion._Search:
    """A search among three classes: one just works, one just fails, one has ended."""
    trigger = _inversion._Trigger(jnp.zeros((3, 2, 2)), jnp.zeros((3, 2, 2, 1)))
    no = jnp.zeros(3, bool)
    start = _inversion._Search(
        number=jnp.int32(7),
        at=trigger,
        moments=(),
        weight=jnp.ones(3),
        streak=jnp.array([4, -4, 4]),
        raised=jnp.array([False, True, True]),
        lowered=jnp.array([True, False, True]),
        best=trigger,
        norm=jnp.full(3, 3.0),
        waited=jnp.array([24, 24, 30]),
        found=~no,
        ended=jnp.array([False, False, True]),
    )
    return start._replace(**changed)


def test_the_weight_moves_after_five_rounds_of_a_kind_and_the_best_is_the_least_that_works():
    seen = _inversion._Trigger(jnp.full((3, 2, 2), -1.0), jnp.ones((3, 2, 2, 1)))
    after = judged(searching(), seen, jnp.array([0.98, 0.97, 1.0]), Settings())
    np.testing.assert_allclose(after.weight, [2, 2**-1.5, 1], rtol=1e-6)
    assert after.streak.tolist() == [0, 0, -1]
    least = 4 * 0.1192029
    np.testing.assert_allclose(after.norm, [least, 3, 3], rtol=1e-5)
    assert after.best.mask[:, 0, 0].tolist() == [-1, 0, 0]
    assert after.waited.tolist() == [0, 25, 31]
    assert after.ended.tolist() == [False, True, True]  # the second has waited, and moved both ways


def test_a_slightly_smaller_mask_is_kept_and_waited_on():
    seen = _inversion._Trigger(jnp.full((3, 2, 2), 0.0), jnp.ones((3, 2, 2, 1)))
    start = searching(norm=jnp.full(3, 2.01))  # the mask seen has 2, which is 0.5 % less
    after = judged(start, seen, jnp.ones(3), Settings())
    assert after.norm[0] == 2
    assert after.waited[0] == 25
    assert after.best.pattern[0, 0, 0, 0] == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"valid": np.zeros(30, bool)}, "two classes or more, got 0 images of 0"),
        ({"label": np.ones(30, np.int32)}, "two classes or more, got 30 images of 1"),
        ({"label": np.arange(30, dtype=np.int32)}, "labels from 0 to 2, got 0 to 29"),
        ({"input": np.zeros((30, 8, 8, 1), np.uint8)}, r"\(8, 8, 3\), got \(8, 8, 1\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(changed, message):
    split = planted.holdout()._replace(**changed)
    with pytest.raises(InputError, match=message):
        invert(KEY, planted.MODEL, planted.variables(), split, SETTINGS)


def test_a_network_of_one_class_is_refused():
    model = models.create("small_cnn", image_spec("one", (8, 8, 3), 1, (0.0,) * 3, (1.0,) * 3))
    with pytest.raises(InputError, match="model must have two classes or more, got 1"):
        invert(KEY, model, {}, planted.holdout(), SETTINGS)


def test_a_network_without_numbers_is_refused(backdoored):
    broken = jax.tree.map(lambda x: x * jnp.nan, planted.variables())
    with pytest.raises(InputError, match="finite logits"):
        inverted(broken)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rounds": 0}, "rounds must be 1 or more, got 0"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"factor": 1.0}, "factor must be above 1, got 1.0"),
        ({"success": 1.5}, "success must lie between 0 and 1"),
        ({"start": 1.0}, "start must lie between 0 and 1, and be neither"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(of_preset("quick_look"), **changed)


def test_an_unknown_preset_is_refused():
    with pytest.raises(InputError, match="preset must be one of quick_look, paper; got 'papers'"):
        of_preset("papers")
