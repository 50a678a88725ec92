"""Trigger-activated change, weight norms and their distribution, on a network whose backdoor neuron is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
import subjects
from matplotlib.figure import Figure

from bdjax import registry
from bdjax.analysis import _neurons, tac
from bdjax.checks import InputError
from bdjax.data import splits

LAYER = ("conv1", "kernel")
MAPS = jnp.array([[1.0, 0.0], [-2.0, 4.0]])  # the difference of two feature maps


@pytest.fixture(scope="module")
def subject():
    return subjects.backdoored()


@pytest.fixture(scope="module")
def found(subject):
    return tac.tac(images=12).measure(subject)


# --- Known answers ---------------------------------------------------------------------------------------------------


def test_change_by_hand():
    clean = jnp.ones((1, 2, 2, 2))
    l1, l2 = tac.change(clean, clean + jnp.stack([MAPS, -3 * MAPS], -1)[None])
    np.testing.assert_allclose(l1, [[7, 21]])
    np.testing.assert_allclose(l2, [[4.58257569, 13.74772708]], rtol=1e-6)


def test_change_of_neurons_without_positions_is_the_difference():
    l1, l2 = tac.change(jnp.array([[1.0, -2.0]]), jnp.array([[4.0, -3.0]]))
    assert l1.tolist() == l2.tolist() == [[3.0, 1.0]]


def test_correlation_by_hand():
    x, y = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([1.0, 8.0, 27.0, 64.0])
    pearson, rank = _neurons.correlation(x, y)
    assert pearson == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    assert rank == pytest.approx(1)
    tied = _neurons.correlation(x, jnp.array([2.0, 1.0, 1.0, 0.0])).rank  # ranks 4, 2.5, 2.5, 1
    assert tied == pytest.approx(-4.5 / np.sqrt(5 * 4.5), abs=1e-6)
    assert np.isnan(_neurons.correlation(x, jnp.ones(4)).pearson)


def test_norms_are_those_of_the_filters():
    kernel = jax.random.normal(jax.random.key(0), (2, 2, 3, 4))
    expected = [np.linalg.norm(kernel[..., k]) for k in range(4)]
    np.testing.assert_allclose(_neurons.norms(kernel), expected, rtol=1e-6)


# --- The planted neuron ----------------------------------------------------------------------------------------------


def test_the_planted_neuron_changes_most_and_no_more_once_it_is_gone(found):
    for form in ("l1", "l2"):
        assert found[f"victim_{form}"].argmax() == 0
        assert found[f"victim_{form}"][0] > 5 * np.sort(found[f"victim_{form}"])[-2]
        assert found[f"defended_{form}"][0] == 0
        np.testing.assert_allclose(
            found[f"defended_{form}"][1:], found[f"victim_{form}"][1:], rtol=1e-6
        )
    assert found["victim_norm"][0] == pytest.approx(np.sqrt(12))
    assert found["defended_norm"][0] == 0
    assert found["victim_rank"] > 0 > found["defended_rank"]


def test_chunks_change_nothing(subject):
    """Against the mean over all images in one piece, with more of them than a chunk holds."""
    rng = np.random.default_rng(0)
    clean, triggered = rng.integers(0, 256, (2, tac._CHUNK + 3, 8, 8, 3), np.uint8)
    both = (
        subject.model.probe(subject.victim, jnp.asarray(x) / 255.0, LAYER)[1]
        for x in (clean, triggered)
    )
    difference = np.subtract(*both)
    l1, l2 = tac.of_network(subject.model, subject.victim, clean, triggered, LAYER)
    np.testing.assert_allclose(l1, np.abs(difference).mean(0).sum((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(
        l2, np.linalg.norm(difference.reshape(len(clean), -1, 4), axis=1).mean(0), rtol=1e-5
    )


def test_the_images_count_for_the_success_rate_and_are_balanced(subject):
    clean, triggered, wanted = tac.pairs(subject, 7)
    assert (len(clean), set(wanted)) == (6, {planted.TARGET})
    rows = [int(np.flatnonzero((subject.test.input == image).all((1, 2, 3)))[0]) for image in clean]
    assert sorted(subject.test.label[rows]) == [1, 1, 1, 2, 2, 2]
    np.testing.assert_array_equal(triggered, subject.triggered.visible.input[rows])


def test_balanced_rows():
    split = planted.holdout(11)  # four, four and three of the classes
    for most, each in ((3, 1), (8, 2), (100, 3)):
        rows = splits.balanced(jax.random.key(0), split, most)
        assert np.bincount(split.label[rows]).tolist() == [each] * 3
    assert splits.balanced(jax.random.key(0), split, 2).size == 0


def test_too_few_images_for_the_classes(subject):
    with pytest.raises(InputError, match="images must be 2 or more, one of each class"):
        tac.pairs(subject, 1)


# --- Figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tac", "weight_norms", "weight_histogram"])
@pytest.mark.parametrize("runs", [1, 3])
def test_figures_have_a_panel_for_each_run(subject, name, runs):
    analysis = registry.create("bdjax.analysis", name)
    figure = analysis.draw(dict.fromkeys(map(str, range(runs)), analysis.measure(subject)))
    assert isinstance(figure, Figure)
    assert len(figure.axes) == runs


def test_weight_norms_and_their_distribution(subject):
    norms = registry.create("bdjax.analysis", "weight_norms").measure(subject)
    np.testing.assert_allclose(norms["victim"], [np.sqrt(12), 0.5, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(norms["defended"], [0, 0.5, 0.5, 0.5], rtol=1e-6)
    counts = registry.create("bdjax.analysis", "weight_histogram", bins=2).measure(subject)
    assert (counts["victim"].tolist(), counts["defended"].tolist()) == ([3, 1], [4, 0])
    weights = registry.create("bdjax.analysis", "weight_histogram", of="weights").measure(subject)
    assert weights["victim"].sum() == weights["defended"].sum() == 48


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "images must be 1 or more"),
        ({"form": "l3"}, "form must be one of l1, l2"),
        ({"layer": "conv"}, r"no convolution 'conv' \(did you mean 'conv1'\?\)"),
    ],
)
def test_mistakes_are_named(subject, options, message):
    with pytest.raises(InputError, match=message):
        tac.tac(**options).measure(subject)
