"""RNP: unlearning and recovery by hand in NumPy, where the first ends and what is said of it, what is pruned."""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from quick import quick_jit

from bdjax import attacks, data, defenses, evaluate, models, poison
from bdjax.data.modalities.images import image_spec
from bdjax.defenses._mask_pruning import MaskPruning
from bdjax.models._layers import BatchNorm, Dense, LinenModel
from bdjax.train import loop
from bdjax.train.supervised import supervised
from bdjax.types import Split

KEY = jax.random.key(0)
SPEC = image_spec("flat", (1, 1, 3), 3, (0.0,) * 3, (1.0,) * 3)
ROWS = 9
OPTIONS = {
    "augment": "none",
    "momentum": 0.9,
    "weight_decay": 0.1,
    "unlearning_rate": 0.3,
    "unlearning_epochs": 14,  # beyond the first drop of the rate
    "epochs": 4,
    "learning_rate": 6.0,  # so large that masks reach both bounds
    "alpha": 0.2,
    "threshold": 0.5,
}


class Normed(nn.Module):
    """A layer norm on the three channels of one pixel, then the classifier: its gradients can be written down."""

    @nn.compact
    def __call__(self, x, *, train: bool, valid=None):
        del train, valid
        return Dense(3, name="head")(nn.LayerNorm(epsilon=1e-3, name="norm")(x[:, 0, 0]))


MODEL = LinenModel(Normed(), SPEC)


@functools.cache
def given():
    """Return variables that are right on more images than not, and the images."""
    rng = np.random.default_rng(1)
    variables = networks.random_variables(MODEL)
    image = jnp.asarray(rng.integers(0, 256, (ROWS, 1, 1, 3), np.uint8))
    label = MODEL.apply(variables, image / 255.0)[0].argmax(-1)
    return variables, Split(image, label.at[0].add(1) % 3, jnp.ones(ROWS, bool))


@functools.cache
def update():
    """Return RNP's only step as a function of its floats, compiled once."""
    return quick_jit(lambda learner, state, split: learner.update(KEY, MODEL, state, split))


def run(**options):
    """Return the learner, its state after its only step, and what that reported."""
    variables, split = given()
    learner = defenses.create("rnp", **{**OPTIONS, **options}).learner
    begun = learner.init(KEY, MODEL, variables, split)
    return learner, *update()(learner, begun, split)


def masks_of(state) -> np.ndarray:
    return np.asarray(state.pruning.tuning.tuned["norm"]["scale"])


# --- by hand ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class ByHand:
    """The network in float64, with SGD's momentum."""

    params: dict[str, np.ndarray]
    z: np.ndarray
    label: np.ndarray

    def gradients(self, mask):
        """Return those of the mean cross-entropy by parameters and mask, and the accuracy."""
        p = self.params
        hidden = self.z * mask * p["scale"] + p["shift"]
        logits = hidden @ p["kernel"] + p["bias"]
        odds = np.exp(logits - logits.max(1, keepdims=True))
        back = (odds / odds.sum(1, keepdims=True) - np.eye(3)[self.label]) / ROWS
        down = back @ p["kernel"].T
        found = {
            "scale": (down * self.z * mask).sum(0),
            "shift": down.sum(0),
            "kernel": hidden.T @ back,
            "bias": back.sum(0),
        }
        return (
            found,
            (down * self.z * p["scale"]).sum(0),
            (logits.argmax(1) == self.label).mean(),
        )

    def unlearn(self, stop: float, epochs: int):
        """Climb until an epoch's accuracy is low enough; return that of each epoch."""
        buffers, seen = dict.fromkeys(self.params, 0.0), []
        for epoch in range(epochs):
            grads, _, accuracy = self.gradients(np.ones(3))
            rate = OPTIONS["unlearning_rate"] * 0.1 ** (epoch // 10)
            for name, value in self.params.items():
                step = OPTIONS["weight_decay"] * value - grads[name]
                buffers[name] = OPTIONS["momentum"] * buffers[name] + step
                self.params[name] = value - rate * buffers[name]
            seen.append(accuracy)
            if accuracy <= stop:
                break
        return seen

    def recover(self, epochs: int):
        """Return the masks after each epoch."""
        mask, buffer, seen = np.ones(3), 0.0, []
        for _ in range(epochs):
            _, grad, _ = self.gradients(mask)
            buffer = OPTIONS["momentum"] * buffer + OPTIONS["alpha"] * grad
            mask = np.clip(mask - OPTIONS["learning_rate"] * buffer, 0, 1)
            seen.append(mask)
        return seen


def by_hand() -> ByHand:
    variables, split = given()
    norm, head = (variables["params"][name] for name in ("norm", "head"))
    params = {
        "scale": norm["scale"],
        "shift": norm["bias"],
        "kernel": head["kernel"],
        "bias": head["bias"],
    }
    x = np.asarray(split.input[:, 0, 0], np.float64) / 255
    centered = x - x.mean(1, keepdims=True)
    z = centered / np.sqrt((centered**2).mean(1, keepdims=True) + 1e-3)
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    return ByHand(params, z, np.asarray(split.label))


@pytest.mark.parametrize("stop", [0.9, 0.5, 0.0])
def test_it_unlearns_until_it_may_stop_and_then_recovers_what_is_left(stop):
    """Masks at a bound and between them, gradient evaluations and accuracy."""
    expected = by_hand()
    accuracies = expected.unlearn(stop, OPTIONS["unlearning_epochs"])
    masks = expected.recover(OPTIONS["epochs"])[-1]
    _, state, info = run(unlearned_accuracy=stop)
    np.testing.assert_allclose(masks_of(state), masks, atol=2e-4)
    assert state.accuracy == pytest.approx(accuracies[-1])
    assert info.gradient_evaluations == len(accuracies) + OPTIONS["epochs"]


def test_the_three_endings_differ():
    """It is at once, in between, and at the cap."""
    counts = [
        len(by_hand().unlearn(stop, OPTIONS["unlearning_epochs"])) for stop in (0.9, 0.5, 0.0)
    ]
    assert counts[0] == 1 < counts[1] < counts[2]


# --- what is pruned, and what is said --------------------------------------------------------------------------------


def test_only_scales_of_low_masks_become_zero_in_the_network_as_it_was():
    """Not a bit of the unlearned network comes back."""
    variables, _ = given()
    learner, state, _ = run()
    low = masks_of(state) <= OPTIONS["threshold"]
    assert 0 < low.sum() < 3
    got = learner.finalize(MODEL, state)
    norm = {**variables["params"]["norm"]}
    norm["scale"] = np.where(low, 0, norm["scale"])
    expected = {**variables, "params": {**variables["params"], "norm": norm}}
    jax.tree.map(np.testing.assert_array_equal, got, expected)


class Batched(nn.Module):
    @nn.compact
    def __call__(self, x, *, train: bool, valid=None):
        x = BatchNorm(name="norm")(x, train=train, valid=valid)
        return Dense(3, name="head")(x[:, 0, 0])


def test_batch_statistics_are_those_of_the_network_as_it_was():
    """Behavioral test 8. Both parts are in training mode, and move them."""
    model = LinenModel(Batched(), SPEC)
    start, (_, split) = networks.random_variables(model), given()
    learner = defenses.create("rnp", **OPTIONS).learner

    @quick_jit
    def both(state):
        state, _ = learner.update(KEY, model, state, split)
        unlearned, *_ = learner.unlearn(KEY, model, start, split)
        return state, unlearned

    state, unlearned = both(learner.init(KEY, model, start, split))
    got = learner.finalize(model, state)
    jax.tree.map(np.testing.assert_array_equal, got["batch_stats"], start["batch_stats"])
    assert not np.array_equal(
        unlearned["batch_stats"]["norm"]["mean"], start["batch_stats"]["norm"]["mean"]
    )
    np.testing.assert_array_equal(got["params"]["norm"]["bias"], start["params"]["norm"]["bias"])


@pytest.mark.parametrize(("stop", "says"), [(0.0, True), (0.9, False)])
def test_it_says_so_where_the_accuracy_never_fell(stop, says, caplog):
    learner, state, _ = run(unlearned_accuracy=stop, unlearning_rate=1e-6)
    with caplog.at_level(logging.WARNING):
        jax.eval_shape(functools.partial(learner.finalize, MODEL), state)
        assert not caplog.messages  # inside a program there is no number to tell
        learner.finalize(MODEL, state)
    words = (
        "after unlearning_epochs = 14 the accuracy on the holdout was still 0.889, above "
        "unlearned_accuracy = 0,"
    )
    assert [words in message for message in caplog.messages] == [True] * says


def test_nothing_is_said_before_its_only_step(caplog):
    learner = defenses.create("rnp", **OPTIONS).learner
    learner.finalize(MODEL, learner.init(KEY, MODEL, *given()))
    assert not caplog.messages


def test_presets_are_the_published_values():
    common: dict[str, Any] = {
        "alpha": 0.2,
        "unlearned_accuracy": 0.2,
        "unlearning_rate": 0.01,
        "momentum": 0.9,
    }
    common |= {"epochs": 20, "learning_rate": 0.2, "weight_decay": 5e-4, "share": None}
    paper = defenses.create("rnp").learner
    assert paper == defenses.create("rnp", **common, batch_size=128, threshold=0.3).learner
    assert paper.unlearning.epochs == 20
    assert isinstance(paper.pruning, MaskPruning)
    assert paper.pruning.masks.sgd.weight_decay == 0
    rates = [paper.unlearning.sgd.schedule.scale(jnp.int32(epoch), 1) for epoch in (9, 10, 20)]
    np.testing.assert_allclose(rates, [1, 0.1, 0.01], rtol=1e-6)
    reference: dict[str, Any] = {
        "unlearning_epochs": 21,
        "batch_size": 256,
        "threshold": 0.7,
        "decimals": 4,
    }
    got = defenses.create("rnp", preset="reference_code")
    assert got == defenses.create("rnp", **common, **reference)


@pytest.mark.slow  # it trains a victim: half a minute
def test_a_backdoor_on_digits_goes_where_the_unlearning_gets_there():
    """At three times the default rate, as there are two steps an epoch; accuracy falls, by about a tenth."""
    key, digits = jax.random.key(0), data.load("digits")
    attack = attacks.create("badnets", target_label=0, poison_rate=0.1)
    state = attack.trigger.init(key, digits.spec)
    train = poison.poison_train(key, attack, state, digits.train).visible
    test = poison.poison_test(key, attack, state, digits.test)
    model = models.create("small_cnn", digits.spec, width=32)
    learner = supervised(epochs=30, learning_rate=0.05, augment="none")
    victim = loop.run(key, learner, model, model.init(key), train).variables
    rows = np.random.default_rng(0).permutation(len(digits.train.label))[:150]
    holdout = jax.tree.map(lambda x: x[rows], digits.train)
    defense = defenses.create("rnp", augment="none", unlearning_rate=0.03)
    purified = defenses.run(key, defense, model, victim, holdout)
    before, after = (evaluate.evaluate(model, v, digits.test, test) for v in (victim, purified))
    assert before.attack_success_rate > 0.95
    assert after.attack_success_rate < 0.1
    assert after.clean_accuracy > before.clean_accuracy - 0.2
