"""Augmentation: every place and both directions occur, nothing else happens, each image has its own draw."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from bdjax.checks import InputError
from bdjax.data import augment
from bdjax.data.modalities.images import image_spec

KEY = jax.random.key(0)


def replaced(spec, **changes):
    return dataclasses.replace(spec, modality=dataclasses.replace(spec.modality, **changes))


SPEC = image_spec("numbered", (4, 5, 1), 10, (0.5,), (0.25,), crop_padding=2, flip=True)
NUMBERED = np.arange(1, 21, dtype=np.uint8).reshape(4, 5, 1)  # no two pixels alike, none black
standard = jax.jit(lambda key, image, spec: spec.modality.standard(key, image), static_argnums=2)
as_float = jax.jit(augment.as_float)
cutouts = quick_jit(
    jax.vmap(lambda key, image, fill: augment.cutout(key, image, 3, fill), (0, None, None))
)


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
    flipped = jax.jit(jax.vmap(lambda key: augment.flip(key, jnp.asarray(NUMBERED))))(
        jax.random.split(KEY, 400)
    )
    mirrored = (np.asarray(flipped) == NUMBERED[:, ::-1]).all((1, 2, 3))
    unchanged = (np.asarray(flipped) == NUMBERED).all((1, 2, 3))
    assert (mirrored ^ unchanged).all()
    assert 150 < mirrored.sum() < 250  # binomial, standard deviation 10


def test_standard_crops_then_flips_each_image_by_its_own_draw():
    batch = np.broadcast_to(NUMBERED, (64, 4, 5, 1))
    images = np.asarray(standard(KEY, batch, SPEC))
    is_flipped = [image.max() > 0 and not _is_window(image) for image in images]
    places = [
        place(image[:, ::-1] if flip else image, 2)
        for image, flip in zip(images, is_flipped, strict=True)
    ]
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
    plain = replaced(SPEC, crop_padding=0, flip=False)
    assert plain.modality.standard(KEY, batch) is batch


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


# --- Cutout ----------------------------------------------------------------------------------------------------------


def test_cutout_covers_one_square_around_any_pixel_and_nothing_else():
    keys = jax.random.split(KEY, 300)
    image = np.broadcast_to(NUMBERED, (4, 5, 3)).astype(np.float32) / 20
    covered = np.asarray(cutouts(keys, image, jnp.array([0.0, 0.25, 0.5])))
    assert covered.dtype == np.float32
    holes = set()
    for result in covered:
        hole = (result != image).any(-1)
        np.testing.assert_array_equal(
            result[hole], np.broadcast_to([0, 0.25, 0.5], (hole.sum(), 3))
        )
        holes.add(hole.tobytes())
    squares = set()
    for y in range(4):
        for x in range(5):
            square = np.zeros((4, 5), bool)
            square[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = True
            squares.add(square.tobytes())
    assert holes == squares


def test_cutout_wider_than_the_image_covers_all_of_it():
    np.testing.assert_array_equal(augment.cutout(KEY, jnp.ones((3, 4, 1)), 8), 0)


# --- by name ---------------------------------------------------------------------------------------------------------

BATCH = np.random.default_rng(0).integers(0, 256, (6, 16, 18, 1), dtype=np.uint8)
GRAY = image_spec("gray", (16, 18, 1), 10, (0.4,), (0.25,), crop_padding=2, flip=True)
augmented = quick_jit(
    lambda key, image, spec, name, alpha: spec.modality.augmented(key, image, name, alpha),
    static_argnums=(2, 3),
)


@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
def test_augmented_batches_keep_shape_and_range_and_say_what_is_mixed(name):
    image, partner, weight = augmented(KEY, BATCH, GRAY, name, 1.0)
    assert image.shape == BATCH.shape
    assert image.dtype == jnp.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert sorted(partner.tolist()) == list(range(6))
    if name not in augment.MIXING:
        assert partner.tolist() == list(range(6))
        assert weight == 1
    before = np.asarray(as_float(standard(KEY, BATCH, GRAY) if name != "none" else BATCH))
    same = np.array_equal(image, before)
    assert same == (
        name in ("standard", "none", "adversarial") or (name == "cutmix" and weight == 1)
    )


def test_mixing_starts_from_the_standard_augmentation_and_alpha_compiles_nothing():
    image, partner, weight = augmented(KEY, BATCH, GRAY, "mixup", 1.0)
    before = np.asarray(standard(KEY, BATCH, GRAY)) / 255
    np.testing.assert_allclose(
        image, weight * before + (1 - weight) * before[np.asarray(partner)], atol=1e-6
    )
    compiled = augmented._cache_size()
    assert augmented(KEY, BATCH, GRAY, "mixup", 0.2).weight != weight
    assert augmented._cache_size() == compiled


def test_cutout_by_name_has_half_the_shorter_side_and_the_mean():
    image, _, _ = augmented(
        KEY, np.full_like(BATCH, 255), replaced(GRAY, crop_padding=0), "cutout", 1.0
    )
    holes = np.asarray(image) != 1
    np.testing.assert_allclose(np.asarray(image)[holes], 0.4, rtol=1e-6)
    assert (holes.sum((1, 2, 3)) <= 64).all()
    assert (holes.any(2).sum((1, 2)) <= 8).all()
    assert (holes.sum((1, 2, 3)) >= 4 * 4).all()


def test_unknown_name():
    with pytest.raises(InputError, match=r"name must be one of standard, .*did you mean 'cutmix'"):
        GRAY.modality.augmented(KEY, jnp.asarray(BATCH), "cutmixx")
