"""MixUp and CutMix: what is mixed with what, how much, and the loss of two labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from bdjax.data import mixing
from bdjax.data.mixing import Mixed
from bdjax.tasks.single_label import SingleLabel

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 200)
IMAGE = np.random.default_rng(0).random((6, 8, 12, 1), np.float32)
# Row i shows i/8
NUMBERED = np.broadcast_to(np.arange(6, dtype=np.float32)[:, None, None, None] / 8, (6, 8, 12, 3))
mixup = quick_jit(mixing.mixup)
cutmix = quick_jit(mixing.cutmix)
beta = quick_jit(jax.vmap(mixing.symmetric_beta, (0, None)))
cutmixes = quick_jit(jax.vmap(mixing.cutmix, (0, None, None, None)))


@pytest.fixture(scope="module")
def boxes() -> Mixed:
    """200 batches of numbered rows, all of them mixed."""
    return jax.device_get(cutmixes(KEYS, NUMBERED, 1.0, 1.0))


# --- MixUp -----------------------------------------------------------------------------------------------------------


def test_mixup_blends_each_row_with_its_partner():
    image, partner, weight = mixup(KEY, IMAGE, 1.0)
    assert image.dtype == jnp.float32
    assert weight.shape == ()
    assert 0 < weight < 1
    assert sorted(partner.tolist()) == list(range(6))
    np.testing.assert_allclose(
        image, weight * IMAGE + (1 - weight) * IMAGE[np.asarray(partner)], atol=1e-6
    )


def test_one_compilation_for_every_alpha_which_decides_how_much_is_mixed():
    before = mixup._cache_size()
    weights = [
        [float(mixup(key, IMAGE, alpha).weight) for key in KEYS[:40]] for alpha in (0.01, 1000.0)
    ]
    assert mixup._cache_size() <= max(before, 1)
    hardly, evenly = np.array(weights)
    assert np.minimum(hardly, 1 - hardly).mean() < 0.05
    assert np.abs(evenly - 0.5).max() < 0.05


def test_mixed_with_nothing_it_is_the_image(monkeypatch):
    monkeypatch.setattr(mixing, "symmetric_beta", lambda key, alpha: jnp.float32(1))
    np.testing.assert_array_equal(mixing.mixup(KEY, jnp.asarray(IMAGE)).input, IMAGE)


def test_mixup_mapped_over_keys_is_a_loop():
    together = quick_jit(jax.vmap(mixing.mixup, (0, None, None)))(KEYS[:3], IMAGE, 1.0)
    for i, key in enumerate(KEYS[:3]):
        for got, expected in zip(mixup(key, IMAGE, 1.0), together, strict=True):
            np.testing.assert_allclose(got, expected[i], atol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_symmetric_beta_has_the_moments_of_beta(alpha):
    """Mean ½, variance 1 / 4(2α + 1), fourth central moment 3 / 16(2α + 1)(2α + 3)."""
    draws = np.asarray(beta(jax.random.split(KEY, 40_000), alpha), np.float64) - 0.5
    assert draws.mean() == pytest.approx(0, abs=0.007)
    assert (draws**2).mean() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.02)
    assert (draws**4).mean() == pytest.approx(
        3 / (16 * (2 * alpha + 1) * (2 * alpha + 3)), rel=0.03
    )


def test_symmetric_beta_at_the_ends_of_the_uniform_numbers(monkeypatch):
    uniform = [[0.0, 0.3], [1 - 2**-24, 0.3], [0.5, 0.25], [1 - 2**-24, 0.0], [0.0, 0.5]]
    for pair in uniform:
        monkeypatch.setattr(
            jax.random, "uniform", lambda key, shape, pair=pair: jnp.array(pair, jnp.float32)
        )
        for alpha in (1e-3, 1.0, 100.0):
            assert 0 <= mixing.symmetric_beta(KEY, alpha) <= 1


# --- CutMix ----------------------------------------------------------------------------------------------------------


def test_cutmix_weight_is_the_share_of_own_pixels_exactly(boxes):
    for image, partner, weight in zip(*boxes, strict=True):
        assert sorted(partner) == list(range(6))
        for row in range(6):
            own = image[row] == NUMBERED[row]
            np.testing.assert_array_equal(image[row][~own], partner[row] / 8)
            if partner[row] != row:
                assert own.mean(dtype=np.float64) == pytest.approx(weight, abs=1e-7)


def test_cutmix_cuts_the_same_box_from_every_row(boxes):
    places = set()
    for image, partner, _ in zip(*boxes, strict=True):
        foreign = [
            image[row, ..., 0] != NUMBERED[row, ..., 0] for row in range(6) if partner[row] != row
        ]
        for box in foreign:
            np.testing.assert_array_equal(box, foreign[0])
            rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
            assert box.sum() == len(rows) * len(columns)
            assert box.sum() == 0 or box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            places.add((rows[:1].sum(), columns[:1].sum(), len(rows), len(columns)))
    assert len(places) > 80


def test_cutmix_box_sides_by_hand(monkeypatch):
    """λ₀ = 7/16: sides 8 · ¾ = 6 and 12 · ¾ = 9; around the pixel (1, 5) they reach from −2 to 4 and from 1 to 10."""
    monkeypatch.setattr(mixing, "symmetric_beta", lambda key, alpha: jnp.float32(7 / 16))
    monkeypatch.setattr(jax.random, "randint", lambda *args: jnp.array([1, 5]))
    image, partner, weight = quick_jit(lambda key, image: mixing.cutmix(key, image, 1.0, 1.0))(
        KEY, NUMBERED
    )
    row = int(np.flatnonzero(partner != np.arange(6))[0])
    expected = np.zeros((8, 12), bool)
    expected[:4, 1:10] = True
    np.testing.assert_array_equal(np.asarray(image[row, ..., 0]) != NUMBERED[row, ..., 0], expected)
    assert weight == 1 - 36 / 96


def test_cutmix_weight_follows_the_clipped_boxes(boxes):
    """Against the same construction in numpy: λ₀ uniform, the middle uniform, clipped at the border."""
    rng = np.random.default_rng(0)
    area = np.ones(20_000)
    side = np.sqrt(1 - rng.random(20_000))
    for length in (8, 12):
        size = np.floor(length * side).astype(int)
        start = rng.integers(0, length, 20_000) - size // 2
        area *= (np.minimum(start + size, length) - np.maximum(start, 0)) / length
    assert boxes.weight.mean() == pytest.approx(1 - area.mean(), abs=0.05)
    assert boxes.weight.std() == pytest.approx(area.std(), abs=0.04)


def test_cutmix_leaves_alone_as_often_as_asked(boxes):
    del boxes  # compiled there
    before = cutmixes._cache_size()
    untouched = cutmixes(KEYS, NUMBERED, 1.0, 0.0)
    np.testing.assert_array_equal(untouched.weight, 1)
    np.testing.assert_array_equal(
        untouched.input, np.broadcast_to(NUMBERED, (200, *NUMBERED.shape))
    )
    half = cutmixes(KEYS, NUMBERED, 0.3, 0.5)
    assert 75 < (np.asarray(half.weight) == 1).sum() < 150  # binomial, and a few boxes of no pixel
    assert cutmixes._cache_size() == before


def test_cutmix_mapped_over_keys_is_a_loop(boxes):
    for i, key in enumerate(KEYS[:3]):
        for got, expected in zip(cutmix(key, NUMBERED, 1.0, 1.0), boxes, strict=True):
            np.testing.assert_array_equal(got, expected[i])


# --- two labels ------------------------------------------------------------------------------------------------------

TASK = SingleLabel(4)
LOGITS = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)), jnp.float32)
LABEL = jnp.array([0, 3, 1, 2, 2, 0])


def two_labels(partner, weight):
    return weight * TASK.loss(LOGITS, LABEL) + (1 - weight) * TASK.loss(LOGITS, LABEL[partner])


def test_loss_of_two_labels_is_the_cross_entropy_of_the_soft_label():
    """O25."""
    _, partner, weight = jax.device_get(mixup(KEY, IMAGE, 1.0))
    soft = weight * np.eye(4)[LABEL] + (1 - weight) * np.eye(4)[LABEL[partner]]
    expected = -(soft * np.asarray(jax.nn.log_softmax(LOGITS))).sum(-1)
    np.testing.assert_allclose(two_labels(partner, weight), expected, rtol=1e-5)


@pytest.mark.parametrize(("partner", "weight"), [(np.arange(6), 0.5), (np.arange(6)[::-1], 1.0)])
def test_loss_of_one_label_is_the_plain_cross_entropy(partner, weight):
    """O25: λ = ½ with the identity, and λ = 1 with any partner."""
    np.testing.assert_allclose(two_labels(partner, weight), TASK.loss(LOGITS, LABEL), rtol=1e-6)
