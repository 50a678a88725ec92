"""Known answers of the composite attack: which pixel of a mixture comes from where, its bank, partners and classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from bdjax import attacks, models, poison
from bdjax.attacks.cba import Bank, HalfMixer
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.types import Split

MIXER = HalfMixer(2, 4, 3)
# Never asked
MODEL = models.create("small_cnn", image_spec("gray", (4, 4, 1), 4, (0.5,), (0.25,)), width=1)
COVER = quick_jit(MIXER.cover)
MIX = quick_jit(jax.vmap(MIXER.mix, (0, None, None)))


def coordinates(side: int, mark: float) -> jax.Array:
    """Return an image of which each pixel says its own row and column, and which image it is."""
    row, column = np.indices((side, side))
    return jnp.float32(np.stack([row, column, np.full((side, side), mark)], -1))


@pytest.fixture(scope="module")
def mixtures() -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), 400)
    return np.asarray(MIX(keys, coordinates(32, 0), coordinates(32, 1)))


def upright(mixture: np.ndarray) -> tuple[bool, np.ndarray]:
    """Return whether the halves lie side by side, and the mixture turned so that they do."""
    beside = bool((mixture[:, :, 2] == mixture[:1, :, 2]).all())
    return beside, mixture if beside else mixture.swapaxes(0, 1)[:, :, [1, 0, 2]]


def test_a_mixture_is_two_contiguous_crops_with_no_gap(mixtures):
    cuts, besides, firsts, starts = [], [], [], []
    for mixture in mixtures:
        beside, image = upright(mixture)
        mark, column = image[0, :, 2], image[0, :, 1]
        cut = int((mark == mark[0]).sum())
        assert (mark[:cut] == mark[0]).all()
        assert (mark[cut:] == 1 - mark[0]).all()
        np.testing.assert_array_equal(np.diff(column[:cut]), 1)
        np.testing.assert_array_equal(np.diff(column[cut:]), 1)
        # Whole columns
        np.testing.assert_array_equal(image[:, :, 1], np.broadcast_to(column, (32, 32)))
        np.testing.assert_array_equal(image[:, :, 0], np.arange(32)[:, None] * np.ones(32))
        assert 0 <= column[0] < 32 - cut
        assert 0 <= column[cut] < cut
        cuts.append(cut)
        besides.append(beside)
        firsts.append(mark[0])
        starts.append(column[0])
    assert set(cuts) == set(range(13, 20))
    assert 0.4 < np.mean(besides) < 0.6
    assert 0.4 < np.mean(firsts) < 0.6
    assert np.mean(starts) > 5  # uniform among about 16


@pytest.mark.parametrize(("side", "jitter"), [(8, 1), (28, 3), (64, 6), (2, 0)])
def test_the_jitter_is_in_proportion_to_the_side(side, jitter):
    keys = jax.random.split(jax.random.key(1), 100)
    mixed = np.asarray(MIX(keys, coordinates(side, 0), coordinates(side, 1)))
    cuts = {
        int((image[0, :, 2] == image[0, 0, 2]).sum())
        for image in (upright(each)[1] for each in mixed)
    }
    assert cuts == set(range(side // 2 - jitter, side // 2 + jitter + 1))


def labelled(label: list[int]) -> Split:
    """Return gray images whose level is their row number."""
    level = np.arange(len(label), dtype=np.uint8)[:, None, None, None]
    image = jnp.asarray(np.broadcast_to(level, (len(label), 4, 4, 1)))
    return Split(image, jnp.int32(jnp.array(label)), jnp.ones(len(label), bool))


def fitted(label: list[int], bank: int) -> list[int]:
    state = Bank(jnp.full((bank, 4, 4, 1), 255, jnp.uint8))
    fit = quick_jit(HalfMixer(2, bank, 3).fit, static_argnums=1)
    found, info = fit(jax.random.key(0), MODEL, {}, state, labelled(label))
    assert int(info.gradient_evaluations) == 0
    assert found.image.dtype == jnp.uint8
    return sorted(found.image[:, 0, 0, 0].tolist())


def test_the_bank_holds_images_of_the_second_class_each_as_often_as_the_others():
    label = [0, 2, 1, 2, 2, 0, 1]
    assert fitted(label, 3) == [1, 3, 4]
    assert fitted(label, 6) == [1, 1, 3, 3, 4, 4]
    assert set(fitted(label, 2)) < {1, 3, 4}
    assert fitted([0, 1], 2) == [255, 255]  # no such image: the bank stays


def test_cover_samples_are_mixed_with_another_image_of_their_class():
    batch = labelled([0, 1, 0, 1, 2, 0])
    batch = batch._replace(input=jnp.float32(batch.input))
    shown = {row: set() for row in range(6)}
    for seed in range(60):
        covers = np.asarray(COVER(jax.random.key(seed), Bank(jnp.zeros(())), batch))
        for row in range(6):
            shown[row] |= {tuple(np.unique(covers[row]).astype(int).tolist())}
    assert shown[1] == shown[3] == {(1, 3)}
    assert shown[4] == {(4,)}  # alone in its class
    assert shown[0] == {(0, 2), (0, 5)}
    assert shown[5] == {(0, 5), (2, 5)}


def test_padding_is_nobodys_partner():
    batch = labelled([1, 1, 1])
    batch = batch._replace(input=jnp.float32(batch.input), valid=jnp.array([True, True, False]))
    covers = [
        np.asarray(COVER(jax.random.key(seed), Bank(jnp.zeros(())), batch)) for seed in range(20)
    ]
    assert {level for cover in covers for level in np.unique(cover[:2]).tolist()} == {0, 1}


def test_a_poisoned_batch_has_mixtures_of_the_first_class_labelled_with_the_target():
    attack = attacks.create("cba", poison_rate=0.25, cover_rate=0.0, bank=2)
    batch = Split(jnp.zeros((8, 4, 4, 1)), jnp.array([0, 1, 1, 1, 2, 3, 2, 3]), jnp.ones(8, bool))
    state = Bank(jnp.full((2, 4, 4, 1), 255, jnp.uint8))
    changed = quick_jit(poison.poison_batch)(jax.random.key(3), attack, state, batch)
    rows = np.flatnonzero(changed.label != batch.label)
    assert rows.size == 2
    assert set(rows) < {1, 2, 3}
    assert (changed.label[rows] == 0).all()
    share = np.asarray(changed.input).mean((1, 2, 3))
    assert set(np.flatnonzero(share)) == set(rows)
    # Jitter is 0 at 4 pixels: half of each image is white
    assert set(share[rows].tolist()) <= {0.5}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"first_class": 0}, "must be three classes; got 0, 2 and 0"),
        ({"second_class": 1}, "must be three classes; got 1, 1 and 0"),
        ({"target_label": 2}, "must be three classes; got 1, 2 and 2"),
        ({"bank": 0}, "bank must be 1 or more"),
        ({"jitter": 16}, "jitter must be below 16"),
        ({"cover_rate": 1.1}, "cover_rate must lie"),
        ({"label_map": attacks.AllToAll(10)}, "label_map must be 'all_to_one'"),
    ],
)
def test_refuses(options, words):
    with pytest.raises(InputError, match=words):
        attacks.create("cba", **options)


@pytest.mark.parametrize(
    ("shape", "classes", "words"),
    [((8, 8, 1), 2, "second_class must be below 2"), ((1, 8, 1), 4, "2 pixels a side")],
)
def test_refuses_data_that_do_not_suit(shape, classes, words):
    trigger = attacks.create("cba").trigger
    with pytest.raises(InputError, match=words):
        trigger.init(jax.random.key(0), image_spec("odd", shape, classes, (0.5,), (0.25,)))


def test_a_one_to_one_map_changes_one_label():
    np.testing.assert_array_equal(attacks.OneToOne(1, 4)(jnp.arange(4)), [0, 4, 2, 3])


def test_classes_by_name():
    names = ("plane", "car", "bird", "cat")
    spec = image_spec("named", (8, 8, 3), 4, (0.5,) * 3, (0.25,) * 3, names)
    attack = attacks.create(
        "cba", target_label="cat", first_class="bird", second_class="car", spec=spec
    )
    assert attack.label_map == attacks.OneToOne(2, 3)
    assert attack.trigger.second_class == 1
    assert attacks.class_options("cba") == ["first_class", "second_class"]
    with pytest.raises(
        InputError,
        match=r"first_class must be a class of named, .*; got 'brid' .did you mean 'bird'",
    ):
        attacks.create("cba", target_label=0, first_class="brid", spec=spec)
    with pytest.raises(InputError, match="must be three classes; got 2, 1 and 2"):
        attacks.create(
            "cba", target_label="bird", first_class="bird", second_class="car", spec=spec
        )
