"""BPP: levels by hand, dithering against a loop in raster order, the residual that negatives carry."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import attacks, poison
from bdjax.attacks.bpp import floyd_steinberg, quantize
from bdjax.checks import InputError
from bdjax.types import Split

KEY = jax.random.key(0)


def test_every_level_goes_to_the_nearest_of_eight():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    split = Split(levels, np.ones(1, np.int32), np.ones(1, bool))
    image = np.asarray(poison.poison_test(KEY, attacks.create("bpp"), (), split).visible.input)
    eight = np.array([0, 36, 73, 109, 146, 182, 219, 255])  # 255 k / 7, rounded
    exact = 255 * np.arange(8) / 7
    expected = eight[np.abs(levels.ravel()[:, None] - exact).argmin(1)]
    np.testing.assert_array_equal(image.ravel(), expected)


def test_the_reference_codes_levels_come_of_truncation():
    split = Split(
        np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), np.ones(1, np.int32), np.ones(1, bool)
    )
    image = poison.poison_test(
        KEY, attacks.create("bpp"), (), split, rounding="truncate"
    ).visible.input
    assert np.unique(image).tolist() == [0, 36, 72, 109, 145, 182, 218, 255]


@pytest.mark.parametrize("levels", [2, 3, 8, 32, 256])
def test_there_are_at_most_q_values_and_quantizing_again_changes_nothing(levels):
    image = np.random.default_rng(0).random((16, 16, 3), np.float32)
    for dither in (False, True):
        out = attacks.create("bpp", levels=levels, dither=dither).trigger.apply(
            KEY, (), jnp.asarray(image)
        )
        assert len(np.unique(out)) <= levels
        assert out.min() >= 0
        assert out.max() <= 1
        np.testing.assert_array_equal(quantize(out, levels), out)


def in_raster_order(image: np.ndarray, levels: int) -> np.ndarray:
    """Dither one pixel after the other."""
    image = image.astype(np.float32).copy()
    height, width, _ = image.shape
    for i in range(height):
        for j in range(width):
            old = image[i, j].copy()
            image[i, j] = np.round(old * np.float32(levels - 1)) / np.float32(levels - 1)
            error = old - image[i, j]
            for row, column, share in (
                (i, j + 1, 7),
                (i + 1, j - 1, 3),
                (i + 1, j, 5),
                (i + 1, j + 1, 1),
            ):
                if row < height and 0 <= column < width:
                    image[row, column] += error * np.float32(share / 16)
    return image


@pytest.mark.parametrize(
    "shape", [(8, 8, 1), (8, 8, 3), (5, 9, 2), (9, 5, 1), (1, 7, 1), (7, 1, 1), (32, 32, 3)]
)
@pytest.mark.parametrize("levels", [2, 8])
def test_dithering_is_floyd_steinbergs_in_raster_order(shape, levels):
    image = np.random.default_rng(sum(shape)).random(shape, np.float32)
    expected = in_raster_order(image, levels)
    np.testing.assert_allclose(floyd_steinberg(jnp.asarray(image), levels), expected, atol=1e-6)


def test_a_2_by_2_image_dithered_by_hand():
    # Two levels. 0.4 → 0, error 0.4: right 0.3 + 0.4 · 7/16 = 0.475 → 0, error 0.475;
    # below left 0.4 + 0.4 · 5/16 + 0.475 · 3/16 = 0.6140625 → 1, error −0.3859375;
    # below right 0.5 + 0.4/16 + 0.475 · 5/16 − 0.3859375 · 7/16 = 0.5045898 → 1.
    image = jnp.array([[0.4, 0.3], [0.4, 0.5]])[..., None]
    np.testing.assert_array_equal(floyd_steinberg(image, 2)[..., 0], [[0, 0], [1, 1]])
    # Where 0.48 stands below right, 0.4846 → 0.
    np.testing.assert_array_equal(
        floyd_steinberg(image.at[1, 1].set(0.48), 2)[..., 0], [[0, 0], [1, 0]]
    )


def test_dithering_keeps_the_mean_color_and_rounding_does_not():
    gray = jnp.full((32, 32, 1), 0.3)
    assert abs(float(floyd_steinberg(gray, 2).mean()) - 0.3) < 0.02
    assert quantize(gray, 2).mean() == 0


def test_dithering_maps_over_images():
    images = np.random.default_rng(3).random((5, 8, 8, 3), np.float32)
    together = jax.jit(jax.vmap(lambda image: floyd_steinberg(image, 4)))(images)
    for image, ours in zip(images, together, strict=True):
        np.testing.assert_allclose(ours, in_raster_order(image, 4), atol=1e-6)


def batch(rows: int) -> Split:
    image = np.random.default_rng(2).random((rows, 8, 8, 3), np.float32)
    return Split(jnp.asarray(image), jnp.arange(rows) % 10, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("dither", [False, True])
def test_a_negative_carries_the_residual_of_another_image_of_the_batch(dither):
    trigger, given = attacks.create("bpp", dither=dither).trigger, batch(6)
    negatives = np.asarray(trigger.cover(KEY, (), given), np.float64)
    images = np.asarray(given.input, np.float64)
    quantized = np.stack([trigger.apply(KEY, (), image) for image in given.input]).astype(
        np.float64
    )
    partners = []
    for row in range(6):
        candidates = np.clip(images[row] + quantized - images, 0, 1)
        distance = np.abs(candidates - negatives[row]).max((1, 2, 3))
        assert distance.min() < 1e-6
        partners.append(int(distance.argmin()))
    assert all(partner != row for row, partner in enumerate(partners))
    assert sorted(partners) == list(range(6))


def test_the_partner_depends_on_the_key():
    trigger, given = attacks.create("bpp").trigger, batch(6)
    drawn = {
        np.asarray(trigger.cover(jax.random.key(seed), (), given)).tobytes() for seed in range(20)
    }
    assert len(drawn) == 5


def test_the_only_image_of_a_batch_is_its_own_partner():
    trigger, given = attacks.create("bpp").trigger, batch(1)
    np.testing.assert_allclose(
        trigger.cover(KEY, (), given)[0], quantize(given.input[0], 8), atol=1e-6
    )


def test_each_batch_has_poisoned_rows_and_as_many_negatives():
    attack, given = attacks.create("bpp"), batch(40)
    poisoned = jax.jit(poison.poison_batch)(KEY, attack, (), given)
    triggered = np.asarray(jnp.abs(poisoned.input - quantize(given.input, 8)).max((1, 2, 3)) < 1e-6)
    changed = np.asarray((poisoned.input != given.input).any((1, 2, 3)))
    assert triggered.sum() == 4
    assert changed.sum() == 8
    assert (poisoned.label[triggered] == 0).all()
    np.testing.assert_array_equal(poisoned.label[~triggered], given.label[~triggered])


def test_presets_are_the_published_values():
    ours, released = (
        attacks.create("bpp", preset=preset) for preset in ("paper", "reference_code")
    )
    assert (ours.poison_rate, ours.cover_rate, ours.trigger.levels, ours.trigger.dither) == (
        0.1,
        0.1,
        8,
        False,
    )
    assert (released.poison_rate, released.cover_rate, released.trigger) == (0.2, 0.2, ours.trigger)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": 1}, "levels must be 2 or more, got 1"),
        ({"cover_rate": 1.2}, "cover_rate must lie between 0 and 1"),
    ],
)
def test_bpp_refuses(options, words):
    with pytest.raises(InputError, match=words):
        attacks.create("bpp", **options)
