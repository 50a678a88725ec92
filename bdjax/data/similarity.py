"""How alike two images are: SSIM and PSNR, as pure and differentiable functions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_TAPS, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2  # (K L)² for the range L = 1


def ssim(a: Float[Array, "h w c"], b: Float[Array, "h w c"]) -> Float[Array, ""]:
    """Return the mean structural similarity of two images, in [−1, 1]; 1 where they are equal.

    The mean over all windows and channels of

      (2 μ_a μ_b + C₁) (2 σ_ab + C₂) / ((μ_a² + μ_b² + C₁) (σ_a² + σ_b² + C₂)),

    with means and (co)variances under a Gaussian window of 11 × 11 pixels and σ = 1.5 whose weights sum to one, at
    every place where it fits, C₁ = 0.01² and C₂ = 0.03². Symmetric in its arguments. Of images with a side below 11 the
    window is the largest odd number of pixels that fits into the shorter side (7 × 7 on digits of 8 × 8). A batch is a
    `jax.vmap` away. The dissimilarity DSSIM is (1 − SSIM) / 2.

    Args:
      a, b: images in [0, 1].

    References:
      Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, IEEE TIP 2004, eq. 13.
    """
    height, width, _ = a.shape
    taps = min(_TAPS, *((side - 1) // 2 * 2 + 1 for side in (height, width)))
    rows, columns = _windows(height, taps), _windows(width, taps)

    def mean(x: Array) -> Array:
        return jnp.einsum("ih,hwc,jw->ijc", rows, x, columns, precision="highest")

    # Of each channel; less cancels in a difference of squares without it
    level = (a.mean((0, 1)) + b.mean((0, 1))) / 2
    a, b = a - level, b - level
    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    mean_a, mean_b = mean_a + level, mean_b + level
    alike = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return (alike / ((mean_a**2 + mean_b**2 + _C1) * (variance_a + variance_b + _C2))).mean()


def psnr(a: Float[Array, "h w c"], b: Float[Array, "h w c"]) -> Float[Array, ""]:
    """Return the peak signal-to-noise ratio −10 log₁₀(mean (a − b)²) in decibels; infinite where they are equal.

    Args:
      a, b: images in [0, 1].
    """
    return -10 * jnp.log10(jnp.mean((a - b) ** 2))


def _windows(side: int, taps: int) -> np.ndarray:
    """Return a matrix whose rows are the window's weights at each place along a side."""
    weight = np.exp(-0.5 * ((np.arange(taps) - taps // 2) / _SIGMA) ** 2)
    places = side - taps + 1
    matrix = np.zeros((places, side))
    for place in range(places):
        matrix[place, place : place + taps] = weight / weight.sum()
    return matrix.astype(np.float32)
