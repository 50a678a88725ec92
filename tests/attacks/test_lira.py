"""LIRA: noise by hand, when the generator learns and when it takes over, and what it learns."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from bdjax import attacks
from bdjax.attacks import AllToAll
from bdjax.attacks._generators import Autoencoder, normalized
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.types import Split

KEY = jax.random.key(0)


@pytest.fixture
def batch(split) -> Split:
    return Split(
        jnp.asarray(split.input[:16] / np.float32(255)), jnp.asarray(split.label[:16]), None
    )  # type: ignore[arg-type]


def create(spec, **options):
    trigger = attacks.create("lira", spec=spec, **{"width": 2, **options}).trigger
    return trigger, trigger.pace(trigger.init(KEY, spec), 2)


@quick_jit
def update(trigger, variables, state, batch, model_key=KEY):
    return trigger.learn(model_key, MODEL[0], variables, state, batch)


MODEL = []


@pytest.fixture(autouse=True)
def _model(model):
    MODEL[:] = [model]


def leaves(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_the_noise_is_epsilon_times_the_network_clipped(spec, batch):
    trigger, state = create(spec, epsilon=0.25)
    noise = Autoencoder(2).apply(state.poisoning, (batch.input - 0.5) / 0.25, train=False)
    got = jax.vmap(trigger.apply, (None, None, 0))(KEY, state, batch.input)
    np.testing.assert_allclose(
        got, np.clip(batch.input + 0.25 * np.asarray(noise), 0, 1), atol=1e-6
    )
    assert np.abs(got - batch.input).max() <= 0.25 + 1e-6
    assert got.min() == 0 or got.max() == 1, (
        "the random images reach the bounds, so the clip is seen"
    )


def test_default_noise_is_a_tenth_of_normalized_cifar10():
    spec = image_spec("cifar10", (32, 32, 3), 10, (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
    epsilon = attacks.create("lira").trigger.epsilon
    np.testing.assert_allclose(epsilon / np.array(spec.modality.std), 0.1, atol=0.005)
    statistics = jnp.array([spec.modality.mean, spec.modality.std])
    np.testing.assert_allclose(
        normalized(jnp.ones((1, 1, 1, 3)), statistics)[0, 0, 0], [2.059, 2.131, 2.121], atol=1e-3
    )


def test_the_generator_takes_over_at_the_end_of_each_learning_epoch_and_then_rests(
    spec, variables, batch
):
    trigger, state = create(spec, learning_epochs=2, learning_rate=0.01)  # two steps an epoch
    seen, evaluations = [state], []
    for _ in range(7):
        state, info = update(trigger, variables, state, batch)
        seen.append(state)
        evaluations.append(int(info.gradient_evaluations))
    assert evaluations == [1, 1, 1, 1, 0, 0, 0]
    learning, poisoning = (
        [leaves(getattr(state, name)) for state in seen] for name in ("learning", "poisoning")
    )
    for step in range(7):
        moved = bool((learning[step + 1] != learning[step]).any())
        assert moved is (step < 4), step
    after = [0, 0, 2, 2, 4, 4, 4]  # whose T poisons the batch of each step
    for step, source in enumerate(after):
        np.testing.assert_array_equal(poisoning[step + 1], learning[source])


def test_the_generator_learns_what_the_attacker_wants(spec, variables, batch):
    trigger, state = create(spec, epsilon=1.0, learning_rate=0.02, learning_epochs=100)
    losses = []
    for _ in range(25):
        state, info = update(trigger, variables, state, batch)
        losses.append(float(info.loss))
    assert losses[-1] < losses[0] - 0.04


def test_the_loss_goes_through_the_victim_in_evaluation(spec, variables, model, batch):
    trigger, state = create(spec, label_map=AllToAll(4), epsilon=0.5)
    _, info = update(trigger, variables, state, batch)
    noise, _ = Autoencoder(2).apply(
        state.learning, (batch.input - 0.5) / 0.25, train=True, mutable=["batch_stats"]
    )
    logits = np.asarray(
        model.apply(variables, jnp.clip(batch.input + 0.5 * noise, 0, 1))[0], np.float64
    )
    log_probability = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = (np.asarray(batch.label) + 1) % 4
    np.testing.assert_allclose(info.loss, -log_probability[np.arange(16), wanted].mean(), rtol=1e-4)
    np.testing.assert_allclose(info.accuracy, (logits.argmax(1) == wanted).mean())


@pytest.mark.parametrize(
    "shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (30, 47, 3), (4, 4, 3), (2, 2, 1)]
)
def test_the_autoencoder_keeps_any_size_and_is_bounded(shape):
    image = 100 * jax.random.normal(KEY, (2, *shape))
    made = functools.partial(Autoencoder(2).init_with_output, KEY, image, train=False)
    assert jax.eval_shape(made)[0].shape == image.shape
    if shape == (30, 47, 3):  # the others are bounded as well
        assert jnp.abs(quick_jit(made)()[0]).max() <= 1


def test_lira_poisons_half_of_each_batch_by_default():
    attack = attacks.create("lira")
    assert attack.controls_training
    assert (attack.poison_rate, attack.cover_rate) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epsilon": 2.0}, "epsilon must lie between 0 and 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_epochs": -1}, "learning_epochs must be 0 or more"),
        ({"width": 0}, "width must be 1 or more"),
    ],
)
def test_lira_refuses(options, words):
    with pytest.raises(InputError, match=words):
        attacks.create("lira", **options)
