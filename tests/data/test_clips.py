"""Clips as a kind of input: frames stay together, and what images do is done to each of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import data
from bdjax.checks import InputError
from bdjax.data.modalities.clips import Clips
from bdjax.data.modalities.images import Images
from bdjax.types import Modality

KEY = jax.random.key(0)
CLIPS = Clips(Images((0.5,), (0.25,), crop_padding=2, flip=True))
BATCH = jnp.asarray(np.random.default_rng(0).integers(0, 256, (5, 3, 6, 8, 1), dtype=np.uint8))


def test_it_is_a_modality_and_may_be_a_static_argument():
    assert isinstance(CLIPS, Modality)
    assert isinstance(CLIPS.frames, Modality)
    assert hash(CLIPS) == hash(Clips(Images((0.5,), (0.25,), crop_padding=2, flip=True)))


def test_what_is_stored_comes_back():
    worked_on = CLIPS.load(BATCH)
    assert worked_on.dtype == jnp.float32
    np.testing.assert_array_equal(CLIPS.store(worked_on, BATCH), BATCH)
    np.testing.assert_allclose(
        CLIPS.normalize(worked_on), (np.asarray(BATCH) / 255 - 0.5) / 0.25, atol=1e-6
    )


def test_the_frames_of_a_clip_are_moved_alike():
    still = jnp.broadcast_to(BATCH[:, :1], BATCH.shape)
    moved = np.asarray(CLIPS.moved(KEY, still, "standard"))
    assert (moved == moved[:, :1]).all()
    assert (moved != np.asarray(still)).any()
    np.testing.assert_array_equal(moved[:, 0], CLIPS.frames.standard(KEY, still[:, 0]))
    np.testing.assert_array_equal(CLIPS.moved(KEY, BATCH, "none"), BATCH)


def test_clips_are_mixed_whole():
    mixed = CLIPS.mixed(KEY, BATCH, "mixup")
    expected = mixed.weight * BATCH / 255 + (1 - mixed.weight) * BATCH[mixed.partner] / 255
    np.testing.assert_allclose(mixed.input, expected, atol=1e-6)


def test_an_augmentation_of_images_alone_is_refused():
    with pytest.raises(InputError, match=r"augment must be .* got 'cutmix'"):
        CLIPS.moved(KEY, BATCH, "cutmix")


def test_a_picture_has_the_frames_side_by_side():
    picture = np.asarray(CLIPS.picture(BATCH))
    assert picture.shape == (5, 6, 24, 1)
    for frame in range(3):
        np.testing.assert_array_equal(picture[:, :, 8 * frame : 8 * frame + 8], BATCH[:, frame])


def test_moving_digits_are_the_embedded_ones():
    clips, digits = data.load("digits_clips"), data.load("digits")
    assert clips.train.input.shape == (1347, 6, 14, 14, 1)
    assert clips.spec.shape == (6, 14, 14, 1)
    np.testing.assert_array_equal(clips.test.label, digits.test.label)
    total = clips.train.input.sum((2, 3, 4), dtype=int)
    np.testing.assert_array_equal(
        total, np.broadcast_to(digits.train.input.sum((1, 2, 3), dtype=int)[:, None], total.shape)
    )
    # Most of them move
    assert (clips.train.input[:, 0] != clips.train.input[:, -1]).any((1, 2, 3)).mean() > 0.9
    assert data.fingerprint(clips) == data.fingerprint(data.load("digits_clips"))
