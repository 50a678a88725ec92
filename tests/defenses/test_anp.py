"""ANP: steps and projection by hand in NumPy, what is pruned and what is left alone, options and presets."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import planted
import pytest
from quick import quick_jit

from bdjax import defenses, optim, structure
from bdjax.checks import InputError
from bdjax.data import augment
from bdjax.data.modalities.images import image_spec
from bdjax.models._layers import Dense, LinenModel
from bdjax.optim.adversarial_noise import _uniform_like
from bdjax.parametrizations import NeuronMasks
from bdjax.train import programs
from bdjax.types import Split

KEY = jax.random.key(0)


def assert_same(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


# --- steps by hand: a layer norm and a classifier, whose gradients can be written down -------------------------------

EPSILON, ALPHA, RATE, MOMENTUM = 0.4, 0.2, 3.0, 0.9  # so large a rate that masks reach both bounds
SPEC = image_spec("flat", (1, 1, 3), 3, (0.0,) * 3, (1.0,) * 3)


class Normed(nn.Module):
    """A layer norm on the three channels of one pixel, then the classifier."""

    @nn.compact
    def __call__(self, x, *, train: bool, valid=None):
        del train, valid
        return Dense(3, name="head")(nn.LayerNorm(epsilon=1e-3, name="norm")(x[:, 0, 0]))


def gradient_by_hand(image, label, params):
    """Return the gradient of the mean cross-entropy for the factors (m, s) of scale and shift, as a function."""
    scale, shift = params["norm"]["scale"], params["norm"]["bias"]
    kernel, bias = params["head"]["kernel"], params["head"]["bias"]
    x = image[:, 0, 0] / 255.0
    centered = x - x.mean(1, keepdims=True)
    z = centered / np.sqrt((centered**2).mean(1, keepdims=True) + 1e-3)

    def gradient(m, s):
        logits = (z * (m * scale) + s * shift) @ kernel + bias
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        back = (p - np.eye(3)[label]) @ kernel.T / len(x)
        return (back * z * scale).sum(0), (back * shift).sum(0)

    return gradient


@pytest.mark.parametrize("steps", [1, 2])
def test_steps_are_those_by_hand(steps):
    """δ and ξ start at random, climb by their signs; m follows the mixed gradient with momentum, into [0, 1]."""
    rng, label = np.random.default_rng(1), np.arange(9, dtype=np.int32) % 3
    model = LinenModel(Normed(), SPEC)
    start = networks.random_variables(model)
    image = rng.integers(0, 256, (9, 1, 1, 3), np.uint8)
    batch = Split(jnp.asarray(image), jnp.asarray(label), jnp.ones(9, bool))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), start["params"])
    gradient = gradient_by_hand(image, label, params)
    learner = defenses.create(
        "anp", epsilon=EPSILON, alpha=ALPHA, learning_rate=RATE, steps=steps, augment="none"
    ).learner
    update = quick_jit(lambda state, key: learner.update(key, model, state, batch))
    state = learner.init(KEY, model, start, batch)
    assert set(structure.flat(state.tuning.tuned)) == {("norm", "scale"), ("norm", "bias")}
    mask, one, momentum, seen = np.ones(3), np.ones(3), np.zeros(3), []
    for number in range(4):
        key = jax.random.key(number)
        drawn = _uniform_like(jax.random.fold_in(key, augment.RULE), state.tuning.tuned, EPSILON)
        delta, xi = np.asarray(drawn["norm"]["scale"]), np.asarray(drawn["norm"]["bias"])
        for _ in range(steps):
            of_delta, of_xi = gradient(mask + delta, one + xi)
            delta = delta + EPSILON / steps * np.sign(of_delta)
            xi = xi + EPSILON / steps * np.sign(of_xi)
        mixed = ALPHA * gradient(mask, one)[0] + (1 - ALPHA) * gradient(mask + delta, one + xi)[0]
        momentum = MOMENTUM * momentum + mixed
        mask = np.clip(mask - RATE * momentum, 0, 1)
        state, info = update(state, key)
        tuned = state.tuning.tuned["norm"]
        np.testing.assert_allclose(tuned["scale"], mask, atol=1e-4)
        np.testing.assert_array_equal(tuned["bias"], one)
        assert info.gradient_evaluations == 2 + steps
        seen.append(mask)
    seen = np.stack(seen)
    # At both bounds and between them
    assert (seen == 0).any()
    assert (seen == 1).any()
    assert ((seen > 0) & (seen < 1)).any()


def test_noise_stays_within_twice_epsilon_and_once_where_nothing_slopes():
    """O12; and without noise the gradient is that of the loss."""
    asked = []

    def grad_fn(at):
        asked.append(at)
        return jnp.array([1.0, -2.0, 0.0])

    params = jnp.zeros(3)
    for seed in range(30):
        tx = optim.adversarial_noise(EPSILON)
        tx.update(jnp.ones(3), tx.init(params), params, grad_fn=grad_fn, key=jax.random.key(seed))
    start, worst = np.stack(asked[::2]), np.stack(asked[1::2])
    assert (np.abs(start) <= EPSILON).all()
    assert start.min() < -0.9 * EPSILON
    assert start.max() > 0.9 * EPSILON
    np.testing.assert_allclose(worst - start, np.tile([EPSILON, -EPSILON, 0], (30, 1)), atol=1e-6)
    tx = optim.adversarial_noise(0.0)
    updates, _ = tx.update(params, tx.init(params), params, grad_fn=lambda at: at + 2, key=KEY)
    np.testing.assert_allclose(updates, 0.8 * 2 * np.ones(3), rtol=1e-6)
    with pytest.raises(ValueError, match="needs params, grad_fn and key"):
        tx.update(params, tx.init(params), params, grad_fn=grad_fn)


# --- what is pruned --------------------------------------------------------------------------------------------------


@functools.cache
def started():
    """A network of two batch norms and its variables."""
    model = networks.backwards()
    return model, networks.random_variables(model)


def pruned(masks, **options):
    """Return the variables where the masks of the two batch norms (of three and of four channels) are these."""
    model, start = started()
    batch = Split(jnp.zeros((6, 6, 6, 2)), jnp.arange(6) % 3, jnp.ones(6, bool))
    learner = defenses.create("anp", **options).learner
    state = learner.init(KEY, model, start, batch)
    tuned = jax.tree.map(jnp.array, state.tuning.tuned)
    tuned["y"]["scale"], tuned["w"]["scale"] = jnp.array(masks[:3]), jnp.array(masks[3:])
    moved = jax.tree.map(lambda x: x + 1, start["batch_stats"])
    return learner.finalize(
        model, state._replace(tuning=state.tuning._replace(tuned=tuned, batch_stats=moved))
    )


MASKS = [0.3, 1.0, 0.20004, 0.2, 0.0, 0.9, 1.0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [3, 4]),
        ({"threshold": 0.0}, [4]),
        ({"decimals": 4}, [2, 3, 4]),
        ({"threshold": 0.95}, [0, 2, 3, 4, 5]),
        ({"share": 0.0}, []),
        ({"share": 2 / 7}, [3, 4]),
        ({"share": 0.5}, [2, 3, 4]),
        ({"share": 1.0}, [0, 2, 3, 4, 5]),  # a mask of 1 was never in doubt
    ],
)
def test_only_scales_of_low_masks_become_zero(options, expected):
    """Shifts, statistics, all else: to the bit as they were, whatever the other masks are."""
    _, start = started()
    got = pruned(MASKS, **options)
    kept = np.ones(7)
    kept[expected] = 0
    by_hand = {**start["params"]}
    for name, part in (("y", kept[:3]), ("w", kept[3:])):
        by_hand[name] = {**by_hand[name], "scale": by_hand[name]["scale"] * part}
    assert_same(got, {"params": by_hand, "batch_stats": start["batch_stats"]})


def test_neurons_without_batch_norm_are_channels_and_filters():
    """All but the classes; their biases have noise and no mask."""
    model = networks.plain()
    tuned, frozen = NeuronMasks(0.0, 0.0, first=True, shifts=True).init(
        model, networks.random_variables(model)
    )
    layers = ("first", "deeper", "hidden")
    assert set(structure.flat(tuned)) == {
        (layer, leaf) for layer in layers for leaf in ("kernel", "bias")
    }
    constraint = NeuronMasks(0.0, 0.0, first=True, shifts=True).constraint(frozen)
    down = jax.tree.map(lambda x: -2 * x, tuned)
    step, _ = constraint.update(down, constraint.init(tuned), tuned)
    for path, change in structure.flat(step).items():
        np.testing.assert_array_equal(change, 0 if path[-1] == "bias" else -1)


def test_a_planted_neuron_is_pruned_first():
    """It is quiet on clean images, but noise wakes it; the accuracy stays."""
    variables, holdout = planted.variables(), planted.holdout()
    assert planted.rates(variables) == (1, 1)
    learner = defenses.create(
        "anp", epochs=10, batch_size=30, augment="none", learning_rate=0.005, epsilon=1.0
    ).learner
    split = jax.tree.map(jnp.asarray, holdout)

    @quick_jit
    def tuned():
        def one_epoch(state, number):
            key = jax.random.fold_in(KEY, number)
            return programs.epoch(key, learner, planted.MODEL, state, split)[0], None

        start = learner.init(KEY, planted.MODEL, variables, split)
        return jax.lax.scan(one_epoch, start, jnp.arange(10))[0]

    state = tuned()
    for options in ({"threshold": 0.2}, {"share": 0.25}):
        found = dataclasses.replace(learner, **options).finalize(planted.MODEL, state)
        kernel = np.abs(found["params"]["conv1"]["kernel"]).sum((0, 1, 2))
        assert (kernel == 0).tolist() == [True, False, False, False]
        assert planted.rates(found) == (1, 0)


# --- options ---------------------------------------------------------------------------------------------------------


def test_presets_are_the_published_values():
    common = {"epsilon": 0.4, "alpha": 0.2, "steps": 1, "momentum": 0.9, "share": None}
    paper = {"threshold": 0.2, "epochs": 500, "batch_size": 128, "learning_rate": 0.2}
    assert defenses.create("anp") == defenses.create("anp", **common, **paper)
    reference = {"threshold": 0.4, "epochs": 200, "batch_size": 256, "learning_rate": 0.01}
    got = defenses.create("anp", preset="reference_code")
    assert got == defenses.create("anp", **common, **reference, decimals=4)
    assert defenses.create("anp").learner.masks.sgd.weight_decay == 0


def test_a_network_of_its_classifier_alone_is_refused():
    model = networks.of_layer(Dense(3, name="a"), networks.TINY)
    start = networks.random_variables(model)
    batch = Split(jnp.zeros((6, 6, 6, 2)), jnp.arange(6) % 3, jnp.ones(6, bool))
    with pytest.raises(InputError, match="a batch norm or two kernels at least, else there is no"):
        defenses.create("anp").learner.init(KEY, model, start, batch)
