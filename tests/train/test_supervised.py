"""The loss, the steps of an epoch, and one step of supervised learning."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bdjax import pytree
from bdjax.checks import InputError
from bdjax.data import augment
from bdjax.optim import Schedule
from bdjax.tasks.single_label import SingleLabel
from bdjax.train import loop
from bdjax.train.supervised import TrainState, accuracy, mean_loss, supervised
from bdjax.types import Spec, Split

# --- loss ------------------------------------------------------------------------------------------------------------

TASK = SingleLabel(5)
smoothed = jax.jit(TASK.loss)


def logits_and_labels(rows: int, classes: int):
    return np.random.default_rng(0).normal(size=(rows, classes)).astype(np.float32), np.arange(
        rows
    ) % classes


def uniform_smoothing(logits, label, share):
    """The cross-entropy as PyTorch and optax smooth it."""
    log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    target = (1 - share) * np.eye(logits.shape[-1])[label] + share / logits.shape[-1]
    return -(target * log_probability).sum(-1)


@pytest.mark.parametrize(
    ("classes", "entropy"), [(10, 0.54480543), (43, 0.69884994), (200, 0.85441346)]
)
def test_smoothing_is_uniform_smoothing_less_the_entropy(classes, entropy):
    """O4."""
    logits, label = logits_and_labels(5, classes)
    expected = uniform_smoothing(logits, label, 0.1 * classes / (classes - 1)) - entropy
    np.testing.assert_allclose(smoothed(logits, label, 0.1), expected, rtol=1e-5)


def test_uniform_logits():
    """O4."""
    loss = smoothed(np.zeros((5, 10), np.float32), np.arange(5), 0.1)
    np.testing.assert_allclose(loss, [1.75777966] * 5, rtol=1e-6)


def test_without_smoothing_it_is_the_plain_cross_entropy_with_its_gradient():
    logits, label = logits_and_labels(5, 10)
    np.testing.assert_allclose(
        smoothed(logits, label, 0.0), uniform_smoothing(logits, label, 0.0), rtol=1e-5
    )
    gradient = jax.jit(jax.grad(lambda *args: TASK.loss(*args).sum()))(logits, label, 0.0)
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient, probability - np.eye(10)[label], atol=1e-6)


def test_smoothing_can_be_swept():
    logits, label = logits_and_labels(5, 10)
    shares = np.array([0.0, 0.1, 0.5], np.float32)
    swept = jax.jit(jax.vmap(TASK.loss, (None, None, 0)))(logits, label, shares)
    np.testing.assert_allclose(
        swept, [smoothed(logits, label, share) for share in shares], rtol=1e-5
    )


def test_only_valid_rows_count():
    logits, label = map(jnp.asarray, logits_and_labels(6, 4))
    image, even = jnp.zeros((6, 1, 1, 1)), np.arange(6) % 2 == 0
    for mean in (jax.jit(partial(mean_loss, TASK)), jax.jit(partial(accuracy, TASK))):
        expected = mean(logits[even], Split(image[even], label[even], jnp.ones(3, bool)))
        assert mean(logits, Split(image, label, jnp.asarray(even))) == pytest.approx(
            float(expected), rel=1e-6
        )
        assert mean(logits, Split(image, label, jnp.zeros(6, bool))) == 0  # and not 0 / 0


def test_accuracy_by_hand():
    batch = Split(jnp.zeros((4, 1, 1, 1)), jnp.array([0, 1, 1, 0]), jnp.ones(4, bool))
    logits = jnp.asarray(np.eye(2, dtype=np.float32)[[0, 1, 0, 1]])
    assert (
        accuracy(TASK, logits, batch) == accuracy(TASK, logits, batch._replace(valid=None)) == 0.5
    )  # pyright: ignore


# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "steps"), [(2500, 10), (5000, 20), (500, 2), (1935, 8), (1960, 8), (256, 1)]
)
def test_steps_of_an_epoch_with_batches_of_256(model, variables, rows, steps):
    """O23."""
    split = Split(
        np.zeros((rows, 1, 1, 1), np.uint8), np.zeros(rows, np.int32), np.ones(rows, bool)
    )
    for drop_last, expected in ((False, steps), (True, rows // 256)):
        learner = supervised(batch_size=256, drop_last=drop_last)
        assert learner.init(jax.random.key(0), model, variables, split).steps_per_epoch == expected


@pytest.mark.parametrize("per", ["epoch", "step"])
def test_a_cosine_without_a_period_lasts_as_long_as_the_run(model, per):
    learner = supervised(
        epochs=4,
        learning_rate=1.0,
        momentum=0.0,
        weight_decay=0.0,
        schedule=Schedule(kind="cosine", per=per),
    )
    state = TrainState(*[None] * 8)._replace(
        rows=jnp.int32(3), steps_per_epoch=jnp.int32(3), frozen=()
    )  # pyright: ignore
    tx = learner._chain(model, state)
    taken, state = [], tx.init(jnp.float32(0))
    for _ in range(13):
        update, state = tx.update(jnp.float32(1), state, jnp.float32(0))
        taken.append(-float(update))
    assert taken[::3] == pytest.approx([1, 0.85355339, 0.5, 0.14644661, 0], abs=1e-6)
    assert (taken[1] == taken[0]) == (per == "epoch")


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear classifier that keeps count of its training passes where others keep batch statistics."""

    spec: Spec

    def init(self, key):
        weight = jax.random.normal(key, (int(np.prod(self.spec.shape)), self.spec.num_classes))
        return {"params": {"w": weight}, "batch_stats": {"passes": jnp.zeros(())}}

    def apply(self, variables, image, *, train=False, valid=None):
        del valid
        logits = image.reshape(image.shape[0], -1) @ variables["params"]["w"]
        return logits, {"passes": variables["batch_stats"]["passes"] + train}

    def features(self, variables, image):
        return image.reshape(image.shape[0], -1)


class Keyed(Linear):
    """The same, which keeps a number that it draws in training."""

    def apply(self, variables, image, *, train=False, valid=None, key=None):
        logits, statistics = super().apply(variables, image, train=train, valid=valid)
        return logits, statistics if key is None else {"passes": jax.random.uniform(key)}


def test_a_network_that_takes_a_key_is_given_one_of_its_own(spec, split):
    model, key = Keyed(spec), jax.random.key(3)
    variables = model.init(jax.random.key(0))
    learner = supervised(batch_size=4, augment="none")
    batch = Split(jnp.asarray(split.input[:4]), jnp.asarray(split.label[:4]), None)
    state = learner.init(key, model, variables, split)
    state, _ = learner.update(key, model, state, batch)
    drawn = jax.random.uniform(jax.random.fold_in(key, augment.DROPOUT))
    assert state.batch_stats["passes"] == drawn


class Counted(NamedTuple):
    gradient_evaluations: Any


@pytree.dataclass
class TwiceMinusOnce:
    """Hands on how far a second gradient at the same parameters is from the first."""

    def __call__(self, setting, /):
        def update(grads, state, tuned, *, grad_fn, **extra):
            difference = jax.tree.map(lambda a, b: 1e4 * (a - b), grad_fn(tuned), grads)
            return difference, Counted(state.gradient_evaluations + 1)

        second = optax.GradientTransformationExtraArgs(lambda tuned: Counted(jnp.int32(0)), update)
        return optax.chain(second, setting.sgd)


def test_a_second_gradient_sees_the_same_batch_and_augmentation_and_leaves_no_statistics(
    spec, split
):
    model = Linear(spec)
    variables = model.init(jax.random.key(0))
    learner = supervised(
        1, 16, weight_decay=0.0, schedule=Schedule(), transformation=TwiceMinusOnce()
    )
    result = loop.run(jax.random.key(0), learner, model, variables, split)
    np.testing.assert_allclose(result.variables["params"]["w"], variables["params"]["w"], atol=1e-3)
    assert result.variables["batch_stats"]["passes"] == 3
    assert result.gradient_evaluations == 6


# --- factory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": -1}, "^epochs must be 0 or more, got -1"),
        ({"batch_size": 0}, "^batch_size must be 1 or more, got 0"),
        ({"learning_rate": 0.0}, "^learning_rate must be above 0, got 0.0"),
        ({"learning_rate": math.inf}, "^learning_rate must be finite, got inf"),
        ({"momentum": 1.0}, "^momentum must be at least 0 and below 1, got 1.0"),
        ({"weight_decay": -0.1}, "^weight_decay must be 0 or more, got -0.1"),
        ({"label_smoothing": 1.5}, "^label_smoothing must lie between 0 and 1, got 1.5"),
        ({"augment": "standart"}, "^augment must be one of .*did you mean 'standard'"),
        ({"schedule": Schedule(kind="step")}, "^schedule.period must say"),
    ],
    ids=str,
)
def test_supervised_names_the_argument_that_it_refuses(options, words):
    with pytest.raises(InputError, match=words):
        supervised(**options)


def test_every_float_is_a_leaf():
    learner = supervised(
        label_smoothing=0.25, schedule=Schedule(kind="step", period=7.0, factor=0.5)
    )
    assert sorted(jax.tree.leaves(learner)) == sorted([0.01, 0.9, 5e-4, 0.25, 7.0, 0.5])
    assert jax.tree.structure(learner) == jax.tree.structure(
        dataclasses.replace(learner, label_smoothing=0.0)
    )
