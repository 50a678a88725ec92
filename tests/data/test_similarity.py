"""SSIM and PSNR against values worked by hand and against the same window by window in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.data.similarity import psnr, ssim


def image(seed: int, shape=(16, 13, 3)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def by_hand(a: np.ndarray, b: np.ndarray, taps: int) -> float:
    line = np.exp(-((np.arange(taps) - taps // 2) ** 2) / (2 * 1.5**2))
    weight = np.outer(line, line)
    weight /= weight.sum()
    values = []
    for row in range(a.shape[0] - taps + 1):
        for column in range(a.shape[1] - taps + 1):
            for channel in range(a.shape[2]):
                x, y = (z[row : row + taps, column : column + taps, channel] for z in (a, b))
                mx, my = (weight * x).sum(), (weight * y).sum()
                vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
                cov = (weight * (x - mx) * (y - my)).sum()
                values.append(
                    (2 * mx * my + 1e-4)
                    * (2 * cov + 9e-4)
                    / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
                )
    return float(np.mean(values))


@pytest.mark.parametrize(
    ("shape", "taps"), [((16, 13, 3), 11), ((8, 8, 1), 7), ((9, 20, 1), 9), ((1, 5, 1), 1)]
)
def test_ssim_is_the_mean_over_windows(shape, taps):
    a, b = image(0, shape), image(1, shape)
    np.testing.assert_allclose(ssim(jnp.float32(a), jnp.float32(b)), by_hand(a, b, taps), atol=2e-6)


def test_ssim_of_flat_images_is_the_term_of_the_means():
    a, b = jnp.full((12, 12, 1), 0.5), jnp.full((12, 12, 1), 0.25)
    expected = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)  # 0.80006…: both variances are 0
    np.testing.assert_allclose(ssim(a, b), expected, rtol=1e-5)


def test_ssim_of_an_image_and_its_negative_is_below_zero():
    a = jnp.float32(image(2))
    assert ssim(a, 1 - a) < -0.5
    np.testing.assert_allclose(ssim(a, a), 1, atol=1e-6)


def test_ssim_falls_with_noise_and_has_a_gradient_that_raises_it():
    a, noise = jnp.float32(image(3)) * 0.5 + 0.25, jnp.float32(image(4)) - 0.5
    values = [float(ssim(a, a + share * noise)) for share in (0.0, 0.1, 0.2, 0.4)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 4
    near = a + 0.2 * noise
    slope = jax.grad(ssim, argnums=1)(a, near)
    assert ssim(a, near + 1e-2 * slope / jnp.abs(slope).max()) > ssim(a, near)


def test_a_batch_is_a_vmap_away():
    a, b = jnp.float32(image(5, (4, 12, 12, 3))), jnp.float32(image(6, (4, 12, 12, 3)))
    many = jax.jit(jax.vmap(ssim))(a, b)
    np.testing.assert_allclose(many, [ssim(x, y) for x, y in zip(a, b, strict=True)], atol=1e-6)


def test_psnr():
    a = jnp.full((4, 4, 3), 0.5)
    np.testing.assert_allclose(psnr(a, a + 0.1), 20, rtol=1e-5)  # mean square 0.01
    # Half the pixels
    np.testing.assert_allclose(psnr(a, a.at[:2].add(0.1)), 10 * np.log10(200), rtol=1e-5)
    assert psnr(a, a) == np.inf
