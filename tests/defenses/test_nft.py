"""NFT: steps against their recipe in plain JAX, the box of the masks, what stays frozen, its options and presets."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from quick import quick_jit
from settings import bare

from bdjax import defenses, structure
from bdjax.data import mixing
from bdjax.optim import Schedule
from bdjax.types import Split

KEY = jax.random.key(0)
ETA_C, RATE, MOMENTUM = 0.005, 15.0, 0.9  # so large a rate that masks reach both bounds
MU = 0.8 * np.exp(-0.5)


@pytest.fixture(scope="module")
def model():
    return networks.backwards()


@pytest.fixture(scope="module")
def start(model):
    return networks.random_variables(model)


@pytest.fixture(scope="module")
def batch() -> Split:
    """Twelve rows, the last two of which only fill up."""
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (12, 6, 6, 2), np.uint8), np.arange(12) % 3
    return Split(jnp.asarray(image), jnp.asarray(label), jnp.arange(12) < 10)


@pytest.fixture(scope="module")
def learner():
    return defenses.create(
        "nft", eta_c=ETA_C, learning_rate=RATE, momentum=MOMENTUM, batch_size=12
    ).learner


@pytest.fixture(scope="module")
def begun(learner, model, start, batch):
    return learner.init(KEY, model, start, batch)


@pytest.fixture(scope="module")
def update(learner, model):
    return quick_jit(
        lambda state, batch, number: learner.update(jax.random.key(number), model, state, batch)
    )


@pytest.fixture(scope="module")
def taken(update, begun, batch):
    """The states after each of three steps, and their reports."""
    state, steps = begun, []
    for number in range(3):
        state, info = update(state, batch, number)
        steps.append((state, info))
    return steps


def assert_close(got, expected, **tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), got, expected)


def assert_same(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def masked(params, mask):
    """The second batch norm is called w; the first is not masked."""
    return {**params, "w": {**params["w"], "scale": params["w"]["scale"] * mask}}


# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(model, start):
    """A step of the authors' algorithm on one batch, in plain JAX."""

    @quick_jit
    def step(mask, stats, buffer, batch, number):
        mixed = model.spec.modality.augmented(jax.random.key(number), batch.input, "mixup")
        image, partner, weight = mixed

        def loss_fn(mask):
            variables = {"params": masked(start["params"], mask), "batch_stats": stats}
            logits, changed = model.apply(variables, image, train=True, valid=batch.valid)
            own, other = (
                optax.softmax_cross_entropy_with_integer_labels(logits, label)[:10].mean()
                for label in (batch.label, batch.label[partner])
            )
            return weight * own + (1 - weight) * other, changed

        (loss, changed), grad = jax.value_and_grad(loss_fn, has_aux=True)(mask)
        grad = grad - ETA_C * (mask < 1)
        buffer = MOMENTUM * buffer + grad
        return jnp.clip(mask - RATE * buffer, MU, 1), changed, buffer, loss

    return step


def test_three_steps_follow_the_recipe(taken, recipe, start, batch):
    mask, stats, buffer = jnp.ones(4), start["batch_stats"], jnp.zeros(4)
    seen = []
    for number, (state, info) in enumerate(taken):
        mask, stats, buffer, loss = recipe(mask, stats, buffer, batch, number)
        assert set(state.tuned) == {"w"}
        np.testing.assert_allclose(state.tuned["w"]["scale"], mask, atol=1e-5)
        assert_close(state.batch_stats, stats, atol=1e-5)
        assert float(info.loss) == pytest.approx(float(loss), rel=1e-5)
        assert info.gradient_evaluations == 1
        seen.append(mask)
    seen = np.stack(seen)
    assert (seen == 1).any()
    assert np.isclose(seen, MU).any()
    # The recipe is tested at both bounds and between them
    assert ((seen > MU + 0.01) & (seen < 1)).any()


def test_masks_stay_between_their_bounds_after_every_step(taken, begun, batch, update):
    """Also where a step would have gone far outside."""
    reached = set()
    state = begun
    for number, momentum in enumerate((50.0, -50.0)):  # downhill or uphill at any gradient
        pushed = jax.tree.map(
            lambda x, by=momentum: jnp.full_like(x, by) if x.shape == (4,) else x, state.optimizer
        )
        state, _ = update(state._replace(optimizer=pushed), batch, number)
        reached |= {float(x) for x in state.tuned["w"]["scale"]}
    assert sorted(reached) == pytest.approx([MU, 1], rel=1e-6)
    assert max(reached) == 1
    for state, _ in taken:
        mask = state.tuned["w"]["scale"]
        assert ((mask >= min(reached)) & (mask <= 1)).all()


def test_weights_are_frozen_and_the_masks_are_baked_into_the_scales(
    taken, learner, model, start, batch
):
    """What is exported computes what was trained, and has everything but the masked scales to the bit."""
    state, _ = taken[-1]
    exported = learner.finalize(model, state)
    by_hand = masked(start["params"], state.tuned["w"]["scale"])
    before, after = structure.flat(start["params"]), structure.flat(exported["params"])
    for path in before:
        assert np.array_equal(after[path], before[path]) == (path != ("w", "scale")), path
    assert_same(exported, {"params": by_hand, "batch_stats": state.batch_stats})
    image = batch.input / 255.0
    logits, _ = model.apply(exported, image)
    np.testing.assert_array_equal(logits, model.apply({**exported, "params": by_hand}, image)[0])


def test_masks_of_one_leave_the_network_and_have_no_penalty(learner, model, begun, start):
    assert_same(learner.finalize(model, begun), start)
    zeros = jax.tree.map(jnp.zeros_like, begun.tuned)
    chain = learner.transformation(bare())
    assert_same(chain.update(zeros, chain.init(begun.tuned), begun.tuned)[0], zeros)


def test_mixing_with_weight_one_is_the_cross_entropy(monkeypatch, learner, model, begun, batch):
    """λ = 1, in the step and in the loss that is reported."""
    monkeypatch.setattr(mixing, "symmetric_beta", lambda key, alpha: jnp.float32(1))
    results = [
        quick_jit(lambda state, rule=rule: rule.update(KEY, model, state, batch))(begun)
        for rule in (learner, dataclasses.replace(learner, augment="standard"))
    ]
    (mixed, mixed_info), (plain, plain_info) = results
    assert float(mixed_info.loss) == pytest.approx(float(plain_info.loss), rel=1e-6)
    assert_close(mixed.tuned, plain.tuned, atol=1e-6)
    logits, _ = model.apply(
        learner.finalize(model, begun),
        model.spec.modality.augmented(KEY, batch.input, "standard").input,
        train=True,
        valid=batch.valid,
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.label)[:10].mean()
    assert float(plain_info.loss) == pytest.approx(float(loss), rel=1e-5)


# --- options ---------------------------------------------------------------------------------------------------------


def penalty(learner, rows=10):
    """Return what is added to the gradient of a mask that is above one."""
    chain, mask = learner.transformation(bare(rows)), jnp.array([2.0])
    return chain.update(jnp.zeros(1), chain.init(mask), mask)[0][0]


def test_the_penalty_is_a_thousandth_over_the_images_per_class(begun):
    """Of those that count; and what is given is taken as it is."""
    assert begun.rows == 10
    for rows in (10, 12):
        assert float(penalty(defenses.create("nft").learner, rows)) == pytest.approx(
            1e-3 * 3 / rows
        )
    assert penalty(defenses.create("nft", eta_c=0.0).learner) == 0


def test_a_traced_weight_is_swept_without_compiling_anew():
    traces = []

    @quick_jit
    def weight(learner):
        traces.append(learner)
        return penalty(learner)

    assert [float(weight(defenses.create("nft", eta_c=eta).learner)) for eta in (0.5, 0.25)] == [
        0.5,
        0.25,
    ]
    assert len(traces) == 1


def test_presets_are_the_published_values():
    common = {
        "alpha": 0.8,
        "beta": 0.5,
        "eta_c": None,
        "batch_size": 128,
        "learning_rate": 0.05,
        "augment": "mixup",
    }
    assert (
        defenses.create("nft").learner
        == defenses.create(
            "nft", **common, epochs=100, momentum=0.9, schedule=Schedule("constant")
        ).learner
    )
    reference = defenses.create("nft", preset="reference_code").learner
    schedule = Schedule("step", period=50.0, factor=0.822)
    assert (
        reference
        == defenses.create("nft", **common, epochs=250, momentum=0.95, schedule=schedule).learner
    )
    rates = [0.05 * float(schedule.scale(jnp.int32(50 * number), 1)) for number in range(5)]
    # Of a cosine, in between
    assert rates == pytest.approx([0.05, 0.047135, 0.039635, 0.030365, 0.022865], rel=0.15)
    assert rates[-1] == pytest.approx(0.022865, rel=0.01)
    assert defenses.create("nft").learner.sgd.weight_decay == 0
    assert defenses.create("nft").learner.drop_last is False
