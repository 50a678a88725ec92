"""Grids as values: which points there are, and that mapping over them is going through them."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from planted import Net
from quick import quick_jit

from bdjax import attacks, defenses, poison, sweeps
from bdjax.checks import InputError
from bdjax.defenses.chain import chain
from bdjax.models._layers import LinenModel
from bdjax.train import loop
from bdjax.types import PoisonedSplit

KEYS = jax.random.split(jax.random.key(0), 2)
ft_sam = functools.partial(defenses.create, "ft_sam", epochs=1, batch_size=24, augment="none")


@pytest.fixture(scope="module")
def model(spec):
    return LinenModel(Net(widths=(4,), norm=True, classes=spec.num_classes), spec)


@pytest.fixture(scope="module")
def variables(model):
    return model.init(jax.random.key(0))


def test_a_grid_is_the_product_with_the_last_axis_fastest():
    sweep = sweeps.grid(ft_sam, rho=[0.5, 1.0], learning_rate=[0.1, 0.2, 0.3])
    assert len(sweep) == 6
    assert sweep.settings[:2] == (
        {"rho": 0.5, "learning_rate": 0.1},
        {"rho": 0.5, "learning_rate": 0.2},
    )
    for index, setting in enumerate(sweep.settings):
        point, made = jax.tree.leaves(sweep[index]), jax.tree.leaves(ft_sam(**setting))
        np.testing.assert_array_equal(point, np.asarray(made, np.float32))
    assert all(leaf.shape == (6,) for leaf in jax.tree.leaves(sweep.points))


def test_an_attack_is_swept_by_mapping_over_it(spec, split):
    """Of Blended: the rates decide how many images are changed, the strengths how much."""
    sweep = sweeps.grid(
        functools.partial(attacks.create, "blended"), poison_rate=[0.25, 0.5], alpha=[0.1, 0.3]
    )
    key, first = jax.random.key(3), sweep[0]
    state = first.trigger.init(key, spec)
    together = quick_jit(jax.vmap(lambda attack: poison.poison_train(key, attack, state, split)))(
        sweep.points
    )
    for index, setting in enumerate(sweep.settings):
        alone = quick_jit(poison.poison_train)(
            key, attacks.create("blended", **setting), state, split
        )
        assert isinstance(alone, PoisonedSplit)
        jax.tree.map(
            lambda x, y, index=index: np.testing.assert_array_equal(x[index], y), together, alone
        )
    assert together.is_poisoned.sum(1).tolist() == [12, 12, 24, 24]


@pytest.mark.parametrize("form", ["loop", "auto"])
def test_purifying_at_every_point_is_purifying_one_by_one(form, model, variables, split):
    """A chain, whose stages both have the axis, with two seeds."""

    def create(rho):
        return chain(ft_sam(rho=rho), ft_sam(rho=2 * rho))

    sweep = sweeps.grid(create, rho=[0.5, 2.0])
    results = sweeps.purify(KEYS, sweep, model, variables, split, form=form)
    assert [len(row) for row in results] == [2, 2]
    for setting, row in zip(sweep.settings, results, strict=True):
        for key, result in zip(KEYS, row, strict=True):
            alone = defenses.purify(key, create(**setting), model, variables, split)
            close = functools.partial(np.testing.assert_allclose, atol=1e-6)
            jax.tree.map(close, result.variables, alone.variables)
            losses = [entry.loss for entry in alone.history]
            assert [entry.loss for entry in result.history] == pytest.approx(losses, rel=1e-5)


def test_one_key_is_one_seed_and_a_point_may_diverge(model, variables, split):
    create = functools.partial(defenses.create, "ft", epochs=1, batch_size=24, augment="none")
    results = sweeps.purify(
        KEYS[0], sweeps.grid(create, learning_rate=[0.1, 1e30]), model, variables, split
    )
    assert [type(row[0]) for row in results] == [loop.Result, loop.Diverged]


def test_purifying_can_be_stopped(model, variables, split):
    create = functools.partial(defenses.create, "ft", epochs=2, batch_size=24, augment="none")
    sweep = sweeps.grid(create, learning_rate=[0.1, 0.2])
    with pytest.raises(loop.Stopped, match="stopped after epoch 1 of 2"):
        sweeps.purify(
            KEYS[0], sweep, model, variables, split, form="loop", should_stop=lambda: True
        )


def test_where_all_diverge_the_stages_that_follow_are_left_out(model, variables, split):
    def create(learning_rate):
        return chain(ft_sam(learning_rate=learning_rate), ft_sam())

    results = sweeps.purify(
        KEYS, sweeps.grid(create, learning_rate=[1e30]), model, variables, split
    )
    assert [type(result) for result in results[0]] == [loop.Diverged] * 2


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({}, "grid needs an axis"),
        ({"rho": []}, "rho needs at least one value"),
        ({"rho": [1.0, 2.0, 1]}, "rho has the value 1 twice"),
        ({"epochs": [1, 2], "rho": [1.0]}, "epochs cannot be an axis: it changes the program"),
        ({"rho": [1.0, -1.0]}, "rho must"),
        ({"roh": [1.0]}, "ft_sam has no option 'roh' .did you mean 'rho'"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(axes, words):
    with pytest.raises(InputError, match=words):
        sweeps.grid(functools.partial(defenses.create, "ft_sam"), **axes)


def test_what_no_defender_could_do_is_refused(model, variables, split):
    sweep = sweeps.grid(ft_sam, rho=[1.0, 2.0])
    with pytest.raises(InputError, match="holdout must have at least 1 image to train on, got 0"):
        sweeps.purify(KEYS, sweep, model, variables, split._replace(valid=np.zeros(48, bool)))
    sweep = sweeps.grid(functools.partial(defenses.create, "grad_prune"), learning_rate=[0.1, 0.2])
    with pytest.raises(InputError, match="trigger must be given to a defense that sees it"):
        sweeps.purify(KEYS, sweep, model, variables, split)
