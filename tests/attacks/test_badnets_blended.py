"""Known answers: where BadNets' patch lies, and Blended's mixture worked in NumPy."""

from __future__ import annotations

import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bdjax import attacks, poison
from bdjax.attacks import _pictures
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.types import Spec, Split

KEY = jax.random.key(0)


def spec_of(side: int, channels: int = 3) -> Spec:
    return image_spec("known", (side, side, channels), 10, (0.5,) * channels, (0.25,) * channels)


def triggered(name: str, image: np.ndarray, **options) -> np.ndarray:
    """Return one image in [0, 1] with the trigger on it."""
    trigger = attacks.create(name, **options).trigger
    state = trigger.init(KEY, spec_of(image.shape[0], image.shape[2]))
    return np.asarray(trigger.apply(KEY, state, jnp.asarray(image)))


GRAY = {side: np.full((side, side, 3), 0.5, np.float32) for side in (8, 32, 64)}


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize(
    ("corner", "bottom", "right"),
    [
        ("bottom_right", True, True),
        ("bottom_left", True, False),
        ("top_right", False, True),
        ("top_left", False, False),
    ],
)
def test_the_patch_is_3_by_3_white_pixels_in_its_corner(side, corner, bottom, right):
    changed = triggered("badnets", GRAY[side], corner=corner, size=3)
    rows = slice(side - 3, side) if bottom else slice(0, 3)
    columns = slice(side - 3, side) if right else slice(0, 3)
    expected = GRAY[side].copy()
    expected[rows, columns] = 1
    np.testing.assert_array_equal(changed, expected)


def test_by_default_the_patch_covers_rows_and_columns_29_to_31():
    row, column = np.nonzero((triggered("badnets", GRAY[32]) == 1).all(-1))
    assert (row.min(), row.max(), column.min(), column.max(), row.size) == (29, 31, 29, 31, 9)


@pytest.mark.parametrize(("side", "size"), [(8, 3), (28, 3), (32, 3), (64, 6), (96, 9), (224, 21)])
def test_by_default_the_patch_grows_with_the_image_from_3_pixels_on(side, size):
    changed = triggered("badnets", np.full((side, side, 1), 0.5, np.float32))[..., 0]
    assert (changed[side - size :, side - size :] == 1).all()
    assert (changed == 1).sum() == size**2


def test_the_sft_preset_draws_its_pattern_at_60_percent_in_the_lower_left_corner():
    image = np.random.default_rng(3).random((32, 32, 3), np.float32)
    expected = image.copy()
    pattern = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 255]])[..., None] / 255
    expected[29:, :3] = 0.4 * image[29:, :3] + 0.6 * pattern
    np.testing.assert_allclose(triggered("badnets", image, preset="sft"), expected, atol=1e-6)
    # The other corner, the same pattern
    mirrored = triggered("badnets", image, preset="reference_code")
    np.testing.assert_array_equal(mirrored[:29], image[:29])
    np.testing.assert_allclose(mirrored[29:, 29:], 0.4 * image[29:, 29:] + 0.6 * pattern, atol=1e-6)


def test_the_cells_of_the_sft_pattern_grow_with_the_patch():
    cells = np.kron([[0, 0, 1], [0, 1, 0], [1, 0, 1]], np.ones((2, 2)))
    changed = triggered("badnets", GRAY[64], pattern="sft")
    np.testing.assert_array_equal(changed[58:, 58:], np.repeat(cells[..., None], 3, -1))
    assert (changed != 0.5).sum() == 36 * 3


@pytest.mark.parametrize("opacity", [0.0, 0.25, 1.0])
def test_opacity_mixes_the_patch_with_what_is_under_it(opacity):
    corner = triggered("badnets", GRAY[32], opacity=opacity)[29:, 29:]
    np.testing.assert_allclose(corner, 0.5 + 0.5 * opacity, atol=1e-6)


@pytest.mark.parametrize("name", ["badnets", "blended"])
@pytest.mark.parametrize(("preset", "count"), [("paper", 25), ("reference_code", 19)])
def test_the_reference_codes_candidates_are_the_images_of_other_classes(
    name, preset, count, spec, split
):
    # Of 48, or of the 36 that are not of class 0
    attack = attacks.create(name, poison_rate=0.52, preset=preset)
    poisoned = poison.poison_train(KEY, attack, attack.trigger.init(KEY, spec), split)
    assert poisoned.is_poisoned.sum() == count
    others_only = not (poisoned.is_poisoned & (poisoned.original_label == 0)).any()
    assert others_only is (preset == "reference_code")


def test_the_preset_of_ft_sam_is_its_supplements_alpha():
    assert attacks.create("blended", preset="ft_sam").trigger.alpha == 0.1
    assert (
        attacks.create("blended").trigger.alpha
        == attacks.create("blended", preset="reference_code").trigger.alpha
    )


@pytest.mark.parametrize(("size", "white"), [(1, 1), (2, 2), (3, 5), (4, 8)])
def test_a_checkerboard_is_white_where_row_plus_column_is_even(size, white):
    patch = triggered("badnets", GRAY[8], size=size, pattern="checkerboard", corner="top_left")[
        :size, :size
    ]
    row, column = np.indices((size, size))
    np.testing.assert_array_equal(
        patch, np.repeat(((row + column) % 2 == 0)[..., None], 3, -1).astype(np.float32)
    )
    assert (patch[..., 0] == 1).sum() == white


def test_a_patch_may_fill_the_image_but_not_more():
    assert (triggered("badnets", GRAY[8], size=8) == 1).all()
    with pytest.raises(InputError, match="size must be at most 8, the image's; got 9"):
        triggered("badnets", GRAY[8], size=9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "size must be 1 or more, got 0"),
        ({"opacity": 1.5}, "opacity must lie between 0 and 1"),
        ({"candidates": "others"}, "candidates must be one of all, changed; got 'others'"),
        ({"corner": "botom_left"}, "corner must be one of .* .did you mean 'bottom_left'"),
        ({"pattern": "checker"}, "pattern must be one of white, checkerboard, sft; got 'checker'"),
    ],
)
def test_badnets_refuses(options, words):
    with pytest.raises(InputError, match=words):
        attacks.create("badnets", **options)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_blended_mixes_image_and_trigger(alpha):
    image = np.random.default_rng(0).random((8, 8, 3), np.float32)
    picture = np.asarray(jax.random.uniform(KEY, (8, 8, 3)))
    np.testing.assert_allclose(
        triggered("blended", image, alpha=alpha), (1 - alpha) * image + alpha * picture, atol=1e-6
    )


@pytest.fixture
def picture(tmp_path) -> tuple[str, np.ndarray]:
    """A PNG of 8×8 gray values on disk, and the same values."""
    values = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png"), values


@pytest.mark.parametrize(
    ("alpha", "rounding"), [(0.2, "nearest"), (0.2, "truncate"), (0.1, "truncate")]
)
def test_blended_rounds_every_pair_of_levels_as_whole_numbers_do(tmp_path, alpha, rounding):
    level, of_trigger = np.indices((256, 256))
    Image.fromarray(of_trigger.astype(np.uint8)).save(tmp_path / "levels.png")
    attack = attacks.create("blended", trigger_image=str(tmp_path / "levels.png"), alpha=alpha)
    split = Split(level[None, :, :, None].astype(np.uint8), np.ones(1, np.int32), np.ones(1, bool))
    test = poison.poison_test(
        KEY, attack, attack.trigger.init(KEY, spec_of(256, 1)), split, rounding=rounding
    )
    parts = round(1 / alpha)
    mixture = (parts - 1) * level + of_trigger  # in fifths or tenths of a level
    expected = (mixture + parts // 2) // parts if rounding == "nearest" else mixture // parts
    np.testing.assert_array_equal(test.visible.input[0, :, :, 0], expected)


def test_a_worked_pixel():
    # x = 100, T = 255: 0.8 · 100 + 0.2 · 255 = 131
    image = np.full((8, 8, 3), 100 / 255, np.float32)
    trigger = attacks.create("blended").trigger
    mixed = trigger.apply(KEY, jnp.ones((8, 8, 3)), jnp.asarray(image))
    np.testing.assert_allclose(mixed * 255, 131, atol=1e-4)


def test_test_alpha_is_the_strength_at_test_time_only(spec, split):
    attack = attacks.create("blended", poison_rate=1.0, alpha=0.0, test_alpha=1.0)
    state = attack.trigger.init(KEY, spec)
    np.testing.assert_array_equal(
        jax.jit(poison.poison_train)(KEY, attack, state, split).visible.input, split.input
    )
    on_test = jax.jit(poison.poison_test)(KEY, attack, state, split).visible.input
    np.testing.assert_array_equal(
        on_test, np.broadcast_to(np.round(np.asarray(state) * 255), on_test.shape)
    )


def test_without_test_alpha_there_is_one_trigger():
    assert attacks.create("blended").test_trigger is None


def test_the_random_picture_is_one_draw_per_key():
    trigger = attacks.create("blended").trigger
    first, again, other = (trigger.init(jax.random.key(seed), spec_of(8)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.min() >= 0
    assert first.max() <= 1


def test_a_picture_is_read_and_brought_to_size(picture, tmp_path):
    path, values = picture
    trigger = attacks.create("blended", trigger_image=path).trigger
    np.testing.assert_allclose(trigger.init(KEY, spec_of(8)), values / 255, atol=1e-6)
    halves = np.zeros((64, 32, 3), np.uint8)  # red over blue, and not square
    halves[:32, :, 0] = halves[32:, :, 2] = 255
    Image.fromarray(halves).save(tmp_path / "halves.png")
    small = attacks.create("blended", trigger_image=str(tmp_path / "halves.png")).trigger.init(
        KEY, spec_of(8)
    )
    np.testing.assert_array_equal(small[:3], np.broadcast_to([1, 0, 0], (3, 8, 3)))
    np.testing.assert_array_equal(small[5:], np.broadcast_to([0, 0, 1], (3, 8, 3)))


def test_a_picture_becomes_gray_for_gray_images(picture):
    path, _ = picture
    assert attacks.create("blended", trigger_image=path).trigger.init(KEY, spec_of(8, 1)).shape == (
        8,
        8,
        1,
    )


def test_an_unreadable_picture_is_named(tmp_path):
    (tmp_path / "no.png").write_text("no picture")
    for path in (tmp_path / "no.png", tmp_path / "missing.png"):
        with pytest.raises(
            InputError, match=f"trigger_image must be a readable image file; '{path}' is not"
        ):
            attacks.create("blended", trigger_image=str(path)).trigger.init(KEY, spec_of(8))


def masked_picture(path, side=4):
    """A red picture whose right half is transparent, and has a color there all the same."""
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[:, : side // 2] = (255, 0, 0, 255)
    pixels[:, side // 2 :] = (0, 255, 0, 0)
    Image.fromarray(pixels, "RGBA").save(path)
    return str(path)


def test_a_patch_may_be_a_picture(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "patch.png")
    image = np.random.default_rng(3).random((32, 32, 3), np.float32)
    options = {"pattern": str(tmp_path / "patch.png"), "corner": "top_left"}
    expected = image.copy()
    expected[:3, :3] = picture / 255
    np.testing.assert_allclose(triggered("badnets", image, **options), expected, atol=1e-6)
    half = triggered("badnets", image, opacity=0.5, **options)
    np.testing.assert_allclose(half[:3, :3], 0.5 * image[:3, :3] + 0.5 * picture / 255, atol=1e-6)
    large = triggered("badnets", GRAY[32], size=9, **options)
    assert (large != 0.5).any(-1).sum() == 81, "resized to the patch's size"


def test_what_is_transparent_in_a_patch_leaves_the_image_as_it_is(tmp_path):
    path = masked_picture(tmp_path / "patch.png")
    image = np.random.default_rng(3).random((8, 8, 3), np.float32)
    expected = image.copy()
    expected[4:, 4:6] = 0.25 * image[4:, 4:6] + 0.75 * np.array([1, 0, 0])
    got = triggered("badnets", image, pattern=path, size=4, opacity=0.75)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_array_equal(got[:4], image[:4])
    np.testing.assert_array_equal(got[4:, 6:], image[4:, 6:])


def test_what_is_transparent_in_a_blended_picture_leaves_the_image_as_it_is(tmp_path):
    path = masked_picture(tmp_path / "picture.png", 8)
    image = np.random.default_rng(3).random((8, 8, 3), np.float32)
    expected = image.copy()
    expected[:, :4] = 0.8 * image[:, :4] + 0.2 * np.array([1, 0, 0])
    np.testing.assert_allclose(triggered("blended", image, trigger_image=path), expected, atol=1e-6)
    gray = triggered("blended", image[..., :1], trigger_image=path, alpha=1.0)
    np.testing.assert_array_equal(gray[:, 4:], image[:, 4:, :1])
    assert (gray[:, :4] == gray[0, 0]).all()


def test_an_opaque_picture_with_an_alpha_channel_is_as_one_without(tmp_path, picture):
    path, values = picture
    Image.fromarray(values).convert("RGBA").save(tmp_path / "opaque.png")
    states = [
        attacks.create("blended", trigger_image=str(file)).trigger.init(KEY, spec_of(5))
        for file in (path, tmp_path / "opaque.png")
    ]
    np.testing.assert_array_equal(*states)


@pytest.mark.parametrize(("name", "option"), [("badnets", "pattern"), ("blended", "trigger_image")])
def test_a_picture_is_turned_as_its_exif_says(tmp_path, name, option):
    halves = np.zeros((8, 8, 3), np.uint8)
    halves[:4, :, 0] = halves[4:, :, 2] = 255
    Image.fromarray(halves).save(tmp_path / "up.png")
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(np.ascontiguousarray(np.rot90(halves, -1))).save(
        tmp_path / "lying.png", exif=exif
    )
    up, lying = (
        triggered(name, GRAY[8], **{option: str(tmp_path / file)})
        for file in ("up.png", "lying.png")
    )
    np.testing.assert_array_equal(up, lying)


@pytest.mark.parametrize(("name", "option"), [("badnets", "pattern"), ("blended", "trigger_image")])
def test_a_picture_that_cannot_be_used_is_refused_in_one_line(tmp_path, monkeypatch, name, option):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "bomb.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "large.png").write_bytes(bytes(100))
    wanted = {
        "deep.png": "is not (it has more than 8 bits a channel, mode I;16)",
        "clear.png": "is wholly transparent",
        "text.png": "is not (cannot identify image file",
        "none.png": "is not ([Errno 2] No such file or directory",
        "": "is not (",
    }
    for file, words in wanted.items():
        path = str(tmp_path / file) + ("" if file else os.sep)
        with pytest.raises(InputError, match=rf"^{option} must be a .*{re.escape(words)}") as error:
            triggered(name, GRAY[8], **{option: path})
        assert "\n" not in str(error.value)
    monkeypatch.setattr(_pictures, "MOST_BYTES", 99)
    with pytest.raises(InputError, match=rf"^{option} .* is not \(it is larger than"):
        triggered(name, GRAY[8], **{option: str(tmp_path / "large.png")})
    monkeypatch.setattr(_pictures, "MOST_BYTES", 2**20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)
    with pytest.raises(InputError, match=rf"^{option} .* is not \(Image size \(16 pixels\)"):
        triggered(name, GRAY[8], **{option: str(tmp_path / "bomb.png")})


@pytest.mark.parametrize("options", [{"alpha": 1.1}, {"test_alpha": -0.1}])
def test_blended_refuses(options):
    with pytest.raises(InputError, match=f"{next(iter(options))} must lie between 0 and 1"):
        attacks.create("blended", **options)
