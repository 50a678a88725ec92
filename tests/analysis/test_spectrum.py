"""The analysis `spectrum`, against the dense Hessian of a network with a planted neuron."""

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from subjects import planted_subject

from bdjax.analysis.spectrum import spectrum
from bdjax.checks import InputError
from bdjax.curvature.loss_surface import mean_loss, sample


@pytest.fixture(scope="module")
def found():
    return spectrum(images=12, steps=60, starts=2, variant="clean").measure(planted_subject())


def test_the_ends_are_those_of_the_dense_hessian(found):
    subject = planted_subject()
    rows_key, _ = jax.random.split(subject.key)
    chosen = sample(rows_key, subject.test, subject.triggered, variant="clean", images=12)
    flat, unravel = ravel_pytree(subject.defended["params"])
    loss = mean_loss(subject.model, subject.defended, chosen)
    eigenvalues = np.linalg.eigvalsh(jax.hessian(lambda at: loss(unravel(at)))(flat))
    nodes = found["defended_nodes"]
    assert nodes.max() == pytest.approx(eigenvalues[-1], rel=1e-4)
    assert nodes.min() == pytest.approx(eigenvalues[0], abs=1e-4 * float(eigenvalues[-1]))


def test_both_networks_are_measured_with_every_start(found):
    assert {name: values.shape for name, values in found.items()} == {
        f"{network}_{part}": (2, 60)
        for network in ("victim", "defended")
        for part in ("nodes", "weights")
    }
    assert found["victim_weights"].sum() == pytest.approx(1, rel=1e-5)


def test_only_triggered_images_tell_the_networks_apart(found):
    """The planted neuron is silent without the trigger, whether it is pruned or not.

    With it the victim is wrong and perfectly sure: the probabilities do not curve (no Gauss-Newton part), and what is
    left of the Hessian, the loss's slope times the curvature of bilinear logits, has its eigenvalues in pairs ±λ.
    """
    np.testing.assert_array_equal(found["victim_nodes"], found["defended_nodes"])
    triggered = spectrum(images=12, steps=60, starts=2, variant="triggered").measure(
        planted_subject()
    )
    assert triggered["victim_nodes"].min() == pytest.approx(
        -triggered["victim_nodes"].max(), rel=1e-3
    )
    assert triggered["defended_nodes"].min() > -0.01 * triggered["defended_nodes"].max()


def test_a_run_has_two_panels_with_the_same_axes(found):
    broken = {**found, "defended_nodes": np.full((2, 60), np.nan)}
    page = spectrum(variant="clean").draw({"run": found, "diverged": broken})
    before, after, _, diverged = page.axes
    assert before.get_xlim() == after.get_xlim()
    assert before.get_ylim() == after.get_ylim()
    low, high = before.get_xlim()
    assert low < found["victim_nodes"].min() < found["victim_nodes"].max() < high
    assert len(after.get_lines()) == 1
    assert not diverged.get_lines()
    assert "not finite" in diverged.texts[0].get_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 1}, "steps must be 2 or more, got 1"),
        ({"starts": 0}, "starts must be 1 or more, got 0"),
        ({"variant": "both"}, "variant must be one of clean, triggered, mixed"),
    ],
)
def test_refuses(options, words):
    with pytest.raises(InputError, match=words):
        spectrum(**options)
