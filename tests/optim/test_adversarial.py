"""PGD: within the ball and the box, uphill, with the traced ε and nothing differentiated through."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from quick import quick_jit

from bdjax.optim.pgd import pgd

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 3)
# 0 and 1 occur
IMAGE = jnp.array(np.random.default_rng(0).integers(0, 6, (4, 5, 6, 1)) / 5, jnp.float32)
SLOPE = jnp.array(np.random.default_rng(1).normal(size=IMAGE.shape), jnp.float32)


def linear(image):
    return jnp.sum(SLOPE * image)


def curved(image):
    return -jnp.sum((image - 0.4) ** 2)


ascend = quick_jit(
    lambda key, image, epsilon, step_size: pgd(key, linear, image, epsilon, 2, step_size)
)
default = quick_jit(lambda key, image, epsilon: pgd(key, linear, image, epsilon))


def test_by_default_two_steps_reach_the_best_corner_of_a_linear_loss():
    """2 · 2.5 ε / 2 is more than the ball's diameter, so from any start x = clip(image + ε sign w)."""
    best = np.clip(IMAGE + np.float32(0.1) * np.sign(SLOPE), 0, 1)
    np.testing.assert_allclose(default(KEY, IMAGE, 0.1), best, atol=1e-7)


def test_small_steps_from_a_random_start_by_hand():
    """From a start in the ball, two steps of a add 2a sign w where the ball's wall is further off."""
    start = np.asarray(ascend(KEY, IMAGE, 0.1, 0.0))
    noise = (start - IMAGE)[(IMAGE > 0.1) & (IMAGE < 0.9)]  # uniform in ±0.1
    assert noise.min() < -0.09
    assert noise.max() > 0.09
    assert 0.04 < np.abs(noise).mean() < 0.06
    moved = np.asarray(ascend(KEY, IMAGE, 0.1, 0.02))
    low, high = np.maximum(IMAGE - np.float32(0.1), 0), np.minimum(IMAGE + np.float32(0.1), 1)
    np.testing.assert_allclose(moved, np.clip(start + 0.04 * np.sign(SLOPE), low, high), atol=1e-6)
    assert linear(moved) > linear(start)
    assert ascend._cache_size() == 1


def test_stays_in_the_ball_and_the_box():
    for epsilon in (0.0, 1 / 255, 0.5):
        image = np.asarray(ascend(KEY, IMAGE, epsilon, 10.0))
        assert np.abs(image - IMAGE).max() <= epsilon + 1e-7
        assert image.min() >= 0
        assert image.max() <= 1
        assert image.dtype == np.float32
    np.testing.assert_array_equal(ascend(KEY, IMAGE, 0.0, 10.0), IMAGE)
    assert ascend._cache_size() == 1


@quick_jit
def others(key, image):
    """Flat loss and no step; one and two steps on a hill; the gradient of a later loss."""
    flat = [pgd(key, lambda x: 0 * linear(x), image, 0.1), pgd(key, linear, image, 0.1, steps=0)]
    hill = [pgd(key, curved, 0 * image + 0.38, 0.2, steps, 0.4) for steps in (1, 2)]
    later = jax.grad(lambda scale: linear(pgd(key, lambda x: scale * linear(x), image, 0.1)))(2.0)
    return flat, hill, later


def test_flat_gradients_new_gradients_and_none_for_others():
    (flat, start), (once, twice), later = others(KEY, IMAGE)
    np.testing.assert_array_equal(flat, start)
    assert (np.sign(once - 0.4) == -np.sign(twice - 0.4)).all()  # over the top and back
    assert later == 0


def test_without_a_random_start_the_steps_begin_at_the_image_whatever_the_key():
    def ascend(key, steps):
        return pgd(key, linear, IMAGE, 0.1, steps, 0.04, random_start=False)

    np.testing.assert_array_equal(ascend(KEY, 0), IMAGE)
    for key in KEYS[:2]:
        for steps, moved in ((2, 0.08), (3, 0.1)):  # the third step ends at the ball's wall
            expected = np.clip(IMAGE + np.float32(moved) * np.sign(SLOPE), 0, 1)
            np.testing.assert_allclose(ascend(key, steps), expected, atol=1e-6)


def test_mapped_over_keys_it_is_a_loop():
    def hill(key):
        return pgd(key, curved, IMAGE, 0.1)

    alone, together = quick_jit(hill), quick_jit(jax.vmap(hill))(KEYS)
    for i, key in enumerate(KEYS):
        np.testing.assert_allclose(together[i], alone(key), atol=1e-6)
