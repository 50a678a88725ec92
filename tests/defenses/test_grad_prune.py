"""Grad-Prune: ranking, rounds and fine-tuning against the same in plain Python; the planted neuron."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
from planted import Corner, Net

from bdjax import attacks, defenses, poison, structure
from bdjax.checks import InputError
from bdjax.defenses import _filters as filters
from bdjax.defenses._filters import without_largest
from bdjax.defenses._triggered import Images
from bdjax.defenses.grad_prune import grad_prune
from bdjax.models._layers import LinenModel
from bdjax.optim.sgd import Schedule
from bdjax.parametrizations import PrunedFilters
from bdjax.runs import config as configs
from bdjax.runs import plans, schema
from bdjax.train import loop
from bdjax.types import Spec, Split

KEY = jax.random.key(0)
MODEL = LinenModel(Net((3, 4), norm=True), planted.SPEC)
DROP_ALL = 1.1  # an accuracy that can fall


@pytest.fixture(scope="module")
def variables():
    """Weights that are large enough for the loss to move; statistics and biases are not those of a fresh network."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: MODEL.init(KEY))
    made = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.7, x.shape), x.dtype), shapes)
    return {**made, "batch_stats": jax.tree.map(lambda x: jnp.abs(x) + 0.5, made["batch_stats"])}


@pytest.fixture(scope="module")
def rest() -> Images:
    return planted.images(18)


@pytest.fixture(scope="module")
def aside() -> Images:
    return planted.images(9, seed=3)


@functools.cache
def learner(**options: Any):
    return grad_prune(batch_size=5, **options)


@functools.partial(jax.jit, static_argnums=1)
def saliency(learner, model, variables, images):
    return structure.flat(filters.saliency(model, variables, images, learner.tuning.batch_size))


@jax.jit
def by_hand(params, batch_stats, image, label):
    """The summed loss of the images and its gradient, all at once; the logits."""

    def loss_fn(params):
        logits, _ = MODEL.apply({"params": params, "batch_stats": batch_stats}, image / 255.0)
        return -jax.nn.log_softmax(logits)[jnp.arange(label.size), label].sum(), logits

    (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return loss, logits.argmax(-1), grads


def told(variables, images: Images):
    """Return accuracy, clean loss and unlearning loss."""
    clean, guess, _ = by_hand(
        variables["params"], variables["batch_stats"], images.clean, images.label
    )
    triggered, _, _ = by_hand(
        variables["params"], variables["batch_stats"], images.triggered, images.label
    )
    rows = images.label.size
    return np.mean(guess == images.label), float(clean) / rows, float(triggered) / rows


def ranked(variables, images: Images) -> dict[tuple[str, int], float]:
    """Return ξ of every filter that is not zero, one filter after another."""
    *_, grads = by_hand(
        variables["params"], variables["batch_stats"], images.triggered, images.label
    )
    found = {}
    for name in ("conv1", "conv2"):
        kernel, grad = (
            np.asarray(variables["params"][name]["kernel"]),
            np.asarray(grads[name]["kernel"]),
        )
        for i in range(kernel.shape[-1]):
            if np.any(kernel[..., i]):
                found[name, i] = np.abs(grad[..., i]).sum() / grad[..., i].size
    return found


def without(variables, name: str, i: int):
    """Return the network with one filter and its bias at zero."""
    layer = {key: leaf.at[..., i].set(0) for key, leaf in variables["params"][name].items()}
    return {**variables, "params": {**variables["params"], name: layer}}


def rounds_by_hand(variables, rest, aside, accuracy_drop=0.1, prune_patience=10, rounds=None):
    """Return the best network, the pruned filters of it, and the number of rounds; the algorithm of the paper."""
    before, _, least = told(variables, aside)
    best, chosen, current, order, patience = variables, [], variables, [], 0
    visited = [(least, True)]
    while ranked(current, rest) and patience < prune_patience and len(order) != rounds:
        xi = ranked(current, rest)
        order.append(max(xi, key=xi.get))  # pyright: ignore
        current = without(current, *order[-1])
        accuracy, _, loss = told(current, aside)
        fallen = before - accuracy >= accuracy_drop - 1e-6
        visited.append((loss, not fallen))
        patience += 1
        if not fallen and loss < least:
            best, chosen, least, patience = current, list(order), loss, 0
        if fallen:
            break
    assert least == min(loss for loss, eligible in visited if eligible)
    return best, chosen, len(order)


@functools.partial(jax.jit, static_argnums=1)
def prune(learner, model, variables, rest, aside):
    return learner.prune(model, variables, rest, aside)


def same(first, second) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, first, second)))


# --- ranking ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Slope:
    """Two filters of two inputs each whose gradient, for label 0, is given."""

    slopes: tuple[tuple[float, float], tuple[float, float]]
    spec: Spec = planted.SPEC

    def init(self, key):
        return {"params": {"conv": {"kernel": jnp.zeros((1, 1, 2, 2))}}, "batch_stats": {}}

    def apply(self, variables, image, *, train=False, valid=None):
        slopes = jnp.asarray(self.slopes).T
        wrong = 100 + jnp.sum(variables["params"]["conv"]["kernel"][0, 0] * slopes)
        return jnp.stack(
            [jnp.zeros(image.shape[0]), jnp.broadcast_to(wrong, image.shape[:1])], axis=1
        ), {}

    def features(self, variables, image):
        return image.reshape(image.shape[0], -1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("rows", [1, 7])
def test_known_saliency(sign, rows):
    """O14; ξ does not change with the signs, and scales with the loss, here a sum over the images."""
    model = Slope(((sign * 1.0, sign * -3.0), (0.5, 0.5)))
    image = jnp.zeros((rows, *planted.SPEC.shape))
    xi = saliency(
        learner(), model, model.init(KEY), Images(image, image, jnp.zeros(rows, jnp.int32))
    )
    np.testing.assert_allclose(xi["conv", "kernel"], [2 * rows, 0.5 * rows], rtol=1e-6)


def test_saliency_is_the_mean_absolute_gradient_of_each_filter_in_chunks_or_not(variables, rest):
    expected = ranked(variables, rest)
    for chunk in (5, 18):
        pruner = dataclasses.replace(
            learner(), tuning=dataclasses.replace(learner().tuning, batch_size=chunk)
        )
        xi = saliency(pruner, MODEL, variables, rest)
        got = {
            (name, i): float(x) for (name, _), values in xi.items() for i, x in enumerate(values)
        }
        got = {unit: got[unit] for unit in expected}  # ξ is there for the dense layer too
        assert got == pytest.approx(expected, rel=1e-4)


# --- pruning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy_drop", [DROP_ALL, 0.1, 0.3, 0.0])
def test_rounds_are_those_of_the_algorithm_in_plain_python(variables, rest, aside, accuracy_drop):
    """Behavioral test 6. Nothing but the filters and their own biases changes (B9), no statistic (B11)."""
    pruner = dataclasses.replace(learner(prune_patience=3), accuracy_drop=accuracy_drop)
    got, spent = prune(pruner, MODEL, variables, rest, aside)
    expected, chosen, rounds = rounds_by_hand(
        variables, rest, aside, accuracy_drop, prune_patience=3
    )
    assert same(got, expected)
    zero = sum(
        int((leaf == 0).all((0, 1, 2)).sum())
        for leaf in structure.convolutions(got["params"]).values()
    )
    assert zero == len(chosen) == len(set(chosen))
    assert spent == rounds * 4  # 18 images by fives
    before, _, loss_before = told(variables, aside)
    after, _, loss_after = told(got, aside)
    assert loss_after <= loss_before
    assert not chosen or before - after < accuracy_drop


def test_rounds_end_after_the_most_that_are_allowed(variables, rest, aside):
    got, spent = prune(
        dataclasses.replace(learner(rounds=1), accuracy_drop=DROP_ALL),
        MODEL,
        variables,
        rest,
        aside,
    )
    expected, _, rounds = rounds_by_hand(variables, rest, aside, DROP_ALL, rounds=1)
    assert same(got, expected)
    assert (rounds, spent) == (1, 4)


def test_filters_that_were_zero_before_are_not_ranked(variables, rest, aside):
    """Also those of an earlier defense; the gradient of a zero filter need not be zero."""
    start = planted.variables()
    layer = start["params"]["conv1"]
    layer |= {"kernel": layer["kernel"].at[..., 0].set(0), "bias": layer["bias"].at[0].set(0.001)}
    xi = filters.saliency(planted.MODEL, start, planted.images(), chunk=5)
    assert xi["conv1"]["kernel"].argmax() == 0
    kept, _ = PrunedFilters().init(planted.MODEL, start)
    second = int(xi["conv1"]["kernel"][1:].argmax()) + 1
    expected = np.where(np.arange(4) == second, 0, 1)
    assert np.array_equal(without_largest(kept, xi, start["params"])["conv1"]["kernel"], expected)


# --- fine-tuning -----------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=1)
def tune(learner, model, variables, rest, aside):
    return learner.tune(KEY, model, variables, rest, aside)


@functools.partial(jax.jit, static_argnums=2)
def epoch(key, learner, model, state, split):
    state, _ = loop.epoch(key, learner, model, state, split)
    return state, learner.finalize(model, state)


@pytest.mark.parametrize("rate", [1e-3, 0.3, 30.0])
def test_tuning_keeps_the_best_epoch_and_stops_by_patience(variables, rest, aside, rate):
    tuner = learner(epochs=7, tune_patience=2)
    sgd = dataclasses.replace(tuner.tuning.sgd, learning_rate=rate)
    tuner = dataclasses.replace(tuner, tuning=dataclasses.replace(tuner.tuning, sgd=sgd))
    got, spent = tune(tuner, MODEL, variables, rest, aside)
    both = jax.tree.map(lambda x: jnp.concatenate([x, x]), rest.label)
    split = Split(jnp.concatenate(rest[:2]), both, jnp.ones(36, bool))
    inner = dataclasses.replace(tuner.tuning, batch_size=10)
    state, best, patience, epochs = inner.init(KEY, MODEL, variables, split), variables, 0, 0
    losses = [sum(told(variables, aside)[1:])]
    while epochs < 7 and patience < 2:
        state, tuned = epoch(jax.random.fold_in(KEY, epochs), inner, MODEL, state, split)
        loss = sum(told(tuned, aside)[1:])
        patience = 0 if loss < min(losses) else patience + 1
        best = tuned if patience == 0 else best
        losses.append(loss)
        epochs += 1
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), got, best)
    assert spent == 4 * epochs
    assert {1e-3: losses[-1] == min(losses), 0.3: True, 30.0: same(got, variables)}[rate]


def test_a_step_is_that_of_the_sum_of_both_mean_losses():
    """The mean over 2B images at rate 2η and decay λ/2, with momentum; without batch norm there is no difference."""
    rate, momentum, decay, rows = 0.05, 0.9, 0.01, 6
    model, start = planted.MODEL, planted.variables()
    start["params"]["linear"]["kernel"] = start["params"]["linear"]["kernel"] / 50
    images = planted.images(rows)
    inner = grad_prune(
        learning_rate=rate, momentum=momentum, weight_decay=decay, batch_size=rows
    ).tuning
    batch = Split(jnp.concatenate(images[:2]), jnp.tile(images.label, 2), jnp.ones(2 * rows, bool))

    @jax.jit
    def steps(state):
        for _ in range(2):
            state, _ = inner.update(KEY, model, state, batch)
        return state.tuned

    @jax.jit
    @jax.grad
    def gradient(params):
        losses = [
            -jax.nn.log_softmax(model.apply({**start, "params": params}, image / 255.0)[0])[
                jnp.arange(rows), images.label
            ].mean()
            for image in images[:2]
        ]
        return sum(losses)

    params, buffer = start["params"], jax.tree.map(jnp.zeros_like, start["params"])
    for _ in range(2):
        buffer = jax.tree.map(
            lambda b, g, w: momentum * b + g + decay * w, buffer, gradient(params), params
        )
        params = jax.tree.map(lambda w, b: w - rate * b, params, buffer)
    got = steps(inner.init(KEY, model, start, batch))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), got, params)


# --- behavioral test 7: the planted neuron ---------------------------------------------------------------------------


def test_the_planted_neuron_is_found_and_the_backdoor_is_gone():
    """Pruning it drops the attack's success to none and costs no accuracy; the tuning then may add what it likes."""
    start = planted.variables()
    assert planted.rates(start) == (1.0, 1.0)
    xi = saliency(learner(), planted.MODEL, start, planted.images())["conv1", "kernel"]
    assert xi.argmax() == 0
    defense = grad_prune(epochs=0, batch_size=16)
    result = defenses.purify(
        KEY, defense, planted.MODEL, start, planted.holdout(), trigger=Corner()
    )
    assert same(result.variables, without(start, "conv1", 0))
    assert planted.rates(result.variables) == (1.0, 0.0)
    assert result.history[0].accuracy == 1.0
    # 27 images by 16s, and a second round that costs a color
    assert result.gradient_evaluations == 2 * 2


# --- the trigger -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", poison.ROUNDINGS)
def test_a_run_hands_over_the_attacks_test_trigger_with_its_rounding(monkeypatch, rounding):
    """To a nested stage too, and to no other."""
    words = (
        "--defense",
        "chain",
        "--defense.first",
        "ft",
        "--defense.second",
        "grad_prune",
        "--poison",
        rounding,
    )
    config = configs.resolve(schema.overrides(words))
    attack = configs.build_attack(config)
    plan = plans.prepare(config)
    first, second = plan.defense_stages
    assert plans.given(plan, (first.sees,)).trigger is None
    learner, split = defenses.handed(second, plans.given(plan, (second.sees,)))
    stamp = poison.trigger_source(attack, plan.trigger_state, rounding=rounding)
    image = jnp.asarray(plan.holdout.input[:3])
    assert np.array_equal(learner.trigger(KEY, image), stamp(KEY, image))
    assert learner.trigger.rounding == rounding
    assert same(split, plan.holdout)
    other = attacks.create("badnets", size=2).trigger
    monkeypatch.setattr(
        configs, "build_attack", lambda *_, **__: dataclasses.replace(attack, test_trigger=other)
    )
    plan = plans.prepare(config)
    assert plans.given(plan, plan.defense.sees).trigger.trigger == other  # pyright: ignore


def test_there_is_no_option_for_the_trigger():
    with pytest.raises(InputError, match=r"^unknown key 'defense\.trigger'"):
        configs.resolve({"defense": {"name": "grad_prune", "trigger": "true"}})


def test_the_defaults_are_the_published_values():
    defense = grad_prune()
    assert (
        defense.accuracy_drop,
        defense.prune_patience,
        defense.tune_patience,
        defense.aside,
    ) == (0.1, 10, 10, 0.1)
    assert (defense.tuning.batch_size, defense.tuning.augment, defense.tuning.sgd.schedule) == (
        128,
        "none",
        Schedule(),
    )
    sgd = defense.tuning.sgd
    assert (sgd.learning_rate / 2, sgd.momentum, sgd.weight_decay * 2) == (0.001, 0.9, 5e-4)


def test_the_trigger_may_be_a_plain_function():
    def white(key, image):
        del key
        return jnp.full_like(image, 255)

    stage = defenses.create("grad_prune", batch_size=5).stages[0]
    learner, _ = defenses.handed(stage, defenses.Given(planted.holdout(), trigger=white))
    stamped = jax.jit(lambda learner, image: learner.trigger(KEY, image))(
        learner, jnp.zeros((2, 1, 1, 1), jnp.uint8)
    )
    assert (stamped == 255).all()
