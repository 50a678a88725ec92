"""SIG: the stripes worked in NumPy, both forms of it, and which images of which class are poisoned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import attacks, poison
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.types import Split

KEY = jax.random.key(0)


def triggered(image: np.ndarray, **options) -> np.ndarray:
    """Return one image with the stripes, before it is clipped."""
    return np.asarray(attacks.create("sig", **options).trigger.apply(KEY, (), jnp.asarray(image)))


@pytest.mark.parametrize(("side", "frequency"), [(32, 6), (64, 6), (8, 2), (28, 1.5)])
def test_the_stripes_are_the_sine_of_the_column(side, frequency):
    image = np.random.default_rng(0).random((side, side, 3), np.float32)
    expected = np.array(
        [
            [
                pixel + 40 / 255 * np.sin(2 * np.pi * column * frequency / side)
                for column, pixel in enumerate(row)
            ]
            for row in image
        ]
    )
    np.testing.assert_allclose(triggered(image, frequency=float(frequency)), expected, atol=1e-5)


def test_there_are_six_cycles_whatever_the_size():
    for side in (32, 64, 96):
        wave = triggered(np.zeros((side, side, 1), np.float32))
        spectrum = np.abs(np.fft.rfft(wave[0, :, 0]))
        assert spectrum.argmax() == 6
        assert (wave == wave[:1]).all()  # the same in each row


def test_worked_columns_on_8_bits():
    # W = 8, f = 2: the sine is 0, 1, 0, −1 again and again; 100 + 40, 100 − 40.
    split = Split(np.full((1, 8, 8, 1), 100, np.uint8), np.ones(1, np.int32), np.ones(1, bool))
    image = poison.poison_test(KEY, attacks.create("sig", frequency=2.0), (), split).visible.input
    np.testing.assert_array_equal(image[0, 3, :, 0], [100, 140, 100, 60] * 2)


def test_bright_and_dark_pixels_are_clipped():
    for level, expected in ((250, [250, 255, 250, 210]), (10, [10, 50, 10, 0])):
        split = Split(
            np.full((1, 8, 8, 1), level, np.uint8), np.ones(1, np.int32), np.ones(1, bool)
        )
        image = poison.poison_test(
            KEY, attacks.create("sig", frequency=2.0), (), split
        ).visible.input
        np.testing.assert_array_equal(image[0, 0, :, 0], expected * 2)


def test_the_sft_preset_mixes_the_image_with_a_striped_picture():
    image = np.random.default_rng(1).random((32, 32, 3), np.float32)
    column = np.arange(32)[:, None]
    picture = 127.5 * (1 + np.sin(2 * np.pi * 6 * column / 32)) / 255
    np.testing.assert_allclose(
        triggered(image, preset="sft"), 0.8 * image + 0.2 * picture, atol=1e-5
    )


def test_test_delta_is_the_strength_at_test_time_only():
    attack = attacks.create("sig", delta=0.0, test_delta=0.2, frequency=2.0, target_class_rate=1.0)
    split = Split(
        np.full((4, 8, 8, 1), 100, np.uint8), np.arange(4, dtype=np.int32), np.ones(4, bool)
    )
    np.testing.assert_array_equal(
        poison.poison_train(KEY, attack, (), split).visible.input, split.input
    )
    assert poison.poison_test(KEY, attack, (), split).visible.input[0, 0, 1, 0] == 151
    assert attacks.create("sig").test_trigger is None


def labels(rows: int = 100) -> Split:
    return Split(
        np.full((rows, 8, 8, 1), 90, np.uint8),
        np.arange(rows, dtype=np.int32) % 4,
        np.ones(rows, bool),
    )


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 20),  # 80 % of the 25 images of class 0
        ({"target_class_rate": 0.4}, 10),
        ({"poison_rate": 0.1}, 10),  # of all 100, and it wins
        ({"poison_rate": 0.1, "target_class_rate": 1.0}, 10),
        ({"poison_rate": 0.0}, 0),
        ({"poison_rate": 0.9}, 25),  # all that there are
        ({"preset": "reference_code"}, 10),
    ],
)
def test_how_many_are_poisoned_and_that_they_keep_their_label(options, count):
    poisoned = poison.poison_train(KEY, attacks.create("sig", **options), (), labels())
    assert poisoned.is_poisoned.sum() == count
    assert (poisoned.original_label[poisoned.is_poisoned] == 0).all()
    np.testing.assert_array_equal(poisoned.visible.label, labels().label)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delta": 40.0}, "delta must lie between 0 and 1, got 40"),
        ({"test_delta": -0.1}, "test_delta must lie between 0 and 1"),
        ({"frequency": -1.0}, "frequency must be 0 or more"),
        ({"alpha": 1.5}, "alpha must lie between 0 and 1"),
        ({"target_class_rate": 1.1}, "target_class_rate must lie between 0 and 1"),
        (
            {"label_map": attacks.AllToAll(4)},
            "label_map must be 'all_to_one' for a clean-label attack",
        ),
    ],
)
def test_sig_refuses(options, words):
    with pytest.raises(InputError, match=words):
        attacks.create("sig", **options)


def test_a_wave_that_the_columns_cannot_show_is_refused():
    """At half the width the sine is zero in each column; six cycles over eight columns look like two."""
    spec = image_spec("gray", (16, 8, 1), 4, (0.5,), (0.25,))
    for frequency in (4.0, 6.0):
        with pytest.raises(
            InputError, match=rf"^frequency must be below 4, .* got {frequency:g} cycles over 8\.$"
        ):
            attacks.create("sig", frequency=frequency).trigger.init(KEY, spec)
    assert attacks.create("sig", frequency=3.99).trigger.init(KEY, spec) == ()


def test_the_stripes_have_the_same_size_for_gray_and_color():
    spec = image_spec("gray", (8, 8, 1), 4, (0.5,), (0.25,))
    trigger = attacks.create("sig", frequency=3.0).trigger
    gray, color = (
        trigger.apply(KEY, trigger.init(KEY, spec), jnp.zeros((8, 8, c))) for c in (1, 3)
    )
    np.testing.assert_array_equal(color, np.repeat(gray, 3, -1))
