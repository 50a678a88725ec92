"""SGD and its schedules against hand values (O5, O5b, O22, O29) and against PyTorch's own trajectories."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from bdjax.checks import InputError
from bdjax.optim import Schedule, Sgd, schedules


def trajectory(sgd: Sgd, w, grads, *, steps_per_epoch=1, losses=None):
    """Return the parameters after each step on given gradients."""
    losses = jnp.zeros(len(grads)) if losses is None else jnp.asarray(losses)
    tx = sgd.transformation(steps_per_epoch)

    def step(carry, inputs):
        w, state = carry
        grad, loss = inputs
        updates, state = tx.update(grad, state, w, value=loss)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    return np.asarray(jax.lax.scan(step, (w, tx.init(w)), (jnp.asarray(grads), losses))[1])


def rates(schedule: Schedule, steps: int, *, steps_per_epoch=1, losses=None, base=1.0):
    """Return the learning rate of each step: what SGD without momentum takes off on a gradient of one."""
    after = trajectory(
        Sgd(base, momentum=0.0, schedule=schedule),
        jnp.float32(0),
        jnp.ones(steps),
        steps_per_epoch=steps_per_epoch,
        losses=losses,
    )
    return -np.diff(after, prepend=0)


def plateau(losses, *, steps_per_epoch=1, factor=0.1, base=1.0):
    schedule = Schedule(kind="plateau", factor=factor)
    return rates(schedule, len(losses), steps_per_epoch=steps_per_epoch, losses=losses, base=base)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_sgd_by_hand():
    """O5."""
    after = trajectory(Sgd(0.1, momentum=0.9, weight_decay=0.1), jnp.float32(1), jnp.ones(3))
    np.testing.assert_allclose(after, [0.89, 0.6821, 0.388169], rtol=1e-6)


def test_weight_decay_is_the_gradient_of_an_l2_penalty():
    """O22: γ‖θ‖² added to the loss with decay 0 equals decay 2γ."""
    gamma, tilt, start = 0.05, jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 1.0, -1.0])

    def descend(loss, weight_decay):
        tx = Sgd(0.1, momentum=0.9, weight_decay=weight_decay).transformation(1)
        w, state = start, tx.init(start)
        for _ in range(4):
            updates, state = tx.update(jax.grad(loss)(w), state, w)
            w = optax.apply_updates(w, updates)
        return w

    penalized = descend(lambda w: jnp.cos(w) @ tilt + gamma * w @ w, 0.0)
    np.testing.assert_allclose(
        penalized, descend(lambda w: jnp.cos(w) @ tilt, 2 * gamma), rtol=1e-6
    )


def test_cosine_climbs_back():
    """O5b."""
    rate = 0.01 * jax.vmap(lambda count: schedules.cosine(count, 100.0))(jnp.arange(1001))
    expected = {0: 0.01, 50: 0.005, 100: 0, 150: 0.005, 200: 0.01, 400: 0.01, 1000: 0.01}
    np.testing.assert_allclose(rate[jnp.array(list(expected))], list(expected.values()), atol=1e-8)
    assert rate[10] == pytest.approx(0.00975528, rel=1e-6)
    assert rate[:1000].mean() == pytest.approx(0.005, rel=1e-5)


def test_a_rate_per_epoch_stays_for_the_whole_epoch():
    rate = rates(Schedule(kind="cosine", period=2.0), 6, steps_per_epoch=2)
    np.testing.assert_allclose(rate, [1, 1, 0.5, 0.5, 0, 0], atol=1e-6)


def test_a_rate_per_step_moves_at_every_step():
    rate = rates(Schedule(kind="cosine", period=4.0, per="step"), 6, steps_per_epoch=2)
    half = np.sqrt(0.5) / 2
    np.testing.assert_allclose(rate, [1, 0.5 + half, 0.5, 0.5 - half, 0, 0.5 - half], atol=1e-6)


def test_step_drops_by_the_factor_every_period():
    rate = rates(Schedule(kind="step", period=2.0, factor=0.5), 10, steps_per_epoch=2)
    np.testing.assert_allclose(rate, [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25], rtol=1e-5)


def test_a_constant_rate_is_constant():
    np.testing.assert_allclose(rates(Schedule(), 5, base=0.3), [0.3] * 5, rtol=1e-5)


def test_period_and_factor_can_be_swept():
    def last(period, factor):
        schedule = Schedule(kind="step", period=period, factor=factor)
        return schedule.scale(jnp.int32(12), 3)

    periods, factors = jnp.array([1.0, 2.0]), jnp.array([0.5, 0.1])
    np.testing.assert_allclose(jax.vmap(last)(periods, factors), [0.5**4, 0.1**2], rtol=1e-5)


# --- plateau ---------------------------------------------------------------------------------------------------------


def test_a_constant_loss_lowers_the_rate_after_the_twelfth_epoch():
    """O29: the first epoch is the best, ten bad ones are borne, the eleventh bad one lowers the rate of the next."""
    rate = plateau([1.0] * 25)
    np.testing.assert_allclose(rate, [1.0] * 12 + [0.1] * 11 + [0.01] * 2, rtol=1e-4)


def test_a_plateau_drop_waits_for_the_end_of_the_epoch():
    rate = plateau([1.0] * 39, steps_per_epoch=3)
    np.testing.assert_allclose(rate, [1.0] * 36 + [0.1] * 3, rtol=1e-4)


def test_plateau_looks_at_the_mean_of_the_epoch():
    """Batches swing, the mean falls by a tenth an epoch; and the other way round."""
    falling = np.repeat(0.9 ** np.arange(20), 2) * np.tile([0.5, 1.5], 20)
    assert plateau(falling, steps_per_epoch=2).tolist() == pytest.approx([1.0] * 40, rel=1e-4)
    swing = np.linspace(0, 0.9, 20)
    level = np.stack([1 - swing, 1 + swing], axis=1).ravel()
    assert plateau(level, steps_per_epoch=2)[-1] == pytest.approx(0.1, rel=1e-3)


def test_a_gain_within_the_threshold_is_none():
    slow = 1 - 5e-6 * np.arange(13)  # less than 1e-4 of the best, all epochs together
    assert plateau(slow)[-1] == pytest.approx(0.1, rel=1e-3)


def test_a_good_epoch_starts_the_count_anew():
    losses = [1.0] * 11 + [0.5] + [1.0] * 11
    np.testing.assert_allclose(plateau([*losses, 1.0]), [1.0] * 23 + [0.1], rtol=1e-4)


# --- PyTorch's own ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def test_sgd_equals_pytorchs(torch):
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=4).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    w = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.05, momentum=0.9, weight_decay=0.01)
    expected = []
    for grad in grads:
        w.grad = torch.tensor(grad)
        optimizer.step()
        expected.append(w.detach().numpy().copy())
    got = trajectory(Sgd(0.05, momentum=0.9, weight_decay=0.01), jnp.asarray(start), grads)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def pytorch_rates(torch, make, epochs, losses=None):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = make(optimizer)
    found = []
    for epoch in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*(() if losses is None else (float(losses[epoch]),)))
    return found


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (
            Schedule(kind="cosine", period=7.0),
            lambda t: lambda o: t.optim.lr_scheduler.CosineAnnealingLR(o, T_max=7),
        ),
        (
            Schedule(kind="step", period=3.0, factor=0.5),
            lambda t: lambda o: t.optim.lr_scheduler.StepLR(o, step_size=3, gamma=0.5),
        ),
    ],
    ids=["cosine", "step"],
)
def test_a_schedule_equals_pytorchs(torch, schedule, make):
    got = rates(schedule, 30, base=0.1)
    np.testing.assert_allclose(got, pytorch_rates(torch, make(torch), 30), atol=2e-7)


@pytest.mark.parametrize("seed", range(3))
def test_plateau_equals_pytorchs(torch, seed):
    """Noisy levels of a loss: good epochs, bad ones, and two or more drops."""
    rng = np.random.default_rng(seed)
    losses = (np.repeat([1.0, 0.6, 0.3], 25) + rng.uniform(0, 0.3, 75)).astype(np.float32)
    make = torch.optim.lr_scheduler.ReduceLROnPlateau
    expected = pytorch_rates(torch, make, 75, losses)
    assert len(set(expected)) > 2
    np.testing.assert_allclose(plateau(losses, base=0.1), expected, rtol=1e-3, atol=1e-7)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def unchecked(monkeypatch):
    """Without the tests' run-time type checks, as users have it."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"learning_rate": 0.0}, "^learning_rate must be above 0, got 0.0"),
        ({"learning_rate": float("nan")}, "^learning_rate must be finite, got nan"),
        ({"momentum": 1.0}, "^momentum must be at least 0 and below 1, got 1.0"),
        ({"weight_decay": -1e-4}, "^weight_decay must be 0 or more, got -0.0001"),
        ({"kind": "cosin"}, "^schedule.kind must be .*did you mean 'cosine'"),
        ({"per": "steps"}, "^schedule.per must be .*did you mean 'step'"),
        ({"kind": "step"}, "^schedule.period must say how many epochs or steps"),
        ({"kind": "cosine", "period": 0.0}, "^schedule.period must be above 0, got 0.0"),
        ({"kind": "plateau", "factor": -1.0}, "^schedule.factor must be above 0, got -1.0"),
    ],
    ids=str,
)
def test_check_names_the_argument(unchecked, values, words):
    of_sgd = {"learning_rate", "momentum", "weight_decay"}
    schedule = Schedule(**{name: value for name, value in values.items() if name not in of_sgd})
    sgd = Sgd(
        **{
            "learning_rate": 0.1,
            **{name: value for name, value in values.items() if name in of_sgd},
        }
    )
    with pytest.raises(InputError, match=words):
        dataclasses.replace(sgd, schedule=schedule).check()
