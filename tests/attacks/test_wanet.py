"""WaNet: its field against the textbook's cubic spline, its warp against loops over pixels, its noise mode."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import attacks, poison
from bdjax.attacks.wanet import bilinear, enlarging
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.types import Spec, Split

KEY = jax.random.key(0)
IMAGE = np.random.default_rng(0).random((32, 32, 3), np.float32)


def spec_of(side: int) -> Spec:
    return image_spec("known", (side, side, 3), 10, (0.5,) * 3, (0.25,) * 3)


def cubic(distance: float) -> float:
    """Return the kernel with a = −3/4: 1 at 0, 0 at 1 and 2."""
    d = abs(distance)
    if d <= 1:
        return 1.25 * d**3 - 2.25 * d**2 + 1
    return -0.75 * d**3 + 3.75 * d**2 - 6 * d + 3 if d < 2 else 0.0


@pytest.mark.parametrize(("size", "points"), [(32, 4), (8, 4), (7, 3), (28, 5), (8, 1)])
def test_enlarging_interpolates_with_the_cubic_kernel(size, points):
    expected = np.zeros((size, points))
    for row in range(size):
        place = row * (points - 1) / (size - 1)
        for tap in range(int(place) - 1, int(place) + 3):
            expected[row, min(max(tap, 0), points - 1)] += cubic(place - tap)
    np.testing.assert_allclose(enlarging(size, points), expected, atol=1e-6)
    np.testing.assert_allclose(expected.sum(1), 1, atol=1e-6)


def test_worked_weights_of_the_cubic_kernel():
    # From 4 points to 7: row 3 lies half way between points 1 and 2. cubic(½) = 19/32, cubic(3/2) = −3/32.
    np.testing.assert_allclose(enlarging(7, 4)[3], np.array([-3, 19, 19, -3]) / 32, atol=1e-6)
    # Its own points are met
    np.testing.assert_array_equal(enlarging(7, 4)[[0, 2, 4, 6]], np.eye(4))


def test_the_field_is_the_normalized_draw_enlarged():
    trigger = attacks.create("wanet").trigger
    coarse = np.asarray(jax.random.uniform(KEY, (2, 4, 4), minval=-1, maxval=1), np.float64)
    coarse /= np.abs(coarse).mean()
    rows = enlarging(32, 4).astype(np.float64)
    field = np.stack([rows @ coarse[axis] @ rows.T for axis in (0, 1)], -1)
    np.testing.assert_allclose(trigger.init(KEY, spec_of(32)), field, atol=1e-5)


def test_the_mean_displacement_is_a_fifth_of_a_pixel_on_cifar10():
    trigger, own = (
        attacks.create("wanet").trigger,
        np.stack(np.meshgrid(np.arange(32), np.arange(32)), -1),
    )
    for seed in range(5):
        places = np.asarray(trigger.places(trigger.init(jax.random.key(seed), spec_of(32))))
        assert 0.13 < np.abs(places - own).mean() < 0.26
        assert places.min() >= 0
        assert places.max() <= 31


def by_hand(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Sample one pixel after the other."""
    height, width, _ = image.shape
    result = np.zeros_like(image, np.float64)
    for i in range(height):
        for j in range(width):
            x, y = places[i, j]
            left, top = int(np.floor(x)), int(np.floor(y))
            for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                weight = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                if row < height and column < width:
                    result[i, j] += weight * image[row, column]
    return result


def test_the_warp_is_the_bilinear_sample_at_the_moved_places():
    trigger = attacks.create("wanet", strength=0.5).trigger
    state = trigger.init(KEY, spec_of(32))
    linspace = np.linspace(-1, 1, 32)
    grid = np.stack(np.meshgrid(linspace, linspace), -1) + 0.5 * np.asarray(state, np.float64) / 32
    places = (np.clip(grid, -1, 1) + 1) / 2 * 31
    np.testing.assert_allclose(
        trigger.apply(KEY, state, jnp.asarray(IMAGE)), by_hand(IMAGE, places), atol=2e-5
    )


def test_a_wide_image_is_sampled_as_a_square_one():
    image = IMAGE[:8, :20]
    places = np.random.default_rng(1).random((8, 20, 2), np.float32) * [19, 7]
    places[0, 0], places[7, 19], places[3, 4] = (0, 0), (19, 7), (19, 0)
    ours = bilinear(jnp.asarray(image), jnp.asarray(places, jnp.float32))
    np.testing.assert_allclose(ours, by_hand(image, places), atol=1e-5)


def test_one_place_worked_by_hand():
    image = jnp.array([[0.0, 1.0], [0.2, 0.6]])[..., None]
    places = jnp.broadcast_to(jnp.array([0.25, 0.5]), (2, 2, 2))
    # Above 0.25, below 0.3; half way 0.275.
    np.testing.assert_allclose(bilinear(image, places), np.full((2, 2, 1), 0.275), atol=1e-6)


def test_the_first_channel_of_the_field_moves_across():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None], (8, 8, 1))  # 0 … 7 from left to right
    field = jnp.zeros((8, 8, 2)).at[..., 0].set(1.0)
    trigger = attacks.create("wanet", strength=2.0).trigger
    moved = trigger.apply(KEY, field, ramp)[..., 0]  # by 2 · 7 / 16
    np.testing.assert_allclose(
        moved, np.tile(np.minimum(np.arange(8) + 0.875, 7), (8, 1)), atol=1e-5
    )
    np.testing.assert_allclose(
        trigger.apply(KEY, field, ramp.swapaxes(0, 1))[..., 0], ramp[..., 0].T, atol=1e-5
    )


def test_no_strength_is_the_identity_and_more_of_it_moves_more():
    states = attacks.create("wanet").trigger.init(KEY, spec_of(32))
    change = []
    for strength in (0.0, 0.25, 0.5, 1.0):
        warped = attacks.create("wanet", strength=strength).trigger.apply(
            KEY, states, jnp.asarray(IMAGE)
        )
        change.append(float(np.abs(warped - IMAGE).mean()))
    assert change[0] == 0
    assert change == sorted(change)
    assert change[1] > 0.01


def test_a_single_color_stays_itself():
    for attack in (attacks.create("wanet"), attacks.create("wanet", strength=4.0, grid=8)):
        state = attack.trigger.init(KEY, spec_of(32))
        flat = attack.trigger.apply(KEY, state, jnp.full((32, 32, 3), 0.3))
        np.testing.assert_allclose(flat, 0.3, atol=1e-6)


def batch(rows: int) -> Split:
    image = np.random.default_rng(2).random((rows, 32, 32, 3), np.float32)
    return Split(jnp.asarray(image), jnp.arange(rows) % 10, None)  # type: ignore[arg-type]


def test_cover_samples_are_warped_further_by_up_to_half_a_pixel():
    trigger = attacks.create("wanet").trigger
    state = trigger.init(KEY, spec_of(32))
    # Each pixel says where it is
    column = jnp.broadcast_to(jnp.arange(32.0)[:, None], (4, 32, 32, 1))
    row = column.swapaxes(1, 2)
    images = batch(4)._replace(input=jnp.concatenate([column, row, row], -1) / 31)
    covers = np.asarray(trigger.cover(KEY, state, images))[..., :2] * 31
    noise = covers - np.asarray(trigger.places(state))
    assert np.abs(noise).max() <= 0.5
    inside = noise[:, 2:-2, 2:-2]
    assert np.abs(inside).max() > 0.45
    assert abs(inside.mean()) < 0.02
    np.testing.assert_allclose(inside.std(), 31 / 64 / np.sqrt(3), rtol=0.05)
    assert (noise[0] != noise[1]).any()  # fresh for each image


def test_each_batch_has_its_poisoned_rows_and_twice_as_many_cover_samples():
    attack = attacks.create("wanet")
    state, given = attack.trigger.init(KEY, spec_of(32)), batch(40)
    poisoned = jax.jit(poison.poison_batch)(KEY, attack, state, given)
    warped = jax.vmap(attack.trigger.apply, (None, None, 0))(KEY, state, given.input)
    triggered = np.asarray(jnp.abs(poisoned.input - warped).max((1, 2, 3)) < 1e-5)
    changed = np.asarray(jnp.abs(poisoned.input - given.input).max((1, 2, 3)) > 1e-5)
    assert triggered.sum() == 4
    assert changed.sum() == 12
    assert (poisoned.label[triggered] == 0).all()
    np.testing.assert_array_equal(poisoned.label[~triggered], given.label[~triggered])


@pytest.mark.parametrize(
    ("options", "rate"), [({}, 0.2), ({"cover_ratio": 0.0}, 0.0), ({"poison_rate": 0.5}, 0.5)]
)
def test_the_cover_rate_is_a_multiple_of_the_poison_rate_as_far_as_rows_reach(options, rate):
    assert attacks.create("wanet", **options).cover_rate == pytest.approx(rate)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": -0.5}, "strength must be 0 or more"),
        ({"cover_ratio": -1.0}, "cover_ratio must be 0 or more"),
        ({"grid": 0}, "grid must be 1 or more"),
    ],
)
def test_wanet_refuses(options, words):
    with pytest.raises(InputError, match=words):
        attacks.create("wanet", **options)
