"""Masks, read off a network and the same one with its neurons scaled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import subjects
from matplotlib.figure import Figure

from bdjax import structure
from bdjax.analysis import masks
from bdjax.parametrizations import NeuronMasks

MASKS = np.array([1.0, 0.25, 0.75, 0.5], np.float32)


def masked(model, factors):
    """Return a run whose defense scaled the neurons of NFT's only, or last, masked layer."""
    victim = networks.random_variables(model)
    parametrization = NeuronMasks()
    tuned, frozen = parametrization.init(model, victim)
    (*_, last) = structure.flat(tuned)
    tuned = structure.nested({**structure.flat(tuned), last: jnp.asarray(factors)})
    defended = {**victim, "params": parametrization.apply(tuned, frozen)}
    return subjects.backdoored(model=model, victim=victim, defended=defended), last


def test_masks_of_batch_norms_come_back():
    subject, _ = masked(networks.backwards(), MASKS)
    found = masks.masks().measure(subject)
    np.testing.assert_allclose(found["mask"], MASKS, rtol=1e-6)
    assert found["layer"].tolist() == [1] * 4
    assert found["layers"].tolist() == ["w"]  # the first batch norm is not masked


def test_masks_of_filters_come_back_without_batch_norm():
    model = networks.plain()
    subject, last = masked(model, np.linspace(0.2, 1, 5, dtype=np.float32))
    found = masks.masks().measure(subject)
    assert found["layers"].tolist() == ["deeper", "hidden"]
    number = found["layers"].tolist().index(last[0]) + 1
    np.testing.assert_allclose(
        found["mask"][found["layer"] == number], np.linspace(0.2, 1, 5), rtol=1e-5
    )
    np.testing.assert_allclose(found["mask"][found["layer"] != number], 1, rtol=1e-5)


def test_a_scale_of_zero_tells_nothing_and_a_tiny_one_does():
    path = ("norm", "scale")
    before = structure.nested({path: jnp.array([0.0, 1e-30, -2.0])})
    after = structure.nested({path: jnp.array([0.0, 5e-31, 3.0])})
    found = masks.factors(before, after, [path])[path]
    np.testing.assert_allclose(found, [np.nan, 0.5, -1.5], rtol=1e-6)


def test_a_filter_that_also_turned_has_the_factor_along_the_old_one():
    # The same and something across
    before, after = jnp.array([[3.0], [4.0]]), jnp.array([[3.0 - 4], [4.0 + 3]])
    found = masks.factors({"kernel": before}, {"kernel": after}, [("kernel",)])
    np.testing.assert_allclose(found["kernel",], [1.0], rtol=1e-6)


def test_rows_fall_are_stretched_and_end_with_the_unknown():
    findings = {
        "mask": np.array([0.5, np.nan, 0.25, 0.75, 0.1, 0.9]),
        "layer": np.array([1, 1, 1, 1, 2, 2]),
        "layers": np.array(["a", "b"]),
    }
    expected = [[0.75, 0.5, 0.25, np.nan], [0.9, 0.9, 0.1, 0.1]]
    np.testing.assert_array_equal(masks._rows(findings), expected)


@pytest.mark.parametrize("runs", [1, 3])
def test_the_figure_has_a_panel_for_each_run_and_a_scale(runs):
    subject, _ = masked(networks.backwards(), MASKS)
    found = jax.tree.map(np.asarray, masks.masks().measure(subject))
    figure = masks.masks().draw(dict.fromkeys(map(str, range(runs)), found))
    assert isinstance(figure, Figure)
    assert len(figure.axes) == runs + 1
