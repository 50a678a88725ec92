"""Augmentation: every place and both directions occur, nothing else happens, each image has its own draw."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.data import augment
from bdjax.types import ImageSpec

KEY = jax.random.key(0)
SPEC = ImageSpec("numbered", (4, 5, 1), 10, (0.5,), (0.25,), crop_padding=2, flip=True)
NUMBERED = np.arange(1, 21, dtype=np.uint8).reshape(4, 5, 1)  # no two pixels alike, none black
standard = jax.jit(augment.standard, static_argnums=2)


def place(image: np.ndarray, padding: int) -> tuple[int, int]:
    """Return where in the padded picture the window was cut; fail if it is not a window."""
    padded = np.pad(NUMBERED, ((padding, padding), (padding, padding), (0, 0)))
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            if np.array_equal(padded[top : top + 4, left : left + 5], image):
                return top, left
    raise AssertionError("not a window of the padded image")


def test_crop_cuts_a_window_of_the_padded_image_at_any_place():
    keys = jax.random.split(KEY, 300)
    cropped = jax.jit(jax.vmap(lambda key: augment.crop(key, jnp.asarray(NUMBERED), 2)))(keys)
    assert cropped.dtype == jnp.uint8
    places = [place(image, 2) for image in np.asarray(cropped)]
    assert set(places) == {(top, left) for top in range(5) for left in range(5)}


def test_flip_mirrors_about_every_other_image():
    flipped = jax.jit(jax.vmap(lambda key: augment.flip(key, jnp.asarray(NUMBERED))))(jax.random.split(KEY, 400))
    mirrored = (np.asarray(flipped) == NUMBERED[:, ::-1]).all((1, 2, 3))
    unchanged = (np.asarray(flipped) == NUMBERED).all((1, 2, 3))
    assert (mirrored ^ unchanged).all()
    assert 150 < mirrored.sum() < 250  # binomial, standard deviation 10


def test_standard_crops_then_flips_each_image_by_its_own_draw():
    batch = np.broadcast_to(NUMBERED, (64, 4, 5, 1))
    images = np.asarray(standard(KEY, batch, SPEC))
    is_flipped = [image.max() > 0 and not _is_window(image) for image in images]
    places = [place(image[:, ::-1] if flip else image, 2) for image, flip in zip(images, is_flipped, strict=True)]
    assert 16 < sum(is_flipped) < 48
    assert len(set(places)) > 12


def _is_window(image: np.ndarray) -> bool:
    try:
        place(image, 2)
    except AssertionError:
        return False
    return True


def test_same_key_same_bits_other_key_others():
    batch = np.broadcast_to(NUMBERED, (64, 4, 5, 1))
    first, again, other = (standard(key, batch, SPEC) for key in (KEY, KEY, jax.random.key(1)))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_without_crop_and_flip_nothing_happens():
    batch = jnp.asarray(NUMBERED)[None]
    plain = dataclasses.replace(SPEC, crop_padding=0, flip=False)
    assert augment.standard(KEY, batch, plain) is batch


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_type_and_values_are_kept(dtype):
    batch = NUMBERED[None].astype(dtype)
    augmented = standard(KEY, batch, SPEC)
    assert augmented.dtype == dtype
    assert set(np.unique(augmented)) <= {0, *np.unique(batch)}


def test_as_float():
    np.testing.assert_allclose(augment.as_float(jnp.array([0, 51, 255], jnp.uint8)), [0, 0.2, 1])
    image = jnp.array([0.25, 0.5])
    assert augment.as_float(image) is image
