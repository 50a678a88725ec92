"""What an attacker trains, on triggers made for the test: stages, batches that are poisoned anew, cover samples."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from bdjax import poison, pytree
from bdjax.attacks import AllToAll, AllToOne
from bdjax.train import attacker, loop
from bdjax.train.supervised import supervised
from bdjax.types import Attack, Info, Split, Trigger

KEY = jax.random.key(5)
NOTHING = Info(jnp.float32(0), jnp.float32(0), jnp.int32(1))


@pytree.dataclass
class Level(Trigger):
    """Fills an image with its state, the mean of what it has seen."""

    epochs: int = pytree.static(default=2)
    batch_size: int | None = pytree.static(default=None)

    def init(self, key, spec):
        return jnp.float32(0)

    def apply(self, key, state, image):
        return jnp.full_like(image, state)


class Covering(Level):
    """Fills a cover sample with half of that."""

    hooks = ("cover",)

    def cover(self, key, state, batch):
        return jnp.full_like(batch.input, state / 2)


class Fitted(Level):
    """Learns the mean of all images, or of the last batch, before anything is poisoned."""

    hooks = ("fit",)

    def fit(self, key, model, variables, state, batch):
        scale = 255 if batch.input.dtype == jnp.uint8 else 1
        return batch.input.mean() / scale, NOTHING


class Learned(Level):
    """Counts the victim's steps."""

    hooks = ("learn",)

    def learn(self, key, model, variables, state, batch):
        return state + 1, NOTHING


class Paced(Fitted):
    """Knows how many steps an epoch has."""

    hooks = ("fit", "learn", "pace")

    def fit(self, key, model, variables, state, batch):
        return state, NOTHING

    def learn(self, key, model, variables, state, batch):
        return state, NOTHING

    def pace(self, state, steps_per_epoch):
        return jnp.float32(steps_per_epoch)


for kind in (Covering, Fitted, Learned, Paced):
    pytree.dataclass(kind)


def attack(trigger=None, rate=0.25, **fields) -> Attack:
    return Attack(trigger or Level(), **({"label_map": AllToOne(3), "poison_rate": rate} | fields))


def with_covers(**fields) -> Attack:
    return attack(Covering(), controls_training=True, **fields)


def batch(rows: int = 40) -> Split:
    return Split(jnp.full((rows, 2, 2, 1), 0.5), jnp.arange(rows) % 4, None)  # type: ignore[arg-type]


poison_batch = quick_jit(poison.poison_batch)


# --- Batches ---------------------------------------------------------------------------------------------------------


SHARES = [(0.25, 0.5, 10, 20), (0.0, 0.1, 0, 4), (0.75, 1.0, 30, 10)]


@pytest.mark.parametrize(("rate", "cover", "poisoned", "covered"), SHARES)
def test_a_batch_has_its_shares_of_poisoned_and_covered_rows(rate, cover, poisoned, covered):
    got = poison_batch(KEY, with_covers(rate=rate, cover_rate=cover), jnp.float32(0.8), batch())
    level = got.input[:, 0, 0, 0]
    assert (level == np.float32(0.8)).sum() == poisoned
    assert (level == np.float32(0.4)).sum() == covered
    assert (level == 0.5).sum() == 40 - poisoned - covered
    expected = np.where(level == np.float32(0.8), 3, batch().label)
    np.testing.assert_array_equal(got.label, expected)


def test_a_share_that_is_no_whole_number_is_right_on_average():
    def count(key):
        return (
            poison.poison_batch(key, attack(rate=0.06), jnp.float32(1), batch(10)).input[:, 0, 0, 0]
            == 1
        ).sum()

    per_batch = np.asarray(quick_jit(jax.vmap(count))(jax.random.split(KEY, 500)))
    assert set(per_batch) == {0, 1}
    assert 0.5 < per_batch.mean() < 0.7


def test_padding_is_neither_poisoned_nor_a_cover():
    padded = batch()._replace(valid=jnp.arange(40) < 8)
    got = poison_batch(KEY, with_covers(rate=0.5, cover_rate=0.5), jnp.float32(0.8), padded)
    np.testing.assert_array_equal(got.input[8:], padded.input[8:])
    assert (got.input[:8, 0, 0, 0] == np.float32(0.8)).sum() == 4


def test_candidates_may_be_the_rows_whose_label_changes():
    only = attack(rate=0.7, candidates="changed")
    got = poison_batch(KEY, only, jnp.float32(1), batch())
    poisoned = np.asarray(got.input[:, 0, 0, 0] == 1)
    assert poisoned.sum() == 28
    assert (np.arange(40)[poisoned] % 4 != 3).all()
    split = Split(np.zeros((40, 2, 2, 1), np.uint8), np.arange(40) % 4, np.ones(40, bool))
    drawn = poison.poison_train(
        KEY, dataclasses.replace(only, poison_rate=1.0), jnp.float32(1), split
    )
    np.testing.assert_array_equal(drawn.is_poisoned, np.arange(40) % 4 != 3)


def test_a_rate_of_the_candidates_is_a_share_of_those():
    split = Split(np.zeros((40, 2, 2, 1), np.uint8), np.arange(40) % 4, np.ones(40, bool))
    clean_label = attack(rate=0.8, clean_label=True, rate_of="candidates")
    drawn = poison.poison_train(KEY, clean_label, jnp.float32(1), split)
    assert drawn.is_poisoned.sum() == 8
    assert (np.arange(40)[np.asarray(drawn.is_poisoned)] % 4 == 3).all()
    assert poison.reach(clean_label, split) == (10, 8, 10)
    assert poison.reach(attack(rate=0.5, clean_label=True), split) == (10, 20, 40)


def test_a_changed_rate_compiles_nothing():
    poison_batch(KEY, with_covers(rate=0.1, cover_rate=0.1), jnp.float32(1), batch())
    before = poison_batch._cache_size()
    poison_batch(KEY, with_covers(rate=0.2, cover_rate=0.3), jnp.float32(1), batch())
    assert poison_batch._cache_size() == before


# --- Stages ----------------------------------------------------------------------------------------------------------


def names(**fields) -> list[tuple[str, str]]:
    return [
        (stage.name, type(stage.learner).__name__)
        for stage in attacker.stages(attack(**fields), supervised())
    ]


def test_most_attacks_train_a_victim_and_nothing_else():
    assert names() == [("victim", "Supervised")]
    assert names(controls_training=True) == [("victim", "Controlled")]


def test_a_surrogate_comes_first_and_the_trigger_before_the_victim():
    assert names(trigger=Fitted(), surrogate="clean") == [
        ("surrogate", "Supervised"),
        ("trigger", "Fitting"),
        ("victim", "Supervised"),
    ]


def test_a_robust_surrogate_is_trained_on_adversarial_images():
    surrogate, _ = attacker.stages(attack(surrogate="robust"), supervised(epochs=3))
    assert surrogate.learner == supervised(epochs=3, augment="adversarial")


def test_only_a_victim_of_poisoned_images_sees_them():
    stages = attacker.stages(attack(trigger=Fitted(), surrogate="clean"), supervised())
    assert [stage.sees_poisoned for stage in stages] == [False, False, True]
    (controlled,) = attacker.stages(attack(controls_training=True), supervised())
    assert not controlled.sees_poisoned


def test_the_victim_starts_anew_and_the_trigger_goes_along():
    fitting, victim = (
        attacker.stages(attack(trigger=Learned(), controls_training=True), supervised()),
        {"params": 0},
    )
    assert attacker.start(fitting[0], victim, {"params": 1}, 2) == {"params": 0, "trigger": 2}
    surrogate, fit, last = attacker.stages(
        attack(trigger=Fitted(), surrogate="clean"), supervised()
    )
    assert attacker.start(surrogate, victim, victim, 2) == {"params": 0}
    assert attacker.start(fit, victim, {"params": 1}, 2) == {"params": 1, "trigger": 2}
    assert attacker.start(last, victim, {"params": 1}, 2) == {"params": 0}
    assert attacker.parts({"params": 1, "trigger": 2}, 0) == ({"params": 1}, 2)
    assert attacker.parts({"params": 1}, 0) == ({"params": 1}, 0)


@pytest.mark.parametrize("batch_size", [None, 16])
def test_the_loop_fits_a_trigger_and_leaves_the_network_alone(model, variables, split, batch_size):
    trigger = Fitted(batch_size=batch_size)
    (_, fit, _) = attacker.stages(attack(trigger, surrogate="clean"), supervised())
    result = loop.run(KEY, fit.learner, model, {**variables, "trigger": jnp.float32(0)}, split)
    network, state = attacker.parts(result.variables, None)
    jax.tree.map(np.testing.assert_array_equal, network, variables)
    assert len(result.history) == 2
    assert abs(float(state) - split.input.mean() / 255) < (1e-6 if batch_size is None else 0.02)


def test_a_learned_trigger_is_updated_before_each_step_of_the_victim(model, variables, split):
    training = supervised(epochs=2, batch_size=12, augment="none")
    (victim,) = attacker.stages(attack(Learned(), controls_training=True), training)
    begin = attacker.start(victim, variables, variables, jnp.float32(0))
    result = loop.run(KEY, victim.learner, model, begin, split)
    network, state = attacker.parts(result.variables, None)
    assert state == 8
    assert result.gradient_evaluations == 2 * 8, "the trigger's count too"
    assert jax.tree.structure(network) == jax.tree.structure(variables)


def test_without_poison_the_controlled_victim_is_the_plain_one(model, variables, split):
    """The same batches in the same order; only the keys of a step's draws differ, and there is nothing to draw."""
    training = supervised(epochs=1, batch_size=12, augment="none")
    (victim,) = attacker.stages(attack(rate=0.0, controls_training=True), training)
    begin = attacker.start(victim, variables, variables, jnp.float32(0))
    ours, _ = attacker.parts(loop.run(KEY, victim.learner, model, begin, split).variables, None)
    expected = loop.run(KEY, training, model, variables, split).variables
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), ours, expected)


def test_the_shift_of_all_to_all_is_put_on_poisoned_rows():
    got = poison_batch(KEY, attack(rate=0.5, label_map=AllToAll(4)), jnp.float32(1), batch())
    poisoned = np.asarray(got.input[:, 0, 0, 0] == 1)
    assert poisoned.sum() == 20
    np.testing.assert_array_equal(got.label, (np.arange(40) + poisoned) % 4)


@pytest.mark.parametrize(
    ("batch_size", "fitting", "victims"), [(None, 1, 4), (16, 3, 4), (20, 3, 4), (48, 1, 4)]
)
def test_a_trigger_that_asks_knows_how_many_steps_an_epoch_has(
    model, variables, split, batch_size, fitting, victims
):
    trigger, training = Paced(batch_size=batch_size), supervised(batch_size=11, drop_last=True)
    fit, victim = attacker.stages(attack(trigger, controls_training=True), training)
    for stage, steps in ((fit, fitting), (victim, victims)):
        begin = attacker.start(stage, variables, variables, jnp.float32(0))
        assert stage.learner.init(KEY, model, begin, split).trigger == steps
