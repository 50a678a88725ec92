"""SSBA: the message's bits, the weight's schedule and the loss by hand, and that bits get through."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from bdjax import attacks
from bdjax.attacks._generators import Decoder, Encoder, levels
from bdjax.attacks.ssba import code
from bdjax.checks import InputError
from bdjax.types import Split

KEY = jax.random.key(0)


@pytest.fixture
def batch(split) -> Split:
    return Split(
        jnp.asarray(split.input[:16] / np.float32(255)), jnp.asarray(split.label[:16]), None
    )  # type: ignore[arg-type]


def create(spec, **options):
    trigger = attacks.create("ssba", spec=spec, **{"width": 4, "bits": 4, **options}).trigger
    return trigger, trigger.init(KEY, spec)


def test_a_message_is_its_letters_bits_then_spaces_then_zeros():
    bits = code("aB", 100)
    expected = (
        [0, 1, 1, 0, 0, 0, 0, 1]
        + [0, 1, 0, 0, 0, 0, 1, 0]
        + 10 * [0, 0, 1, 0, 0, 0, 0, 0]
        + 4 * [0]
    )
    np.testing.assert_array_equal(bits, expected)
    np.testing.assert_array_equal(code("aB", 10), expected[:10])
    assert code("aB", 110).shape == (110,)


def test_the_weight_waits_and_climbs(spec):
    trigger, _ = create(spec)  # the published schedule
    got = [
        float(trigger.weight(jnp.int32(since))) for since in (-1, 0, 1000, 1300, 2500, 4000, 9000)
    ]
    np.testing.assert_allclose(got, [0, 0, 0, 1, 5, 10, 10], atol=1e-5)
    trigger, _ = create(spec, delay=0, ramp=0)
    assert [float(trigger.weight(jnp.int32(since))) for since in (-1, 0, 1)] == [0, 0, 10]


def test_the_gate_opens_once_and_stays_open(spec, model, variables, batch):
    never, state = create(spec, gate=1.0)
    always = create(spec, gate=0.0)[0]
    fit = quick_jit(lambda trigger, state: trigger.fit(KEY, model, variables, state, batch)[0])
    state = fit(never, state)
    assert state.since == -1
    state = fit(always, state)
    assert state.since == 0
    state = fit(never, state)
    assert state.since == 1
    assert jax.tree.structure(state) == jax.tree.structure(fit(never, state))


@pytest.mark.parametrize("since", [-1, 5])
def test_the_loss(spec, model, variables, batch, since):
    trigger, state = create(spec, delay=0, ramp=10, image_weight=6.0)
    state = state._replace(since=jnp.int32(since))
    _, info = quick_jit(lambda state: trigger.fit(KEY, model, variables, state, batch))(state)
    bits = np.asarray(jax.random.bernoulli(KEY, shape=(16, 4)), np.float64)
    image = Encoder(4).apply({"params": state.encoder}, batch.input, jnp.asarray(bits, jnp.float32))
    logits = np.asarray(Decoder(4, 4).apply({"params": state.decoder}, image), np.float64)
    bce = (np.log1p(np.exp(logits)) - bits * logits).mean()
    mse = np.square(np.asarray(image) - np.asarray(batch.input)).mean()
    np.testing.assert_allclose(info.loss, bce + (3 if since == 5 else 0) * mse, rtol=1e-4)
    np.testing.assert_allclose(info.accuracy, ((logits > 0) == (bits > 0)).mean())


def test_one_message_for_all_images_and_another_changes_them(spec, batch):
    trigger, state = create(spec, message="a")
    got = jax.vmap(trigger.apply, (None, None, 0))(KEY, state, batch.input)
    bits = jnp.broadcast_to(jnp.array([0.0, 1, 1, 0]), (16, 4))
    np.testing.assert_allclose(
        got, Encoder(4).apply({"params": state.encoder}, batch.input, bits), atol=1e-6
    )
    other = create(spec, message="\x10")[0].apply(KEY, state, batch.input[0])
    assert jnp.abs(other - got[0]).max() > 1e-4


def test_bits_get_through_and_then_the_image_comes_back(spec, model, variables, batch):
    trigger, state = create(spec, width=8, learning_rate=0.004, delay=20, ramp=60)
    fit = quick_jit(lambda key, state: trigger.fit(key, model, variables, state, batch))

    def error(state):
        return float(
            jnp.square(
                trigger.hidden(state.encoder, batch.input, jnp.ones((16, 4))) - batch.input
            ).mean()
        )

    opened, accuracies = None, []
    for step in range(400):
        state, info = fit(jax.random.fold_in(KEY, step), state)
        accuracies.append(float(info.accuracy))
        if opened is None and state.since >= 0:
            opened = error(state)
    assert opened is not None
    assert np.mean(accuracies[-20:]) > 0.9
    assert error(state) < 0.5 * opened


@pytest.mark.parametrize(
    ("shape", "halvings"),
    [
        ((8, 8, 1), 2),
        ((28, 28, 1), 3),
        ((32, 32, 3), 4),
        ((64, 64, 3), 4),
        ((30, 41, 3), 3),
        ((4, 4, 1), 1),
        ((2, 2, 1), 0),
    ],
)
def test_the_networks_take_any_size(shape, halvings):
    assert levels(*shape[:2]) == halvings
    image, bits = jnp.zeros((2, *shape)), jnp.ones((2, 4))
    out, _ = jax.eval_shape(lambda: Encoder(2).init_with_output(KEY, image, bits))
    assert out.shape == image.shape
    out, _ = jax.eval_shape(lambda: Decoder(4, 2).init_with_output(KEY, image))
    assert out.shape == (2, 4)


def test_what_is_encoded_lies_between_0_and_1():
    image, bits = 100 * jax.random.normal(KEY, (2, 8, 8, 3)), jnp.ones((2, 4))
    out, _ = quick_jit(Encoder(2).init_with_output)(KEY, image, bits)
    assert out.min() >= 0
    assert out.max() <= 1
    assert out.std() > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"message": ""}, "message must be 1 to 12 ASCII characters, got ''"),
        ({"message": "thirteen char"}, "message must be 1 to 12 ASCII"),
        ({"message": "é"}, "message must be 1 to 12 ASCII"),
        ({"gate": 1.5}, "gate must lie between 0 and 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"image_weight": -1.0}, "image_weight must be 0 or more"),
        ({"ramp": -1}, "ramp must be 0 or more"),
        ({"bits": 0}, "bits must be 1 or more"),
    ],
)
def test_ssba_refuses(options, words):
    with pytest.raises(InputError, match=words):
        attacks.create("ssba", **options)
