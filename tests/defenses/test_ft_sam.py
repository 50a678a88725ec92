"""FT-SAM: one step against its recipe in plain JAX, its limits, its presets."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from settings import bare

from bdjax import defenses, optim
from bdjax.checks import InputError
from bdjax.optim import Schedule
from bdjax.types import Split

KEY = jax.random.key(0)
RHO, RATE, MOMENTUM, DECAY, SMOOTHING = 0.5, 0.05, 0.9, 0.01, 0.1


@pytest.fixture(scope="module")
def learner():
    return defenses.create(
        "ft_sam",
        rho=RHO,
        learning_rate=RATE,
        momentum=MOMENTUM,
        weight_decay=DECAY,
        label_smoothing=SMOOTHING,
        augment="none",
    ).learner


@pytest.fixture(scope="module")
def update(learner, model):
    """One step on a batch, compiled."""
    return jax.jit(lambda state, batch: learner.update(KEY, model, state, batch))


@pytest.fixture(scope="module")
def moved(variables):
    """Batch statistics, scales and biases are not those of a fresh network."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.asarray(x) + rng.uniform(0, 0.2, x.shape).astype(x.dtype), variables
    )


@pytest.fixture(scope="module")
def start(learner, model, moved, split):
    return learner.init(KEY, model, moved, split)


@pytest.fixture(scope="module")
def batch(split) -> Split:
    return Split(jnp.asarray(split.input[:12]), jnp.asarray(split.label[:12]), None)  # pyright: ignore


@pytest.fixture(scope="module")
def recipe(model):
    """The step as the paper and the released code describe it (defaults of SGD as in PyTorch), in plain JAX."""

    @jax.jit
    def step(params, batch_stats, buffer, batch):
        def loss_fn(params):
            logits, changed = model.apply(
                {"params": params, "batch_stats": batch_stats}, batch.input / 255.0, train=True
            )
            target = jnp.where(jax.nn.one_hot(batch.label, 4) > 0, 1 - SMOOTHING, SMOOTHING / 3)
            loss = jnp.sum(target * (jnp.log(target) - jax.nn.log_softmax(logits)), axis=-1).mean()
            return loss, changed

        (loss, changed), g = jax.value_and_grad(loss_fn, has_aux=True)(params)
        norm = jnp.sqrt(
            sum(
                jnp.sum((w * d) ** 2)
                for w, d in zip(jax.tree.leaves(params), jax.tree.leaves(g), strict=True)
            )
        )
        epsilon = jax.tree.map(lambda w, d: RHO * w**2 * d / norm, params, g)
        there = jax.tree.map(jnp.add, params, epsilon)
        (worst, _), g = jax.value_and_grad(loss_fn, has_aux=True)(there)
        buffer = jax.tree.map(lambda b, d, w: MOMENTUM * b + d + DECAY * w, buffer, g, params)
        params = jax.tree.map(lambda w, b: w - RATE * b, params, buffer)
        return params, changed, buffer, {"loss": loss, "worst": worst, "epsilon": epsilon}

    return step


@pytest.fixture(scope="module")
def by_hand(recipe, moved, batch):
    """Two steps of the recipe on the same batch."""
    params, stats = moved["params"], moved["batch_stats"]
    states, buffer = [], jax.tree.map(np.zeros_like, params)
    for _ in range(2):
        params, stats, buffer, told = recipe(params, stats, buffer, batch)
        states.append(({"params": params, "batch_stats": stats}, told))
    return states


def norm(tree) -> float:
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


def assert_close(got, expected, **tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), got, expected)


def test_two_steps_follow_the_recipe(by_hand, learner, model, update, start, batch):
    """Momentum, decay at θ, batch statistics once a step and from θ; the loss that is reported is that at θ."""
    state = start
    for variables, told in by_hand:
        state, info = update(state, batch)
        assert_close(learner.finalize(model, state), variables, atol=2e-6)
        assert float(info.loss) == pytest.approx(float(told["loss"]), rel=1e-5)
        assert info.gradient_evaluations == 2
    assert state.step == 2


def test_the_perturbation_has_radius_rho_and_raises_the_loss(by_hand, moved):
    """Behavioral test 2, on a network."""
    told, params = by_hand[0][1], moved["params"]
    inside = jax.tree.map(
        lambda e, w: np.divide(e, abs(w), where=w != 0, out=np.zeros_like(w)),
        told["epsilon"],
        params,
    )
    assert norm(inside) == pytest.approx(RHO, rel=1e-4)
    assert told["worst"] > told["loss"]


def test_batch_norm_scales_take_nearly_all_of_the_perturbation(recipe, variables, batch):
    """Weighted by θ², as the parameters of a fresh network are small and its scales are 1."""
    params = variables["params"]
    epsilon = recipe(params, variables["batch_stats"], jax.tree.map(np.zeros_like, params), batch)[
        -1
    ]["epsilon"]
    scales = [epsilon[name]["scale"] for name in epsilon if name.startswith("bn")]
    assert norm(scales) ** 2 > 0.95 * norm(epsilon) ** 2


def test_a_padded_batch_equals_the_batch_without_padding(update, start, batch):
    """Behavioral test 13, both passes: loss, gradient (as the step that it makes), batch statistics."""
    padded = Split(
        jnp.concatenate([batch.input, jnp.full_like(batch.input[:8], 255)]),
        jnp.concatenate([batch.label, jnp.zeros_like(batch.label[:8])]),
        jnp.arange(20) < 12,
    )
    (plain, info), (masked, masked_info) = update(start, batch), update(start, padded)
    assert_close(masked, plain, atol=2e-6)
    assert_close(masked_info, info, rtol=1e-5)


@pytest.mark.parametrize("rho", [0.0, 2.0])
def test_radius_zero_is_plain_fine_tuning_bit_for_bit(model, variables, split, rho):
    small = {"epochs": 3, "batch_size": 32}
    tuned = defenses.run(KEY, defenses.create("ft", **small), model, variables, split)
    purified = defenses.run(
        KEY, defenses.create("ft_sam", rho=rho, **small), model, variables, split
    )
    equal = jax.tree.map(np.array_equal, purified, tuned)
    assert all(jax.tree.leaves(equal)) == (rho == 0.0)


def test_not_adaptive_is_plain_sam():
    grads, params = jnp.array([3.0, 4.0]), jnp.array([1.0, -2.0])
    for adaptive, seen in (
        (False, params + jnp.array([1.2, 1.6])),
        (True, params + jnp.array([0.70224688, 3.74531671])),
    ):
        chain = defenses.create("ft_sam", rho=2.0, adaptive=adaptive).learner.transformation(bare())
        at, state = chain.update(grads, chain.init(params), params, grad_fn=lambda at: at)
        np.testing.assert_allclose(at, seen, rtol=1e-6)
        assert optim.gradient_evaluations(state) == 1


def test_the_radius_can_move_with_the_learning_rate():
    """ρ_t = ρ_min + (ρ − ρ_min) η_t / η₀."""
    grads, params = jnp.array([3.0, 4.0]), jnp.zeros(2)
    transformation = defenses.create(
        "ft_sam", rho=2.0, rho_min=1.0, adaptive=False
    ).learner.transformation
    chain = transformation(bare(rate=lambda step: 1 - step / 2))
    state, radii = chain.init(params), []
    for _ in range(3):
        at, state = chain.update(grads, state, params, grad_fn=lambda at: at)
        radii.append(float(jnp.linalg.norm(at)))
    assert radii == pytest.approx([2.0, 1.5, 1.0])


def test_a_moving_radius_needs_a_rate_that_is_known_in_advance():
    with pytest.raises(InputError, match=r"rho_min must be None with a plateau schedule; got 1\.0"):
        defenses.create("ft_sam", rho_min=1.0, schedule=Schedule(kind="plateau"))


def test_presets_are_the_published_values():
    paper = {
        "rho": 2.0,
        "adaptive": True,
        "epochs": 100,
        "batch_size": 256,
        "learning_rate": 0.01,
        "momentum": 0.9,
    }
    common = {**paper, "augment": "standard"}
    assert (
        defenses.create("ft_sam").learner
        == defenses.create(
            "ft_sam", **common, weight_decay=1e-4, label_smoothing=0.0, schedule=Schedule()
        ).learner
    )
    assert (
        defenses.create("ft_sam", preset="reference_code").learner
        == defenses.create(
            "ft_sam",
            **common,
            weight_decay=5e-4,
            label_smoothing=0.1,
            schedule=Schedule("cosine", 100.0, per="step"),
        ).learner
    )


def test_fine_tuning_differs_from_ft_sam_in_the_transformation_only():
    tuned, purified = defenses.create("ft").learner, defenses.create("ft_sam").learner
    assert dataclasses.replace(purified, transformation=tuned.transformation) == tuned
    assert not tuned.drop_last
