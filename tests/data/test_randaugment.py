"""Each image operation against Pillow and by hand; RandAugment's and AugMix's draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from quick import quick_jit

from bdjax.data import operations, randaugment

KEY = jax.random.key(0)
AFFINE = Image.Transform.AFFINE
BILINEAR = Image.Resampling.BILINEAR


def picture(channels: int) -> np.ndarray:
    """A 20×28 uint8 picture with a slope, noise and a dark corner; not every level occurs."""
    rng = np.random.default_rng(channels)
    y, x = np.mgrid[:20, :28]
    smooth = 40 + 4 * y[..., None] + 3 * x[..., None] * np.linspace(0.5, 1, channels)
    smooth[:5, :6] = 9
    return np.clip(smooth + rng.integers(-20, 20, smooth.shape), 5, 240).astype(np.uint8)


def pillow_affine(image, *matrix):
    return image.transform(image.size, AFFINE, matrix, resample=BILINEAR)


# name: amount, Pillow's way, difference in levels (Pillow rounds or cuts to 8 bits, also on the way)
CASES = {
    "identity": (0.0, lambda image: image, 0),
    "autocontrast": (0.0, ImageOps.autocontrast, 1),
    "equalize": (0.0, ImageOps.equalize, 0),
    "posterize": (3.0, lambda image: ImageOps.posterize(image, 3), 0),
    "solarize": (100.0, lambda image: ImageOps.solarize(image, 100), 0),
    "color": (0.3, lambda image: ImageEnhance.Color(image).enhance(0.3), 1.5),
    "contrast": (1.8, lambda image: ImageEnhance.Contrast(image).enhance(1.8), 2),
    "brightness": (1.4, lambda image: ImageEnhance.Brightness(image).enhance(1.4), 1),
    "sharpness": (1.9, lambda image: ImageEnhance.Sharpness(image).enhance(1.9), 1.5),
    "rotate": (17.3, lambda image: image.rotate(17.3, BILINEAR), 1),
    "shear_x": (0.23, lambda image: pillow_affine(image, 1, 0.23, 0, 0, 1, 0), 1),
    "shear_y": (-0.23, lambda image: pillow_affine(image, 1, 0, 0, -0.23, 1, 0), 1),
    "translate_x": (0.12, lambda image: pillow_affine(image, 1, 0, 0.12 * 28, 0, 1, 0), 1),
    "translate_y": (-0.13, lambda image: pillow_affine(image, 1, 0, 0, 0, 1, -0.13 * 20), 1),
}


@quick_jit
def all_operations(amounts, image):
    """Each operation by its own amount: [14, h, w, c]."""
    each = jax.vmap(
        lambda choice, amount: operations.apply(operations.NAMES, choice, amount, image)
    )
    return each(jnp.arange(len(operations.NAMES)), amounts)


@pytest.fixture(scope="module", params=[1, 3])
def results(request):
    image = picture(request.param)
    amounts = np.array([CASES[name][0] for name in operations.NAMES], np.float32)
    changed = np.asarray(all_operations(amounts, image.astype(np.float32) / 255))
    return image, dict(zip(operations.NAMES, changed, strict=True))


@pytest.mark.parametrize("name", operations.NAMES)
def test_operation_is_pillows(name, results):
    image, changed = results
    _, pillow, tolerance = CASES[name]
    expected = (
        np.asarray(pillow(Image.fromarray(image.squeeze()))).reshape(image.shape).astype(np.float32)
    )
    difference = np.abs(255 * changed[name] - expected)
    assert difference.max() <= tolerance + 1e-3
    # The case says something
    assert name in ("identity", "color") or (expected != image).mean() > 0.1


def test_operations_keep_shape_type_and_range(results):
    image, changed = results
    for result in changed.values():
        assert result.shape == image.shape
        assert result.dtype == np.float32
        assert result.min() >= 0
        assert result.max() <= 1


def test_neutral_amounts_give_the_image(results):
    """Magnitude 0 of RandAugment: all but autocontrast and equalize, but for rounding, on an 8-bit image."""
    image = results[0].astype(np.float32) / 255
    neutral = np.array(
        [randaugment.RANDAUGMENT[name].start for name in operations.NAMES], np.float32
    )
    for name, result in zip(
        operations.NAMES, np.asarray(all_operations(neutral, image)), strict=True
    ):
        if name not in ("autocontrast", "equalize"):
            np.testing.assert_allclose(result, image, atol=1e-7, err_msg=name)
    assert all_operations._cache_size() <= 2  # one for each number of channels


# --- by hand ---------------------------------------------------------------------------------------------------------


@quick_jit
def values(image):
    return {
        "autocontrast": operations.autocontrast(image),
        "autocontrast of one value": operations.autocontrast(image[:1, :1]),
        "posterize to 3 bits": operations.posterize(image, 3),
        "posterize to 2.4 bits": operations.posterize(image, 2.4),
        "posterize to 8 bits": operations.posterize(image, 8),
        "solarize": operations.solarize(image, 102.0),
        "brightness": operations.brightness(image, 2.0),
        "contrast 0": operations.contrast(image, 0.0),
        "contrast 1.5": operations.contrast(image, 1.5),
        "color of a gray image": operations.color(image, 0.0),
        "equalize fewer than 256 pixels": operations.equalize(image),
        "color": operations.color(image[1:].repeat(3, 2) * jnp.array([1, 0, 0]), 0.0)[0, 1],
    }


def test_values_by_hand():
    expected = {
        "autocontrast": [0, 34, 85, 255],
        "autocontrast of one value": [51],
        "posterize to 3 bits": [32, 64, 96, 192],
        "posterize to 2.4 bits": [32, 64, 96, 192],
        "posterize to 8 bits": [51, 71, 101, 201],
        "solarize": [51, 71, 101, 54],
        "brightness": [102, 142, 202, 255],
        "contrast 0": [106] * 4,
        "contrast 1.5": [23.5, 53.5, 98.5, 248.5],
        "color of a gray image": [51, 71, 101, 201],
        "equalize fewer than 256 pixels": [51, 71, 101, 201],
        "color": [0.299 * 201] * 3,
    }
    for name, result in values(
        np.array([51, 71, 101, 201], np.float32).reshape(2, 2, 1) / 255
    ).items():
        np.testing.assert_allclose(
            255 * np.asarray(result).reshape(-1), expected[name], atol=1e-3, err_msg=name
        )


@quick_jit
def several(bimodal, spot, image):
    return (
        operations.equalize(bimodal),
        operations.sharpness(spot, 0.0),
        operations.sharpness(spot[:2, :1], 0.0),
        operations.rotate(image, 90.0),
        operations.translate_x(image, 0.25),
        operations.translate_y(image, -0.5),
        operations.translate_x(image, 0.125),
        operations.shear_x(image, 1.0),
        operations.shear_y(image, 1.0),
    )


def test_the_rest_by_hand():
    bimodal = np.repeat(np.array([10, 200], np.float32) / 255, 256).reshape(16, 32, 1)
    spot = np.zeros((3, 3, 1), np.float32)
    spot[1, 1] = 1
    image = np.arange(1, 17, dtype=np.float32).reshape(4, 4, 1)
    equalized, blurred, border, turned, left, down, half, sheared_x, sheared_y = map(
        np.asarray, several(bimodal, spot, image)
    )
    # 256 pixels each of two levels: s = ⌊256 / 255⌋ = 1, B = 0 and 256, so 0 and min(256, 255)
    np.testing.assert_array_equal(equalized.reshape(-1), np.repeat([0, 1], 256))
    # the spot becomes 5/13, and its neighbors are on the border, which is not blurred
    np.testing.assert_allclose(blurred, spot * 5 / 13, rtol=1e-6)
    np.testing.assert_array_equal(border, spot[:2, :1])
    np.testing.assert_allclose(turned, np.rot90(image), atol=1e-4)
    np.testing.assert_array_equal(left, np.concatenate([image[:, 1:], 0 * image[:, :1]], 1))
    np.testing.assert_array_equal(down, np.concatenate([0 * image[:2], image[:2]]))
    np.testing.assert_allclose(half[:, :3], (image[:, :-1] + image[:, 1:]) / 2, rtol=1e-6)
    # row y is shifted by y + ½
    np.testing.assert_allclose(
        sheared_x[::2, :, 0], [[1.5, 2.5, 3.5, 0], [11.5, 0, 0, 0]], rtol=1e-6
    )
    np.testing.assert_allclose(sheared_y[..., 0].T[::2], [[3, 7, 11, 0], [13, 0, 0, 0]], rtol=1e-6)


# --- RandAugment -----------------------------------------------------------------------------------------------------

IMAGE = jnp.asarray(picture(3), jnp.float32) / 255
one_operation = quick_jit(
    jax.vmap(lambda key, m: randaugment.randaugment(key, IMAGE, 1, m), (0, None))
)


@pytest.mark.parametrize("magnitude", [10.0, 30.0])
def test_randaugment_draws_all_operations_alike_at_the_stated_amounts(magnitude):
    s = magnitude / 30
    plus = {
        "identity": 0,
        "autocontrast": 0,
        "equalize": 0,
        "posterize": 8 - 4 * s,
        "solarize": 256 - 256 * s,
    }
    plus |= dict.fromkeys(("color", "contrast", "brightness", "sharpness"), 1 + 0.9 * s)
    plus |= {"rotate": 30 * s, "shear_x": 0.3 * s, "shear_y": 0.3 * s}
    plus |= dict.fromkeys(("translate_x", "translate_y"), 150 / 331 * s)
    minus = {
        name: (2 - x if name in operations.NAMES[5:9] else -x) for name, x in list(plus.items())[5:]
    }
    candidates = [
        np.asarray(
            all_operations(np.array([side[name] for name in operations.NAMES], np.float32), IMAGE)
        )
        for side in (plus, plus | minus)
    ]
    results = np.asarray(one_operation(jax.random.split(KEY, 700), magnitude))
    first, second = (
        np.stack([np.abs(results - option).max((1, 2, 3)) < 1e-5 for option in side], 1)
        for side in candidates
    )
    np.testing.assert_array_equal((first | second).sum(1), 1)
    assert (np.abs((first | second).sum(0) - 50) < 25).all()  # binomial, standard deviation 7
    signed = (first ^ second).any(0)
    assert signed.tolist() == [False] * 5 + [True] * 9
    assert (first.sum(0)[signed] > 8).all()
    assert (second.sum(0)[signed] > 8).all()
    assert one_operation._cache_size() == 1


unmapped = quick_jit(  # here a branch is a branch
    lambda key, image, magnitude, severity: (
        randaugment.randaugment(key, image, 2, magnitude),
        randaugment.augmix(key, image, severity, 3),
    )
)
policies = quick_jit(
    lambda keys, image, magnitude, severity: (
        jax.vmap(randaugment.randaugment, (0, 0, None, None))(keys, image, 2, magnitude),
        jax.vmap(randaugment.augmix, (0, 0, None, None))(keys, image, severity, 3),
    )
)


def test_policies_keep_shape_type_and_range_and_are_a_loop():
    keys = jax.random.split(KEY, 64)
    image = jnp.broadcast_to(IMAGE, (64, *IMAGE.shape))
    for strength in (1.0, 10.0, 30.0):
        results = policies(keys, image, strength, 0.1 + strength / 4)
        for result in results:
            assert result.shape == image.shape
            assert result.dtype == jnp.float32
            assert result.min() >= 0
            assert result.max() <= 1
            # Each image has a draw of its own
            assert len(np.unique(np.asarray(result), axis=0)) > 3
    assert policies._cache_size() == 1
    for together, single in zip(results, unmapped(keys[5], IMAGE, 30.0, 7.6), strict=True):
        np.testing.assert_allclose(together[5], single, atol=1e-5)


# --- AugMix ----------------------------------------------------------------------------------------------------------


def test_augmix_leaves_out_what_its_benchmark_tests():
    left_out = {"color", "contrast", "brightness", "sharpness"}
    assert set(randaugment.AUGMIX) == set(operations.NAMES) - left_out
    assert tuple(randaugment.AUGMIX) == tuple(
        name for name in operations.NAMES if name in randaugment.AUGMIX
    )
    assert tuple(randaugment.RANDAUGMENT) == operations.NAMES


@pytest.fixture(scope="module")
def mixtures():
    """AugMix of 20,000 one-pixel images whose chains are replaced by a pixel for each question."""
    rotate = tuple(randaugment.AUGMIX).index("rotate")
    chains = {
        "white": lambda choice, amount: 1.0,
        "first four": lambda choice, amount: (choice[0] >= 1) & (choice[0] <= 4),
        "depth": lambda choice, amount: (choice > 0).sum() / 3,
        "depth 1": lambda choice, amount: (choice > 0).sum() == 1,
        "turn": lambda choice, amount: jnp.where(choice[0] == rotate, jnp.abs(amount[0]) / 30, 0),
        "turn back": lambda choice, amount: (choice[0] == rotate) & (amount[0] < 0),
    }

    def answers(scales, choice, amount, image):
        return image + jnp.array([chain(choice, amount) for chain in chains.values()], jnp.float32)

    black = jnp.zeros((1, 1, len(chains)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(randaugment, "_sequence", answers)
        mixed = quick_jit(jax.vmap(lambda key: randaugment.augmix(key, black)))(
            jax.random.split(KEY, 20_000)
        )
    return dict(zip(chains, np.asarray(mixed, np.float64).reshape(-1, len(chains)).T, strict=True))


def test_augmix_share_of_the_chains_is_uniform(mixtures):
    """White chains over a black image show m, as their weights sum to 1."""
    assert mixtures["white"].mean() == pytest.approx(1 / 2, abs=0.01)
    assert mixtures["white"].var() == pytest.approx(1 / 12, abs=0.002)
    assert mixtures["white"].max() == pytest.approx(1, abs=0.001)


def test_augmix_draws_operations_alike_and_weights_chains_by_dirichlet(mixtures):
    """A chain is white with p = 4/9: E[(m Σ w z)²] = E[m²] (p² + p (1 − p) E[Σ w²]), E[m²] = 1/3, E[Σ w²] = 1/2."""
    p, mixed = 4 / 9, mixtures["first four"]
    assert mixed.mean() == pytest.approx(p / 2, abs=0.01)
    assert (mixed**2).mean() == pytest.approx((p**2 + p * (1 - p) / 2) / 3, abs=0.004)


def test_augmix_chains_have_one_to_three_operations_alike(mixtures):
    """E[m Σ w z] = E[z] / 2."""
    assert mixtures["depth"].mean() == pytest.approx(2 / 3 / 2, abs=0.01)
    assert mixtures["depth 1"].mean() == pytest.approx(1 / 3 / 2, abs=0.01)


def test_augmix_levels_are_uniform_up_to_the_severity(mixtures):
    """One in nine is a turn; |degrees| / 30 = u / 10 with u ~ U(0.1, 5) has the mean 0.255, and half are negative."""
    assert mixtures["turn"].mean() == pytest.approx(0.255 / 9 / 2, rel=0.05)
    assert mixtures["turn back"].mean() == pytest.approx(1 / 9 / 2 / 2, rel=0.07)


def test_augmix_of_black_is_black():
    """Every operation of AugMix leaves it alone, and so does every mixture."""
    black = np.zeros((64, 20, 28, 3), np.float32)
    _, mixed = policies(jax.random.split(KEY, 64), black, 10.0, 5.0)
    np.testing.assert_array_equal(mixed, 0)
