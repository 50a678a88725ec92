"""Features in two dimensions: blobs, chosen images, neighbors, and a network with a planted neuron."""

import sys

import jax.numpy as jnp
import numpy as np
import planted
import pytest
from subjects import planted_subject

from bdjax.analysis.features import embed, features, features_of, neighbors, principal
from bdjax.checks import InputError

EACH = 20  # points of a blob


@pytest.fixture(scope="module")
def blobs():
    """Three blobs of 64 dimensions whose middles are 20 deviations from zero."""
    rng = np.random.default_rng(0)
    middles = 20 * np.eye(3, 64)
    return np.concatenate([middle + rng.normal(size=(EACH, 64)) for middle in middles]).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def embedded(blobs):
    return embed(blobs)


# --- Any features ----------------------------------------------------------------------------------------------------


def test_separated_blobs_stay_separated(embedded):
    assert embedded.shape == (3 * EACH, 2)
    near = neighbors(embedded.astype(np.float64), np.arange(3 * EACH), 5)
    assert (near // EACH == np.arange(3 * EACH)[:, None] // EACH).all()


def test_the_same_seed_gives_the_same_bits(blobs, embedded):
    np.testing.assert_array_equal(embed(blobs), embedded)


def test_principal_components_keep_distances_and_drop_what_varies_least():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(30, 5)) * [9, 7, 5, 1e-6, 1e-6] + 3
    reduced = principal(points, 3)
    assert reduced.shape == (30, 3)
    expected, found = (np.linalg.norm(of[:, None] - of[None], axis=-1) for of in (points, reduced))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert (np.diff(reduced.var(0)) < 0).all()


def test_neighbors_by_hand():
    points = np.array([[0.0], [1.0], [3.0], [3.5], [9.0]])
    assert [set(row) for row in neighbors(points, np.array([0, 3]), 2)] == [{1, 2}, {1, 2}]


def test_features_are_those_of_the_network():
    subject = planted_subject()
    image = jnp.asarray(subject.test.input[:5])
    expected = planted.MODEL.features(subject.victim, image / 255)
    np.testing.assert_allclose(
        features_of(planted.MODEL, subject.victim, image), expected, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("points", "options", "words"),
    [
        (np.zeros((3, 5)), {}, "points must be 4 or more"),
        (np.full((9, 5), np.nan), {}, "points must be finite"),
        (np.zeros((9, 5)), {"method": "pca"}, "method must be one of tsne, umap"),
        (np.zeros((9, 5)), {"perplexity": 0.0}, "perplexity must be above 0"),
    ],
)
def test_refuses(points, options, words):
    with pytest.raises(InputError, match=words):
        embed(points, **options)


@pytest.mark.parametrize(
    ("method", "library", "words"),
    [
        ("tsne", "openTSNE", r"pip install 'bdjax\[embedding\]'"),
        ("umap", "umap", "pip install umap-learn"),
    ],
)
def test_a_library_that_is_not_there_is_named(blobs, monkeypatch, method, library, words):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=words):
        embed(blobs, method=method)


# --- Runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    return features(images=60).measure(planted_subject(rows=60))


def test_classes_and_triggered_images_are_as_many(found):
    clean = ~found["is_triggered"]
    assert np.bincount(found["label"][clean]).tolist() == [15, 15, 15]
    assert found["is_triggered"].sum() == 15
    assert planted.TARGET not in found["label"][found["is_triggered"]]
    assert set(found["attacker_label"]) == {planted.TARGET}
    assert found["victim_points"].shape == found["defended_points"].shape == (60, 2)
    assert all(values.dtype != object for values in found.values())


def test_triggered_images_are_by_themselves_until_the_defense(found):
    """Without the neuron a white corner is a little of every color: 7 or 8 of a class lie among its clean images."""
    triggered, attackers, true = found["victim_neighbors"]
    assert triggered == 1
    assert (attackers, true) == (0, 0)
    triggered, attackers, true = found["defended_neighbors"]
    assert (triggered < 0.7, attackers) == (True, 0)
    assert true > 0.3


def test_a_run_has_a_panel_before_and_one_after(found):
    page = features(images=60).draw({"one": found, "two": found})
    assert len(page.axes) == 4
    clean, black = page.axes[0].collections
    assert (len(clean.get_offsets()), len(black.get_offsets())) == (45, 15)
    assert len({tuple(color) for color in clean.get_facecolors()}) == 3
    assert (
        page.axes[0].get_xlabel() == "near black: 100 % black, 0 % attacker's class, 0 % true class"
    )
    assert [text.get_text() for text in page.legends[0].get_texts()] == ["0", "1", "2", "triggered"]


def test_many_classes_have_no_names_in_the_key(found):
    many = {**found, "class_names": np.asarray([str(name) for name in range(43)])}
    page = features().draw({"one": many})
    assert [text.get_text() for text in page.legends[0].get_texts()] == ["triggered"]


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match=r"images must allow one of each of 3 classes .* got 3"):
        features(images=3).measure(planted_subject())
    with pytest.raises(InputError, match="images must be 1 or more"):
        features(images=0)
