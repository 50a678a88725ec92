"""SFT and fast SFT: steps against their recipe in plain JAX, what they touch, what they cost, their presets."""

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
from bdjax.data.augment import RULE
from bdjax.optim import Schedule
from bdjax.optim.anchor import AnchorState
from bdjax.train import loop
from bdjax.types import Split

KEY = jax.random.key(0)
ETA_F, ETA_R, RATE, MOMENTUM = 0.05, 5.0, 0.1, 0.9
OPTIONS = {"learning_rate": RATE, "momentum": MOMENTUM, "schedule": Schedule(), "batch_size": 8}
PENALIZED = {**OPTIONS, "eta_f": ETA_F, "eta_r": ETA_R, "every": 2, "chunk": 3}


@pytest.fixture(scope="module")
def model():
    return networks.backwards()


@pytest.fixture(scope="module")
def start(model):
    return networks.random_variables(model)


@pytest.fixture(scope="module")
def holdout() -> Split:
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.integers(0, 256, (10, 6, 6, 2), np.uint8))
    return Split(image, jnp.arange(10) % 3, jnp.ones(10, bool))


@pytest.fixture(scope="module")
def batch(holdout) -> Split:
    """Eight rows, the last of which only fills up."""
    return Split(holdout.input[:8], holdout.label[:8], jnp.arange(8) < 7)


def updated(learner, model):
    return quick_jit(lambda state, batch: learner.update(KEY, model, state, batch))


def assert_close(got, expected, **tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), got, expected)


def difference(first, second) -> float:
    return max(
        np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True)
    )


def assert_same(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


# --- the recipes, in plain JAX ---------------------------------------------------------------------------------------


def rows(kernel):
    """Output filters as rows."""
    return kernel.reshape(-1, kernel.shape[-1]).T


class Weights:
    """SFT tunes θ."""

    def __init__(self, params):
        self.at_start = params

    def params(self, tuned):
        return tuned


class Shifts:
    """Fast SFT tunes δ in U diag(relu(σ + δ)) Vᵀ."""

    def __init__(self, params):
        self.frozen = structure.flat(params)
        self.svd = {
            path: jnp.linalg.svd(rows(leaf), full_matrices=False)
            for path, leaf in self.frozen.items()
            if path[-1] == "kernel"
        }
        self.at_start = structure.nested(
            {path: jnp.zeros_like(s) for path, (_, s, _) in self.svd.items()}
        )

    def params(self, tuned):
        leaves = dict(self.frozen)
        for path, (u, s, vt) in self.svd.items():
            shift = structure.flat(tuned)[path]
            leaves[path] = ((u * jax.nn.relu(s + shift)) @ vt).T.reshape(leaves[path].shape)
        return structure.nested(leaves)


def likelihood(model, space, stats):
    """log p(label|image) of one image in evaluation mode, as a function of what is tuned."""

    def log_p(tuned, image, label):
        logits, _ = model.apply({"params": space.params(tuned), "batch_stats": stats}, image[None])
        return jax.nn.log_softmax(logits)[0, label]

    return log_p


def importance_by_hand(model, space, stats, holdout):
    gradient = jax.vmap(jax.grad(likelihood(model, space, stats)), (None, 0, 0))
    return jax.tree.map(
        lambda g: jnp.mean(g**2, 0), gradient(space.at_start, holdout.input / 255.0, holdout.label)
    )


def trace_by_hand(model, space, stats, batch, estimator):
    log_p = likelihood(model, space, stats)
    image, label = batch.input[:7] / 255.0, batch.label[:7]

    def exact(tuned):
        per_example = jax.vmap(jax.grad(log_p), (None, 0, 0))(tuned, image, label)
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(per_example)) / 7

    def sketch(tuned):
        signs = jax.random.rademacher(jax.random.fold_in(KEY, RULE), (8,), jnp.float32)[:7]
        total = jax.grad(lambda tuned: signs @ jax.vmap(log_p, (None, 0, 0))(tuned, image, label))(
            tuned
        )
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(total)) / 7

    return {"per_sample": exact, "sign_sketch": sketch}[estimator]


def recipe(model, space, importance, batch, estimator):
    """A step of momentum SGD on L + (η_r/2) Σ F̄ (φ − φ̄)², and + η_F Tr F where it is told so."""

    @quick_jit
    def step(tuned, stats, buffer, eta_f):
        def loss_fn(tuned):
            logits, changed = model.apply(
                {"params": space.params(tuned), "batch_stats": stats},
                batch.input[:7] / 255.0,
                train=True,
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.label[:7]).mean()
            pull = jax.tree.map(
                lambda f, w, s: jnp.sum(f * (w - s) ** 2), importance, tuned, space.at_start
            )
            trace = trace_by_hand(model, space, stats, batch, estimator)(tuned)
            return loss + ETA_R / 2 * sum(jax.tree.leaves(pull)) + eta_f * trace, (loss, changed)

        grads, (loss, changed) = jax.grad(loss_fn, has_aux=True)(tuned)
        buffer = jax.tree.map(lambda b, g: MOMENTUM * b + g, buffer, grads)
        return jax.tree.map(lambda w, b: w - RATE * b, tuned, buffer), changed, buffer, loss

    return step


def anchor_of(state) -> AnchorState:
    """Return the anchor's part of a chain's state."""
    nodes = jax.tree.leaves(state.optimizer, is_leaf=lambda node: isinstance(node, AnchorState))
    return next(node for node in nodes if isinstance(node, AnchorState))


CASES = {"sft": (Weights, "sign_sketch"), "fast_sft": (Shifts, "per_sample")}


@pytest.fixture(scope="module", params=CASES)
def case(request, model, start, holdout, batch):
    """Learner, states before and after three steps with their reports, and the steps by hand."""
    space_of, estimator = CASES[request.param]
    learner = defenses.create(request.param, **PENALIZED, augment="none").learner
    assert learner.transformation.estimator == estimator  # the default
    space = space_of(start["params"])
    importance = quick_jit(
        lambda: importance_by_hand(model, space, start["batch_stats"], holdout)
    )()
    state = quick_jit(lambda holdout: learner.init(KEY, model, start, holdout))(holdout)
    update, states, infos = updated(learner, model), [state], []
    for _ in range(3):
        state, info = update(state, batch)
        states.append(state)
        infos.append(info)
    step = recipe(model, space, importance, batch, estimator)
    tuned, stats, buffer = (
        space.at_start,
        start["batch_stats"],
        jax.tree.map(jnp.zeros_like, space.at_start),
    )
    by_hand = []
    for eta_f in (0.0, ETA_F, 0.0):
        without = step(tuned, stats, buffer, 0.0)[0]
        tuned, stats, buffer, loss = step(tuned, stats, buffer, eta_f)
        by_hand.append((tuned, stats, loss, space.params(tuned)))
        # Else the recipe would say nothing of the trace
        assert difference(tuned, without) > (1e-4 if eta_f else -1)
    return learner, states, infos, by_hand, importance


def test_three_steps_follow_the_recipe(case, model):
    """The second with the trace; the loss that is reported is that of the images alone."""
    learner, states, infos, by_hand, _ = case
    for state, info, (tuned, stats, loss, params) in zip(states[1:], infos, by_hand, strict=True):
        assert_close(state.tuned, tuned, atol=1e-5)
        assert_close(
            learner.finalize(model, state), {"params": params, "batch_stats": stats}, atol=1e-5
        )
        assert float(info.loss) == pytest.approx(float(loss), rel=1e-4)


def test_importance_is_computed_once_from_whole_images_in_evaluation_mode(case):
    """On the holdout as it is, not as it is augmented; and kept."""
    _, states, _, _, importance = case
    assert_close(anchor_of(states[0]).importance, importance, atol=1e-6, rtol=1e-4)
    for state in states[1:]:
        assert_same(anchor_of(state).importance, anchor_of(states[0]).importance)
        assert_same(anchor_of(state).reference, states[0].tuned)


def test_importance_does_not_depend_on_the_augmentation(case, model, start, holdout):
    learner, states, *_ = case
    other = quick_jit(
        lambda: dataclasses.replace(learner, augment="cutout").init(
            jax.random.key(1), model, start, holdout
        )
    )()
    assert_close(anchor_of(other).importance, anchor_of(states[0]).importance, rtol=1e-6)


def test_the_anchor_is_slack_at_the_start(case):
    """L_r = 0 and ∇L_r = 0: what comes in goes out."""
    learner, (state, *_), *_ = case
    zeros = jax.tree.map(jnp.zeros_like, state.tuned)
    batch = Split(jnp.zeros((1, 6, 6, 2)), jnp.zeros(1, jnp.int32), jnp.ones(1, bool))
    setting = bare()._replace(split=batch)
    chain = learner.transformation(setting)
    extra = {"key": KEY, "batch": batch, "example_loss_fn": setting.example_loss_fn}
    # The trace is not due
    assert_same(chain.update(zeros, chain.init(state.tuned), state.tuned, **extra)[0], zeros)


def test_gradient_evaluations_of_the_importance_the_steps_and_the_trace(case):
    """Ten images are two batches of eight, told with the first step; the gradient of a trace counts three more."""
    _, _, infos, _, _ = case
    assert [int(info.gradient_evaluations) for info in infos] == [1 + 2, 1 + 3, 1]


# --- limits ----------------------------------------------------------------------------------------------------------


def test_without_weights_it_is_fine_tuning_bit_for_bit(model, start, holdout, batch):
    """Batch statistics included: the penalties run on both, and leave no trace."""
    plain = defenses.create("ft", **OPTIONS, weight_decay=0.01).learner
    smooth = defenses.create(
        "sft", **{**PENALIZED, "eta_f": 0.0, "eta_r": 0.0, "every": 1}, weight_decay=0.01
    ).learner
    assert dataclasses.replace(smooth, transformation=plain.transformation) == plain
    states = []
    for learner in (plain, smooth):
        state = learner.init(KEY, model, start, holdout)
        # Two quick programs may round differently
        update = jax.jit(functools.partial(learner.update, KEY, model))
        for _ in range(2):
            state, _ = update(state, batch)
        states.append(state)
    assert_same(states[1].tuned, states[0].tuned)
    assert_same(states[1].batch_stats, states[0].batch_stats)


def test_batch_statistics_are_those_of_the_training_pass(case, model, start, batch):
    """Of one pass at the parameters of the step, although the penalties ran the network on the same images."""
    learner, states, *_ = case
    params = learner.parametrization.apply(states[1].tuned, states[1].frozen)
    variables = {"params": params, "batch_stats": states[1].batch_stats}
    _, changed = model.apply(variables, batch.input / 255.0, train=True, valid=batch.valid)
    assert_close(states[2].batch_stats, changed, rtol=1e-5, atol=1e-6)


# --- fast SFT --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def purified(model, start, holdout):
    """The network after an epoch at a high rate, with standard augmentation."""
    learner = defenses.create("fast_sft", **{**PENALIZED, "learning_rate": 2.0}, epochs=1).learner
    return loop.run(KEY, learner, model, start, holdout).variables


def test_fast_sft_changes_singular_values_and_nothing_else(purified, start):
    """After baking: biases, scales and singular vectors are what they were."""
    before, after = structure.flat(start["params"]), structure.flat(purified["params"])
    for path, leaf in after.items():
        if path[-1] != "kernel":
            np.testing.assert_array_equal(leaf, before[path])
            continue
        u, s, vt = np.linalg.svd(rows(before[path]), full_matrices=False)
        inside = u.T @ rows(leaf) @ vt.T
        np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-5)
        assert (np.diag(inside) >= -1e-5).all()
        assert np.abs(np.diag(inside) - s).max() > 1e-3
        np.testing.assert_allclose(u @ inside @ vt, rows(leaf), atol=1e-5)


def test_fast_sft_moves_the_batch_statistics(purified, start):
    moved = jax.tree.map(
        lambda a, b: bool((a != b).all()), purified["batch_stats"], start["batch_stats"]
    )
    assert all(jax.tree.leaves(moved))


def test_fast_sft_has_no_weight_decay_and_the_same_options_otherwise():
    full, fast = (
        defenses.create("sft", estimator="per_sample").learner,
        defenses.create("fast_sft").learner,
    )
    assert dataclasses.replace(fast, parametrization=full.parametrization) == full
    assert fast.sgd.weight_decay == 0


# --- presets ---------------------------------------------------------------------------------------------------------


def test_presets_are_the_published_values():
    common = {
        "every": 10,
        "batch_size": 128,
        "augment": "standard",
        "weight_decay": 0.0,
        "estimator": "sign_sketch",
    }
    paper = {"eta_f": 0.001, "eta_r": 5.0, "epochs": 100, "learning_rate": 0.01, "momentum": 0.9}
    schedule = Schedule("step", period=40.0, factor=0.1)
    assert (
        defenses.create("sft").learner
        == defenses.create("sft", **common, **paper, schedule=schedule).learner
    )
    reference = {
        "eta_f": 0.0,
        "eta_r": 0.0,
        "epochs": 500,
        "learning_rate": 0.005,
        "momentum": 0.95,
    }
    expected = defenses.create("sft", **common, **reference, schedule=Schedule()).learner
    assert defenses.create("sft", preset="reference_code").learner == expected
    assert defenses.create("sft").learner.drop_last is False
    # Swept without compiling anew
    assert jax.tree.leaves(defenses.create("sft").learner.transformation) == [0.001, 5.0]
