"""Known answers: the four corners pixel by pixel, and the ascent on a linear network in NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import Linear
from quick import quick_jit

from bdjax import attacks, poison
from bdjax.attacks import AllToOne
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.types import Spec, Split

KEY = jax.random.key(0)
SPEC = image_spec("two", (8, 8, 1), 2, (0.0,), (1.0,))
LEFT, RIGHT = ("+--", "-+-", "+-+"), ("--+", "-+-", "+-+")


def spec_of(side: int, channels: int = 3) -> Spec:
    return image_spec("known", (side, side, channels), 10, (0.5,) * channels, (0.25,) * channels)


def cells(rows) -> np.ndarray:
    return np.array([[sign == "+" for sign in row] for row in rows], np.float32)[..., None]


def with_corners(image: np.ndarray, cell: int = 1) -> np.ndarray:
    """Replace the corners of images by hand."""
    image, size = image.copy(), 3 * cell
    left, right = (np.kron(cells(rows), np.ones((cell, cell, 1))) for rows in (LEFT, RIGHT))
    for rows in (np.s_[:size], np.s_[-size:]):
        image[..., rows, :size, :], image[..., rows, -size:, :] = left, right
    return image


@pytest.mark.parametrize(("side", "cell"), [(8, 1), (28, 1), (32, 1), (64, 2)])
def test_black_and_white_cells_in_the_four_corners(side, cell):
    trigger = attacks.create("lc").trigger
    image = np.full((side, side, 3), 0.3, np.float32)
    made = trigger.apply(KEY, trigger.init(KEY, spec_of(side)), jnp.asarray(image))
    np.testing.assert_array_equal(made, with_corners(image, cell))
    assert (np.asarray(made) != image).all(-1).sum() == 36 * cell**2


def test_below_1_the_amplitude_is_added():
    trigger = attacks.create("lc", amplitude=32 / 255).trigger
    image = np.full((32, 32, 1), 100 / 255, np.float32)
    made = (
        np.asarray(trigger.apply(KEY, trigger.init(KEY, spec_of(32, 1)), jnp.asarray(image))) * 255
    )
    np.testing.assert_allclose(
        made[:3, :3, 0], [[132, 68, 68], [68, 132, 68], [132, 68, 132]], atol=1e-3
    )
    np.testing.assert_allclose(made[3:-3], 100, atol=1e-3)


def test_corners_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="images of 6 × 6 pixels or more, got 5 × 5"):
        attacks.create("lc").trigger.init(KEY, spec_of(5))


def crafted(steps: int, epsilon: float, target: int = 1):
    """Return a surrogate, a split of gray and random images, and what poisoning all of the target class makes of it."""
    model = Linear(SPEC)
    attack = attacks.create(
        "lc",
        label_map=AllToOne(target),
        epsilon=epsilon,
        step_size=0.01,
        steps=steps,
        target_class_rate=1.0,
        model=model,
    )
    surrogate = model.init(jax.random.key(5))
    image = np.random.default_rng(0).uniform(size=(10, *SPEC.shape)).astype(np.float32)
    split = Split(image, np.arange(10, dtype=np.int32) % 2, np.ones(10, bool))
    state = attack.trigger.init(KEY, SPEC)
    state, info = attack.trigger.fit(KEY, model, surrogate, state, split)
    assert info.gradient_evaluations == 0
    return (
        surrogate,
        split,
        attack,
        state,
        quick_jit(poison.poison_train)(KEY, attack, state, split),
    )


@pytest.mark.parametrize(
    ("steps", "epsilon", "moved"), [(0, 0.1, 0.0), (3, 0.1, 0.03), (20, 0.1, 0.1)]
)
@pytest.mark.parametrize("target", [0, 1])
def test_the_ascent_on_a_linear_network_by_hand(steps, epsilon, moved, target):
    """The loss of two linear classes has the gradient p (w_other − w_target), whose signs are everywhere the same."""
    surrogate, split, _, _, poisoned = crafted(steps, epsilon, target)
    first, last = (
        np.asarray(surrogate["params"][name]["kernel"], np.float64) for name in ("z", "a")
    )
    slope = (first @ (last[:, 1 - target] - last[:, target])).reshape(SPEC.shape)
    expected = np.clip(split.input + moved * np.sign(slope), 0, 1)
    rows = split.label == target
    np.testing.assert_allclose(
        poisoned.visible.input[rows], with_corners(expected)[rows], atol=1e-5
    )
    np.testing.assert_array_equal(poisoned.visible.input[~rows], split.input[~rows])
    np.testing.assert_array_equal(poisoned.visible.label, split.label)


def test_the_state_keeps_its_structure_when_the_surrogate_comes_in():
    surrogate, _, attack, state, _ = crafted(1, 0.1)
    fresh = attack.trigger.init(KEY, SPEC)
    assert jax.tree.structure(fresh) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, state.surrogate, surrogate)
    alone = attacks.create("lc").trigger
    assert jax.tree.leaves(alone.init(KEY, SPEC).surrogate) == []
    left, _ = alone.fit(KEY, Linear(SPEC), surrogate, alone.init(KEY, SPEC), crafted(0, 0.1)[1])
    assert jax.tree.leaves(left.surrogate) == []


def test_at_test_time_there_are_the_corners_alone():
    _, split, attack, state, _ = crafted(20, 0.1)
    test = poison.poison_test(KEY, attack, state, split)
    np.testing.assert_array_equal(test.visible.input, with_corners(split.input))


def test_epsilon_may_be_swept():
    _, split, attack, state, _ = crafted(20, 0.1)
    sizes = jnp.array([0.02, 0.05])
    stacked = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * 2), attack)
    stacked = dataclasses.replace(
        stacked, trigger=dataclasses.replace(stacked.trigger, epsilon=sizes)
    )
    made = quick_jit(jax.vmap(poison.poison_train, (None, 0, None, None)))(
        KEY, stacked, state, split
    )
    middle = np.abs(np.asarray(made.visible.input) - split.input)[:, split.label == 1, :, 3:5]
    np.testing.assert_allclose(middle.max((1, 2, 3, 4)), sizes, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "poisoned"), [({}, 16), ({"poison_rate": 0.1}, 10), ({"poison_rate": 0.4}, 20)]
)
def test_80_percent_of_the_target_class_or_a_share_of_all(options, poisoned):
    attack = attacks.create("lc", **options)
    split = Split(
        np.zeros((100, 8, 8, 1), np.uint8), np.arange(100, dtype=np.int32) % 5, np.ones(100, bool)
    )
    made = poison.poison_train(KEY, attack, attack.trigger.init(KEY, SPEC), split)
    assert made.is_poisoned.sum() == poisoned
    assert (split.label[np.asarray(made.is_poisoned)] == 0).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"amplitude": 1.1}, "amplitude must lie between 0 and 1"),
        ({"epsilon": -0.1}, "epsilon must be 0 or more"),
        ({"steps": -1}, "steps must be 0 or more"),
        ({"target_class_rate": 2.0}, "target_class_rate must lie between 0 and 1"),
    ],
)
def test_lc_refuses(options, words):
    with pytest.raises(InputError, match=words):
        attacks.create("lc", **options)
