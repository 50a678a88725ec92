"""Grad-CAM: by hand, on a network with a planted neuron, and as an analysis."""

import jax.numpy as jnp
import numpy as np
import planted
import pytest
from subjects import planted_subject

from bdjax.analysis.grad_cam import as_heat, class_activation, class_maps, grad_cam, heat
from bdjax.checks import InputError

LAYER = ("conv1", "kernel")


def on_patch(maps):
    """Return the share of each 7×7 map that lies where a 2×2 window sees the white corner of two by two."""
    maps = np.asarray(maps)
    return maps[:, 5:, 5:].sum((1, 2)) / maps.sum((1, 2))


# --- Any network -----------------------------------------------------------------------------------------------------


def test_two_channels_by_hand():
    # 2×2, two channels
    output = jnp.array([[[1.0, 2.0], [3.0, -1.0]], [[0.0, 5.0], [-2.0, 1.0]]])[None]
    # Means 1 and -1/2
    gradient = jnp.array([[[4.0, 0.0], [0.0, -1.0]], [[0.0, -1.0], [0.0, 0.0]]])[None]
    expected = [[1 - 1, 3 + 0.5], [0, 0]]  # relu of 1·A₁ − ½·A₂: 0, 3.5, −2.5, −2.5
    np.testing.assert_allclose(class_activation(output, gradient)[0], expected)


def test_a_linear_network_is_explained_by_its_weights():
    """Logit 1 is 20 times the mean of relu(A₂) over 49 positions, all of them positive: α₂ = 20 / 49, the others 0."""
    subject = planted_subject()
    image = jnp.asarray(subject.test.input)[:3] / 255
    label = jnp.array([1, 1, 1])
    maps, predicted = class_maps(planted.MODEL, subject.victim, image, LAYER, label)
    color = image[..., 1]
    pooled = (color[:, :-1, :-1] + color[:, 1:, :-1] + color[:, :-1, 1:] + color[:, 1:, 1:]) / 4
    np.testing.assert_allclose(maps, 20 / 49 * pooled, rtol=1e-5)
    assert predicted.tolist() == [0, 1, 2]


def test_the_trigger_is_lit_until_its_neuron_is_pruned():
    subject = planted_subject()
    aimed = subject.triggered.is_poisoned
    clean, triggered = (
        jnp.asarray(of.input[aimed]) for of in (subject.test, subject.triggered.visible)
    )
    before, hit = class_maps(planted.MODEL, subject.victim, triggered, LAYER)
    after, right = class_maps(planted.MODEL, subject.defended, triggered, LAYER)
    without, _ = class_maps(planted.MODEL, subject.victim, clean, LAYER)
    assert set(hit.tolist()) == {planted.TARGET}
    assert right.tolist() == subject.test.label[aimed].tolist()
    assert on_patch(before).min() > 0.99
    assert on_patch(after).max() < 0.25  # 4 of 49 positions, and white is bright in every color
    assert on_patch(without).max() < 0.15


def test_heat_fills_the_unit_interval_and_nothing_stays_nothing():
    maps = jnp.array([[[1.0, 2.0], [2.0, 5.0]], [[0.0, 0.0], [0.0, 0.0]], [[3.0, 3.0], [3.0, 3.0]]])
    shown = as_heat(maps, 8, 6)
    assert shown.shape == (3, 8, 6)
    assert (float(shown[0].min()), float(shown[0].max())) == (0, 1)
    assert shown[0, -1, -1] == 1
    np.testing.assert_array_equal(shown[1:], 0)


def test_bilinear_between_the_middles_of_cells():
    shown = as_heat(jnp.array([[[0.0, 4.0]]]), 1, 4)
    np.testing.assert_allclose(shown[0, 0], [0, 0.25, 0.75, 1], atol=1e-6)


def test_chunks_do_not_change_the_result():
    subject = planted_subject()
    image = subject.triggered.visible.input[:7]
    whole, classes = heat(planted.MODEL, subject.victim, image, LAYER, chunk=7)
    parts, same = heat(planted.MODEL, subject.victim, image, LAYER, chunk=3)
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    assert classes.tolist() == same.tolist()


# --- Runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    return grad_cam(images=4).measure(planted_subject())


def test_what_is_kept_of_a_run(found):
    assert found["image"].shape == (2, 4, 8, 8, 3)
    assert found["heat"].shape == (2, 2, 4, 8, 8)
    assert str(found["layer"]) == "conv1"
    assert planted.TARGET not in found["label"]  # only images that the attack aims at
    assert found["predicted"][0, 1].tolist() == [planted.TARGET] * 4
    for network, kind in ((0, 0), (1, 0), (1, 1)):
        assert found["predicted"][network, kind].tolist() == found["label"].tolist()
    assert all(values.dtype != object for values in found.values())


def test_the_target_decides_what_is_explained(found):
    attackers = grad_cam(images=4, target="attacker").measure(planted_subject())
    # What it predicts
    np.testing.assert_allclose(attackers["heat"][0, 1], found["heat"][0, 1], atol=1e-6)
    assert not np.allclose(attackers["heat"][0, 0], found["heat"][0, 0])
    true = grad_cam(images=4, target="true").measure(planted_subject())
    np.testing.assert_allclose(true["heat"][1], found["heat"][1], atol=1e-6)


def test_every_tile_is_drawn_once(found):
    page = grad_cam(images=4).draw({"one": found, "two": found})
    first, second, key = page.axes
    assert len(first.images) == len(second.images) == 4 * 3 * 2
    assert len(key.images) == 1
    words = [text.get_text() for text in first.texts]
    assert words.count("before") == words.count("after") == 4
    assert {"clean", "triggered"} <= set(words)


def test_mistakes_name_what_is_wrong():
    with pytest.raises(InputError, match="target must be one of predicted, true, attacker"):
        grad_cam(target="truth")
    with pytest.raises(InputError, match="images must be 1 or more, got 0"):
        grad_cam(images=0)
    with pytest.raises(InputError, match=r"no convolution 'conv2' \(did you mean 'conv1'\?\)"):
        grad_cam(layer="conv2").measure(planted_subject())
    with pytest.raises(InputError, match="at most the 20 images there are, got 21"):
        grad_cam(images=21).measure(planted_subject())
