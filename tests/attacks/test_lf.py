"""Known answers: the filter in NumPy, DeepFool on linear classes in closed form, and when the search ends."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import Linear
from quick import quick_jit

from bdjax import attacks, poison
from bdjax.attacks.lf import deepfool, smooth, stretched
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.types import Attack, Spec, Split

KEY = jax.random.key(0)
SPEC = image_spec("three", (8, 8, 1), 3, (0.0,), (1.0,))


def spec_of(side: int, channels: int = 3) -> Spec:
    return image_spec("known", (side, side, channels), 10, (0.5,) * channels, (0.25,) * channels)


def filtered(image: np.ndarray, taps: int = 30, sigma: float = 6.0) -> np.ndarray:
    """Filter by hand: each axis is padded by 14 zeros before and 15 after, and each output weighs 30 inputs."""
    weight = np.exp(-0.5 * ((np.arange(taps) - (taps - 1) / 2) / sigma) ** 2)
    weight /= weight.sum()
    for axis in (0, 1):
        before = (taps - 1) // 2
        padded = np.pad(
            image, [(before, taps - 1 - before) if a == axis else (0, 0) for a in range(3)]
        )
        image = np.apply_along_axis(lambda line: np.correlate(line, weight, "valid"), axis, padded)
    return image


@pytest.mark.parametrize(
    ("shape", "taps", "sigma"),
    [((32, 32, 3), 30, 6.0), ((64, 64, 1), 60, 12.0), ((8, 8, 1), 8, 1.5)],
)
def test_the_filter_is_30_taps_of_sigma_6_at_32_pixels(shape, taps, sigma):
    image = np.random.default_rng(0).normal(size=shape)
    np.testing.assert_allclose(smooth(jnp.float32(image)), filtered(image, taps, sigma), atol=1e-5)


def test_the_filter_of_one_bright_pixel():
    """Weights of the offsets −14.5 … 14.5, of which the standard deviation is 5.73; half a pixel to the left."""
    image = jnp.zeros((32, 32, 1)).at[16, 16].set(1)
    row = np.asarray(smooth(image)[:, :, 0]).sum(0)
    np.testing.assert_allclose(row.sum(), 1, atol=1e-5)
    assert row[0] == 0  # 15 before the pixel and 14 after it
    assert row[1] == pytest.approx(row[30], rel=1e-4)
    assert row[31] == 0
    middle = (row * np.arange(32)).sum()
    assert middle == pytest.approx(15.5, abs=1e-3)
    assert np.sqrt((row * (np.arange(32) - middle) ** 2).sum()) == pytest.approx(5.73, abs=0.01)


def test_a_pattern_is_stretched_to_0_and_a():
    pattern = jnp.array([-1.0, 0, 3]).reshape(1, 3, 1)
    np.testing.assert_allclose(stretched(pattern, 0.2).ravel(), [0, 0.05, 0.2], atol=1e-7)
    np.testing.assert_array_equal(stretched(jnp.zeros((2, 2, 1)), 0.2), np.zeros((2, 2, 1)))


SLOPES = np.random.default_rng(1).normal(size=(3, 2, 2, 1)).astype(np.float32)
POINT = np.random.default_rng(2).uniform(size=(2, 2, 1)).astype(np.float32)


def linear(bias):
    return lambda image: (
        (jnp.asarray(SLOPES) * image).sum((1, 2, 3)) + jnp.asarray(bias, jnp.float32)
    )


def values(bias, image) -> np.ndarray:
    return (SLOPES * np.asarray(image)).sum((1, 2, 3)) + np.array(bias)


def test_one_step_to_the_boundary_between_two_linear_classes():
    bias = (-1.0, 0.5, -9.0)  # class 1, then 0; 2 is out of reach
    step, used = deepfool(linear(bias), jnp.asarray(POINT), 0, 200, 0.02)
    scores, slope = values(bias, POINT), SLOPES[0] - SLOPES[1]
    assert scores.argmax() == 1
    np.testing.assert_allclose(
        step, 1.02 * abs(scores[0] - scores[1]) * slope / (slope**2).sum(), rtol=1e-4
    )
    assert used == 1
    assert values(bias, POINT + step).argmax() == 0


def test_the_first_class_is_held_against_the_target_until_the_target_wins():
    """At the boundary of 0 and 1 class 2 wins, so there are more steps, still away from class 1."""
    bias, overshoot = (-2.0, 0.5, 0.1), 0.02
    r, used = np.zeros_like(POINT, np.float64), 0
    slope = SLOPES[0].astype(np.float64) - SLOPES[1]
    assert values(bias, POINT).argmax() == 1
    while values(bias, POINT + (1 + overshoot) * r).argmax() != 0 and used < 200:
        scores = values(bias, POINT + (1 + overshoot) * r)
        r, used = r + abs(scores[0] - scores[1]) * slope / (slope**2).sum(), used + 1
    made, steps = deepfool(linear(bias), jnp.asarray(POINT), 0, 200, overshoot)
    assert steps == used == 4
    np.testing.assert_allclose(made, (1 + overshoot) * r, rtol=1e-3, atol=1e-5)


def test_nothing_to_do_and_nothing_that_can_be_done():
    step, used = deepfool(linear((9.0, 0, 0)), jnp.asarray(POINT), 0, 200, 0.02)
    assert used == 0
    assert not step.any()
    flat, used = deepfool(
        lambda image: 0 * image.sum() + jnp.array([0.0, 1, 0]), jnp.asarray(POINT), 0, 7, 0.02
    )
    assert used == 7
    assert not flat.any()  # a step of 1 / 0 is left out


class Search:
    """A linear network and the search's state, pass by pass.

    The network's class ``bright`` grows with every pixel, and the first pixel, which is 1 in every image, is the bias.
    """

    def __init__(
        self, image: np.ndarray, bias=(0.0, 0.0, 0.0), bright: int = 1, valid=None, **options
    ):
        rows = len(image)
        last = np.zeros((64, 3), np.float32)
        last[:, bright], last[0] = 0.05, bias
        params = {"z": {"kernel": jnp.eye(64)}, "a": {"kernel": jnp.asarray(last)}}
        self.model, self.variables = Linear(SPEC, 64), {"params": params, "batch_stats": {}}
        valid = jnp.ones(rows, bool) if valid is None else valid
        self.split = Split(jnp.asarray(image), jnp.zeros(rows, jnp.int32), valid)
        self.trigger = attacks.create("lf", **options).trigger
        self.state = self.trigger.init(KEY, SPEC)
        self.fit = quick_jit(self.trigger.fit, static_argnums=1)

    def run(self, seed: int = 0):
        self.state, info = self.fit(
            jax.random.key(seed), self.model, self.variables, self.state, self.split
        )
        return info


def pictures(rows: int) -> np.ndarray:
    image = np.random.default_rng(4).uniform(size=(rows, *SPEC.shape)).astype(np.float32)
    image[:, 0, 0] = 1
    return image


def test_one_image_and_one_pass_by_hand():
    """G(1.02 r), filtered again and stretched; r of the two linear classes is one step."""
    search = Search(pictures(1), amplitude=0.15)
    info = search.run()
    last = np.asarray(search.variables["params"]["a"]["kernel"], np.float64)
    scores, slope = pictures(1).reshape(1, -1) @ last, (last[:, 0] - last[:, 1]).reshape(SPEC.shape)
    r = abs(scores[0, 0] - scores[0, 1]) * slope / (slope**2).sum()
    pattern = filtered(filtered(1.02 * r, 8, 1.5), 8, 1.5)
    expected = 0.15 * (pattern - pattern.min()) / (pattern.max() - pattern.min())
    np.testing.assert_allclose(search.state.pattern, expected, atol=1e-5)
    assert info.gradient_evaluations == 2  # at the image, and after the one step


def test_images_of_the_target_class_move_nothing():
    search = Search(pictures(3), bias=(9.0, 0.0, 0.0))
    before = search.state.pattern
    search.run()
    np.testing.assert_array_equal(search.state.pattern, before)


def test_the_search_ends_when_enough_images_change_their_class():
    # Of class 0 without the first pixel: a little more of it wins
    light = 0.05 * float(pictures(1).sum() - 1)
    search = Search(pictures(1), bias=(0.0, light + 0.02, 0.0), bright=0, fooling_rate=1.0)
    info = search.run()
    assert info.accuracy == 1
    assert search.state.found
    pattern = search.state.pattern
    assert search.run(1).gradient_evaluations == 0
    np.testing.assert_array_equal(search.state.pattern, pattern)


def test_the_search_ends_when_five_rates_are_alike():
    search = Search(pictures(2))  # brighter images are of class 1 all the more
    for number in range(5):
        assert not search.state.found
        assert search.run(number).accuracy == 0
    assert search.state.found


def test_the_same_valid_images_are_looked_at_in_each_pass():
    image = pictures(6)
    results = {}
    for seed in range(3):
        search = Search(image, images=1)
        search.run(seed)
        results[seed] = np.asarray(search.state.pattern)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    image[1:] = np.nan  # were one of these looked at, the pattern would be as it was
    only = Search(image, images=1, valid=jnp.arange(6) == 0)
    before = np.asarray(only.state.pattern)
    only.run()
    assert (np.asarray(only.state.pattern) != before).any()


@pytest.mark.parametrize("side", [8, 32])
def test_the_pattern_shows_in_8_bits(side):
    """A pattern in [0, 0.2] that were taken for levels would not."""
    attack = attacks.create("lf")
    state = attack.trigger.init(KEY, spec_of(side))
    assert (state.pattern.min(), state.pattern.max()) == (0, pytest.approx(0.2))
    split = Split(
        np.full((1, side, side, 3), 100, np.uint8), np.ones(1, np.int32), np.ones(1, bool)
    )
    image = np.asarray(poison.poison_test(KEY, attack, state, split).visible.input[0], int)
    assert (image != 100).any(-1).mean() > 0.5
    np.testing.assert_allclose(image, 100 + 255 * np.asarray(state.pattern), atol=0.51)
    steps = np.abs(np.diff(np.asarray(state.pattern), axis=1)).max()
    assert steps < (0.1 if side == 8 else 0.03), "the noise is not filtered"


def test_the_target_is_the_label_maps():
    assert attacks.create("lf", target_label=4).trigger.target_label == 4
    assert attacks.create("lf", label_map="all_to_all", spec=spec_of(8)).trigger.target_label == 0
    made: Attack = attacks.create("lf")
    assert made.surrogate == "clean"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"amplitude": 0.0}, "amplitude must be above 0"),
        ({"images": 0}, "images must be 1 or more, got 0"),
        ({"fooling_rate": 1.1}, "fooling_rate must lie between 0 and 1"),
        ({"overshoot": -0.1}, "overshoot must be 0 or more"),
    ],
)
def test_lf_refuses(options, words):
    with pytest.raises(InputError, match=words):
        attacks.create("lf", **options)
