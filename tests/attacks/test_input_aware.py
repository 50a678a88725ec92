"""Input-aware: mask and mixture by hand, the ratio of differences, both losses in NumPy, and cover samples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from bdjax import attacks, registry
from bdjax.attacks._generators import UShape
from bdjax.attacks.input_aware import difference_ratio
from bdjax.checks import InputError
from bdjax.types import Split

KEY = jax.random.key(0)


@pytest.fixture
def batch(split) -> Split:
    return Split(
        jnp.asarray(split.input[:12] / np.float32(255)), jnp.asarray(split.label[:12]), None
    )  # type: ignore[arg-type]


def create(spec, **options):
    trigger = attacks.create("input_aware", spec=spec, **{"width": 2, **options}).trigger
    return trigger, trigger.pace(trigger.init(KEY, spec), 3)


def network(channels: int, variables, image, train: bool = False):
    out = UShape(channels, 2).apply(
        variables, (image - 0.5) / 0.25, train=train, mutable=["batch_stats"]
    )
    return np.asarray(out[0], np.float64)


def squashed(value):
    return np.tanh(value) / 2 + 0.5


def threshold(value):
    return np.tanh(20 * squashed(value) - 10) / 2 + 0.5


def rms(value):
    return np.sqrt(np.square(value).mean((1, 2, 3)))


def test_the_trigger_mixes_pattern_and_image_by_the_mask(spec, batch):
    trigger, state = create(spec)
    pattern, mask = (
        network(n, part, batch.input) for n, part in ((3, state.pattern), (1, state.mask))
    )
    pattern, mask = squashed(pattern), threshold(mask)
    got = jax.vmap(trigger.apply, (None, None, 0))(KEY, state, batch.input)
    np.testing.assert_allclose(got, batch.input * (1 - mask) + pattern * mask, atol=1e-5)
    np.testing.assert_allclose(threshold(np.array([-1e3, 0, 1e3])), [0, 0.5, 1], atol=1e-8)


def test_a_cover_sample_carries_the_trigger_of_another_image(spec, batch):
    trigger, state = create(spec)
    # So that images differ
    larger = jax.tree.map(lambda x: 2.5 * x, (state.pattern["params"], state.mask["params"]))
    state = state._replace(
        pattern={**state.pattern, "params": larger[0]}, mask={**state.mask, "params": larger[1]}
    )
    pattern, mask = (
        network(n, part, batch.input) for n, part in ((3, state.pattern), (1, state.mask))
    )
    pattern, mask = squashed(pattern), threshold(mask)
    shifts = set()
    for seed in range(4):
        got = np.asarray(trigger.cover(jax.random.key(seed), state, batch))
        wanted = [
            batch.input * (1 - np.roll(mask, s, 0)) + np.roll(pattern * mask, s, 0)
            for s in range(12)
        ]
        shifts |= {s for s in range(12) if np.allclose(got, wanted[s], atol=1e-4)}
    assert shifts, "each is the trigger of one other row"
    assert 0 not in shifts
    assert len(shifts) > 1


def test_diversity_by_hand_and_its_gradient_where_rows_are_equal():
    x, other = np.zeros((2, 2, 2, 1)), np.zeros((2, 2, 2, 1))
    x[0], x[1], other[1, 0] = 3, 1, 1  # rms 3, and √½: half of the pixels differ by 1
    made, of_other = np.zeros((2, 1, 1, 1)), np.array([1.5, 0.5]).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(
        difference_ratio(*map(jnp.asarray, (x, other, made, of_other))),
        (2 + 2 * 0.5**0.5) / 2,
        rtol=1e-5,
    )
    ones = jnp.ones((2, 2, 2, 1))
    gradient = jax.grad(lambda made: difference_ratio(ones, 0 * ones, made, made))(ones)
    assert jnp.isfinite(gradient).all()
    gradient = jax.grad(lambda made: difference_ratio(ones, 0 * ones, made, ones))(ones)
    np.testing.assert_array_equal(gradient, 0 * ones)


def test_the_loss_of_the_mask(spec, model, variables, batch):
    trigger, state = create(spec, density=0.3, sparsity=7.0, diversity=2.0)
    mask = threshold(network(1, state.mask, batch.input, train=True))
    x = np.asarray(batch.input - 0.5) / 0.25
    ratio = rms(x - np.roll(x, 1, 0)) / (rms(mask - np.roll(mask, 1, 0)) + 1e-7)
    after, info = quick_jit(trigger.fit, static_argnums=1)(KEY, model, variables, state, batch)
    np.testing.assert_allclose(
        info.loss, 7 * np.maximum(mask - 0.3, 0).mean() + 2 * ratio.mean(), rtol=1e-3
    )
    jax.tree.map(np.testing.assert_array_equal, after.pattern, state.pattern)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_the_loss_of_the_pattern_goes_through_the_victim_in_evaluation(
    spec, model, variables, batch
):
    trigger, state = create(
        spec, poison_rate=0.2, cover_rate=0.4, diversity=0.3, label_map="all_to_all"
    )
    x, image = np.asarray(batch.input - 0.5) / 0.25, np.asarray(batch.input)
    pattern = squashed(network(3, state.pattern, batch.input, train=True))
    mask = threshold(network(1, state.mask, batch.input))
    own, cross = (
        image[:6] * (1 - mask[h]) + pattern[h] * mask[h] for h in (slice(0, 6), slice(6, 12))
    )

    def cross_entropy(images, label):
        logits = np.asarray(model.apply(variables, jnp.asarray(images, jnp.float32))[0], np.float64)
        log_probability = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return -log_probability[np.arange(6), label].mean()

    label = np.asarray(batch.label[:6])
    ratio = rms(x[:6] - x[6:]) / rms((pattern[:6] - pattern[6:]) / 0.25)
    expected = (
        0.2 * cross_entropy(own, (label + 1) % 4)
        + 0.4 * cross_entropy(cross, label)
        + 0.3 * ratio.mean()
    )
    after, info = quick_jit(trigger.learn, static_argnums=1)(KEY, model, variables, state, batch)
    np.testing.assert_allclose(info.loss, expected, rtol=1e-3)
    assert info.gradient_evaluations == 1
    jax.tree.map(np.testing.assert_array_equal, after.mask, state.mask)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_without_diversity_fitting_brings_the_mask_down(spec, model, variables, batch):
    trigger, state = create(spec, epochs=100, diversity=0.0)
    fit = quick_jit(lambda key, state: trigger.fit(key, model, variables, state, batch))
    covered = []
    for step in range(60):
        state, info = fit(jax.random.fold_in(KEY, step), state)
        covered.append(float(info.accuracy))
    assert covered[0] > 0.2
    assert covered[-1] < 0.5 * covered[0]


@pytest.mark.parametrize(
    ("milestones", "step", "factor"),
    [((2, 4), 5, 1), ((2, 4), 6, 0.1), ((2, 4), 11, 0.1), ((2, 4), 12, 0.01)],
)
def test_the_rate_falls_at_epochs(spec, milestones, step, factor):
    trigger, state = create(spec, learning_rate=0.5)  # three steps an epoch
    rate = trigger._rate(jnp.int32(step), state.steps_per_epoch, milestones)
    np.testing.assert_allclose(rate, 0.5 * factor, rtol=1e-5)


def test_the_reference_code_keeps_patterns_from_black_and_white_and_adds_up_gradients(
    spec, model, variables, batch
):
    options = registry.presets("bdjax.attacks", "input_aware")["reference_code"]
    trigger, state = create(spec, **options)
    np.testing.assert_allclose(
        trigger._squash(jnp.array([-1e3, 0, 1e3])), [0.1192, 0.5, 0.8808], atol=1e-4
    )
    update = quick_jit(trigger.learn, static_argnums=1)
    once, _ = update(KEY, model, variables, state, batch)
    frozen = once._replace(pattern=state.pattern)  # the same gradient a second time
    twice, _ = update(KEY, model, variables, frozen, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=1e-3, atol=1e-5),
        twice.gradient,
        once.gradient,
    )
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(once.gradient)) > 0


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (33, 18, 3), (1, 1, 1)])
def test_the_networks_keep_any_size(shape):
    out, _ = jax.eval_shape(
        lambda: UShape(1, 2).init_with_output(KEY, jnp.zeros((2, *shape)), train=False)
    )
    assert out.shape == (2, *shape[:2], 1)


def test_the_rates_reach_both_the_batch_and_the_loss():
    attack = attacks.create("input_aware", poison_rate=0.2, cover_rate=0.3)
    assert attack.controls_training
    assert (attack.poison_rate, attack.cover_rate) == (0.2, 0.3)
    assert (attack.trigger.poison_rate, attack.trigger.cover_rate) == (0.2, 0.3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cover_rate": 1.5}, "cover_rate must lie between 0 and 1"),
        ({"density": -0.1}, "density must lie between 0 and 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"sparsity": -1.0}, "sparsity must be 0 or more"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
    ],
)
def test_input_aware_refuses(options, words):
    with pytest.raises(InputError, match=words):
        attacks.create("input_aware", **options)
