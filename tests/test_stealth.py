"""How visible a trigger is, against values worked by hand."""

import math

import numpy as np
import pytest

from bdjax import stealth
from bdjax.checks import InputError

ALL = np.ones(2, bool)


def images(level=100):
    return np.full((2, 8, 8, 3), level, np.uint8)


def test_a_patch_of_four_pixels_in_one_of_two_images():
    other = images()
    other[0, 6:, 6:] = 151  # a change of 0.2
    got = stealth.measure(images(), other, ALL)
    assert got.linf == pytest.approx(0.1)
    assert got.l2 == pytest.approx(0.5 * 0.2 * math.sqrt(12))
    assert got.changed_share == pytest.approx(0.5 * 4 / 64)
    assert got.psnr == pytest.approx(-10 * math.log10(0.5 * 0.04 * 12 / 192))
    assert 0.5 < got.ssim < 1


def test_a_pixel_counts_once_however_many_channels_changed():
    one, three = images(), images()
    one[:, 0, 0, 0] += 1
    three[:, 0, 0] += 1
    for other in (one, three):
        assert stealth.measure(images(), other, ALL).changed_share == pytest.approx(1 / 64)


def test_rows_that_do_not_count_change_nothing():
    other = images()
    other[1] = 0
    got = stealth.measure(images(), other, np.array([True, False]))
    assert (got.psnr, got.linf, got.l2, got.changed_share) == (math.inf, 0, 0, 0)
    assert got.ssim == pytest.approx(1)
    assert got.plain()["psnr"] is None


def test_float_images_are_compared_as_they_are():
    ours = stealth.measure(images() / np.float32(255), images(151) / np.float32(255), ALL)
    np.testing.assert_allclose(ours, stealth.measure(images(), images(151), ALL), rtol=1e-5)


def test_no_image_is_refused():
    with pytest.raises(InputError, match="valid must leave an image"):
        stealth.measure(images(), images(), ~ALL)
