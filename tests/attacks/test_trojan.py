"""Known answers: the watermark's levels, both additions, the neurons chosen, and the signed steps in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import Linear
from quick import quick_jit

from bdjax import attacks, poison
from bdjax.attacks.trojan import Neurons, best_connected, blob
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.types import Spec, Split

KEY = jax.random.key(0)
TINY = image_spec("tiny", (8, 6, 2), 3, (0.0, 0.0), (1.0, 1.0))
RED = [[207, 175, 29], [79, 137, 248], [131, 6, 246]]
GRAY = [[173, 179, 147], [71, 56, 169], [58, 71, 247]]  # (207 + 131 + 181) / 3 = 173, …


def spec_of(side: int, channels: int = 3) -> Spec:
    return image_spec("known", (side, side, channels), 10, (0.5,) * channels, (0.25,) * channels)


def triggered(image: np.ndarray, rounding: str = "nearest", **options) -> np.ndarray:
    """Return uint8 images with the watermark."""
    attack = attacks.create("trojan", form="watermark", **options)
    state = attack.trigger.init(KEY, spec_of(image.shape[1], image.shape[3]))
    split = Split(image, np.ones(len(image), np.int32), np.ones(len(image), bool))
    return np.asarray(
        poison.poison_test(KEY, attack, state, split, rounding=rounding).visible.input
    )


@pytest.mark.parametrize(("side", "top"), [(32, 25), (8, 5), (28, 22), (64, 50)])
def test_the_watermark_is_nine_pixels_at_row_and_column_25_of_32(side, top):
    image = triggered(np.zeros((1, side, side, 3), np.uint8))[0].copy()
    np.testing.assert_array_equal(image[top : top + 3, top : top + 3, 0], RED)
    assert tuple(image[top + 2, top + 2]) == (246, 250, 246)
    image[top : top + 3, top : top + 3] = 0
    assert not image.any()


def test_gray_images_get_the_mean_of_the_colors():
    image = triggered(np.zeros((1, 32, 32, 1), np.uint8))[0, 25:28, 25:28, 0]
    np.testing.assert_array_equal(image, GRAY)


@pytest.mark.parametrize("rounding", poison.ROUNDINGS)
def test_the_two_additions_of_every_level(rounding):
    levels = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 8, 8, 1))
    wide, patch = levels.astype(int)[:, 5:, 5:, 0], np.array(GRAY)
    saturating, modular = (
        triggered(levels, rounding, **options)[:, 5:, 5:, 0]
        for options in ({}, {"preset": "reference_code"})
    )
    np.testing.assert_array_equal(saturating, np.minimum(wide + patch, 255))
    np.testing.assert_array_equal(modular, (wide + patch) % 256)


def test_the_watermark_needs_no_network_and_the_neurons_do():
    watermark, neurons = attacks.create("trojan", form="watermark"), attacks.create("trojan")
    assert watermark.by_formula
    assert (watermark.surrogate, neurons.surrogate) == ("none", "clean")
    assert neurons.trigger.hooks == ("fit",)


def test_the_best_connected_have_the_largest_sum_of_absolute_weights():
    model = Linear(TINY)
    variables = model.init(KEY)
    variables["params"]["a"]["kernel"] = jnp.array(
        [[5.0, 0, 0], [-3, 3, 0], [2, 2, 2], [-1, -1, -5.0]]
    )
    # 7 and 6; not the largest weight
    np.testing.assert_array_equal(best_connected(model, variables, 2), [3, 1])
    assert best_connected(model, variables, 9).shape == (4,)


def fitted(steps: int, activation: float = 100.0, neurons: int = 2, step_size: float = 0.1):
    model = Linear(TINY)
    variables = model.init(jax.random.key(3))
    trigger = Neurons(0.07, activation, step_size, 0.3, neurons, steps, "saturating")
    state = trigger.init(KEY, TINY)
    split = Split(
        jnp.zeros((5, *TINY.shape), jnp.uint8), jnp.zeros(5, jnp.int32), jnp.ones(5, bool)
    )
    made, info = quick_jit(trigger.fit, static_argnums=1)(KEY, model, variables, state, split)
    return model, variables, state, made, info


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_signed_steps_by_hand(steps):
    _, variables, state, made, _ = fitted(steps, step_size=0.04)
    mask = np.broadcast_to(np.asarray(state["mask"], np.float64), TINY.shape)
    first, last = (
        np.asarray(variables["params"][name]["kernel"], np.float64) for name in ("z", "a")
    )
    chosen = np.argsort(-np.abs(last).sum(1))[:2]
    picture = mask.copy()
    for _ in range(steps):
        features = (picture * (mask > 0)).ravel() @ first[:, chosen]
        slope = (2 * (features - 100) * first[:, chosen]).sum(1).reshape(TINY.shape) * (mask > 0)
        picture = np.clip(
            picture - 0.04 * np.sign(slope), np.maximum(mask - 0.3, 0), np.minimum(mask + 0.3, 1)
        )
    np.testing.assert_allclose(made["picture"], picture * (mask > 0), atol=1e-6)


def test_the_picture_excites_its_neurons_within_the_mask():
    model, variables, state, made, info = fitted(100)
    mask, picture = np.asarray(state["mask"]), np.asarray(made["picture"])
    assert np.abs(picture - mask).max() <= 0.3 + 1e-6
    assert not picture[(mask == 0)[..., 0]].any()
    chosen = best_connected(model, variables, 2)
    start, end = (
        model.features(variables, jnp.broadcast_to(x, TINY.shape)[None])[0, chosen]
        for x in (mask, picture)
    )
    assert end.sum() > start.sum() + 0.5
    np.testing.assert_allclose(info.loss, ((end - 100) ** 2).sum(), rtol=1e-5)
    assert info.gradient_evaluations == 21  # 101 of single images are 21 of five


def test_it_ends_when_the_neurons_are_where_they_should_be():
    model, variables, state, _, _ = fitted(0)
    features = model.features(variables, jnp.broadcast_to(state["mask"], TINY.shape)[None])[0]
    activation = float(features[best_connected(model, variables, 1)[0]])
    *_, made, info = fitted(1000, activation, neurons=1)
    np.testing.assert_array_equal(made["picture"], np.broadcast_to(state["mask"], TINY.shape))
    assert info.gradient_evaluations == 1


@pytest.mark.parametrize("side", [8, 32, 64])
def test_the_blob_covers_its_share_of_the_lower_right_quarter(side):
    masks = np.asarray(
        quick_jit(jax.vmap(blob, (0, None, None)), static_argnums=(1, 2))(
            jax.random.split(KEY, 20), side, side
        )
    )
    share = masks.mean((1, 2, 3))
    assert abs(share.mean() - 0.07) < 0.005
    assert np.abs(share - 0.07).max() < (0.015 if side == 8 else 0.005)
    assert not masks[:, : side // 2 - (side == 8)].any()
    assert not masks[:, :, : side // 2 - (side == 8)].any()
    assert masks.min() == 0
    assert masks.max() == 1
    assert (masks[0] != masks[1]).any()
    soft = ((masks > 0) & (masks < 1)).mean()
    assert 0 < soft < 0.2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "neuron"}, "form must be one of .* .did you mean 'neurons'"),
        ({"addition": "clipped"}, "addition must be one of saturating, modular; got 'clipped'"),
        ({"neurons": 0}, "neurons must be 1 or more, got 0"),
        ({"radius": 1.5}, "radius must lie between 0 and 1"),
        ({"area": 0.0}, "area must be above 0"),
    ],
)
def test_trojan_refuses(options, words):
    with pytest.raises(InputError, match=words):
        attacks.create("trojan", **options)
