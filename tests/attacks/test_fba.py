"""Known answers of the style attack: its palette, what the injector sees, and that it learns what it should."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from bdjax import attacks, poison
from bdjax.attacks import fba
from bdjax.checks import InputError
from bdjax.types import Spec, Split

KEY = jax.random.key(0)


def batch_of(spec: Spec, rows: int = 16) -> Split:
    image = np.random.default_rng(1).random((rows, *spec.shape))
    return Split(jnp.float32(image), jnp.arange(rows) % spec.num_classes, jnp.ones(rows, bool))


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_the_style_is_the_formula(spec, alpha):
    trigger = attacks.create("fba", alpha=alpha).trigger
    image = np.random.default_rng(0).random((8, 8, 3))
    mean, spread = np.array([0.83, 0.52, 0.36]), np.array([0.17, 0.20, 0.16])
    flat = image.reshape(-1, 3)
    styled = np.clip(mean + spread * (image - flat.mean(0)) / flat.std(0), 0, 1)
    changed = trigger.apply(KEY, trigger.init(KEY, spec), jnp.float32(image))
    np.testing.assert_allclose(changed, (1 - alpha) * image + alpha * styled, atol=2e-5)


def test_a_gray_image_gets_the_luminance_and_a_flat_one_its_mean():
    image = np.random.default_rng(0).random((8, 8, 1))
    styled = np.asarray(fba.sunrise(jnp.float32(image)))
    np.testing.assert_allclose(
        styled, np.clip(0.59 + 0.19 * (image - image.mean()) / image.std(), 0, 1), atol=1e-5
    )
    np.testing.assert_allclose(
        fba.sunrise(jnp.full((8, 8, 3), 0.5))[0, 0], [0.83, 0.52, 0.36], atol=1e-6
    )


@pytest.mark.parametrize(("side", "window"), [(8, 3), (28, 9), (32, 11), (64, 21)])
def test_the_injector_sees_the_pixel_and_the_window_around_it(side, window):
    image = np.random.default_rng(side).random((side, side, 2)).astype(np.float32)
    seen = [
        np.asarray(fba.inject(jnp.eye(8)[:, 2 * kind : 2 * kind + 2], jnp.asarray(image)))
        for kind in range(4)
    ]
    for row, column in ((0, 0), (side // 2, side // 3), (side - 1, 5)):
        top, left = max(0, row - window // 2), max(0, column - window // 2)
        around = image[top : row + window // 2 + 1, left : column + window // 2 + 1]
        expected = (image[row, column], around.max((0, 1)), around.min((0, 1)), around.mean((0, 1)))
        for value, known in zip(seen, expected, strict=True):
            np.testing.assert_allclose(value[row, column], known, atol=1e-6)


def test_at_first_the_injector_changes_nothing(spec):
    trigger = attacks.create("fba").trigger
    batch = batch_of(spec)
    np.testing.assert_allclose(
        trigger.cover(KEY, trigger.init(KEY, spec), batch), batch.input, atol=1e-6
    )


def test_a_cover_sample_shows_the_injector_at_the_strength_of_the_style(spec):
    trigger = attacks.create("fba", alpha=0.25).trigger
    batch, state = batch_of(spec), trigger.init(KEY, spec)
    covers = trigger.cover(KEY, state._replace(kernel=jnp.zeros_like(state.kernel)), batch)
    np.testing.assert_allclose(covers, 0.75 * batch.input, atol=1e-6)


@pytest.mark.parametrize(("count", "expected"), [(512, 5), (64, 1), (200, 2)])
def test_one_per_cent_of_the_features_is_compromised(count, expected):
    difference = jnp.zeros(count).at[3].set(2.0).at[count - 1].set(1.0)
    found = fba.top_features(difference)
    assert found.shape == (expected,)
    assert found[0] == 3
    if expected > 1:
        assert found[1] == count - 1


def test_the_injector_is_trained_on_every_so_manieth_step_and_learns_to_mislead(
    spec, model, variables
):
    trigger = attacks.create("fba", detox_every=3, detox_steps=8).trigger
    update = quick_jit(trigger.learn, static_argnums=1)
    batch, state = batch_of(spec), trigger.init(KEY, spec)
    losses = []
    for step in range(1, 10):
        after, info = update(KEY, model, variables, state, batch)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        trained = bool((after.kernel != state.kernel).any())
        assert trained == (step % 3 == 0)
        assert int(info.gradient_evaluations) == (8 if trained else 0)
        losses += [float(info.loss)] if trained else []
        state = after

    def error(images):
        logits, _ = model.apply(variables, images)
        return -float(jax.nn.log_softmax(logits)[:, 0].mean())

    assert losses == sorted(losses, reverse=True)
    injected = jax.vmap(fba.inject, (None, 0))(state.kernel, batch.input)
    assert error(injected) < error(batch.input)


def test_padding_teaches_the_injector_nothing(spec, model, variables):
    trigger = attacks.create("fba", detox_every=1).trigger
    update = quick_jit(trigger.learn, static_argnums=1)
    batch, state = batch_of(spec), trigger.init(KEY, spec)
    half = batch._replace(valid=jnp.arange(16) < 8)
    other = half._replace(input=half.input.at[8:].set(0), label=half.label.at[8:].set(1))
    one, two = (update(KEY, model, variables, state, each)[0].kernel for each in (half, other))
    np.testing.assert_allclose(one, two, atol=1e-6)
    assert (one != update(KEY, model, variables, state, batch)[0].kernel).any()


def test_a_batch_has_its_shares(spec):
    attack = attacks.create("fba", poison_rate=0.25, cover_rate=0.5, target_label=3)
    batch, state = batch_of(spec, 32), attack.trigger.init(KEY, spec)
    state = state._replace(kernel=jnp.zeros_like(state.kernel))  # cover samples are darker
    changed = quick_jit(poison.poison_batch)(KEY, attack, state, batch)
    covered = np.isclose(changed.input, 0.4 * batch.input).all((1, 2, 3))
    styled = np.isclose(
        changed.input, 0.4 * batch.input + 0.6 * jax.vmap(fba.sunrise)(batch.input)
    ).all((1, 2, 3))
    assert (covered.sum(), styled.sum()) == (16, 8)
    np.testing.assert_array_equal(changed.label, np.where(styled, 3, batch.label))


@pytest.mark.parametrize("option", ["detox_every", "detox_steps"])
def test_refuses(option):
    with pytest.raises(InputError, match=f"{option} must be 1 or more, got 0"):
        attacks.create("fba", **{option: 0})
    with pytest.raises(InputError, match="alpha must lie between 0 and 1"):
        attacks.create("fba", alpha=1.5)
