"""Combined attacks: whose trigger each row carries, counted; what is refused; and a part that is fitted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from bdjax import attacks, poison, pytree
from bdjax.attacks.combined import FittedMixture
from bdjax.checks import InputError
from bdjax.train import attacker
from bdjax.train.supervised import supervised
from bdjax.types import Attack, Info, Split, Trigger

KEY = jax.random.key(5)


@pytree.dataclass
class Level(Trigger):
    """Paint the image in one level, from the state."""

    level: float

    def init(self, key, spec):
        del key, spec
        return jnp.float32(self.level)

    def apply(self, key, state, image):
        del key
        return jnp.zeros_like(image) + state


@pytree.dataclass
class FittedLevel(Level):
    """Paint it in the share of rows that are valid, once that is known."""

    hooks = ("fit",)
    epochs = 2
    batch_size = None

    def fit(self, key, model, variables, state, batch):
        del key, model, variables
        return state * 0 + batch.valid.mean(), Info(jnp.float32(0), jnp.float32(0), jnp.int32(3))


MADE = {
    "low": lambda options: Attack(Level(0.2), **options),
    "middle": lambda options: Attack(Level(0.4), test_trigger=Level(0.0), **options),
    "high": lambda options: Attack(Level(0.6), **options),
    "clean": lambda options: Attack(Level(0.8), clean_label=True, **options),
    "clean_too": lambda options: Attack(Level(0.8), clean_label=True, **options),
    "fitted": lambda options: Attack(FittedLevel(1.0), surrogate="clean", **options),
    "fitted_too": lambda options: Attack(FittedLevel(1.0), **options),
    "controlling": lambda options: Attack(Level(0.8), controls_training=True, **options),
}


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    create = attacks.create

    def choose(name, *, model=None, **options):
        return MADE[name](options) if name in MADE else create(name, model=model, **options)

    monkeypatch.setattr(attacks, "names", lambda: [*MADE, "badnets", "blended", "combined"])
    monkeypatch.setattr(attacks, "create", choose)


def combined(parts: str, **options) -> Attack:
    from bdjax.attacks.combined import combined

    return combined(parts=parts, **options)


def black(rows: int) -> Split:
    return Split(jnp.zeros((rows, 4, 4, 1)), jnp.arange(rows) % 5, jnp.ones(rows, bool))


def levels(image) -> dict[float, int]:
    found, count = np.unique(np.asarray(image, np.float64)[:, 0, 0, 0].round(3), return_counts=True)
    return {float(level): int(number) for level, number in zip(found, count, strict=True) if level}


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0.09, {0.2: 3, 0.4: 3, 0.6: 3}),
        (0.1, {0.2: 4, 0.4: 3, 0.6: 3}),
        (0.11, {0.2: 4, 0.4: 4, 0.6: 3}),
        (0.0, {}),
    ],
)
def test_each_poisoned_row_carries_one_trigger_and_the_first_get_the_remainder(
    spec, rate, expected
):
    attack = combined("low+middle+high", poison_rate=rate)
    split = black(100)
    poisoned = quick_jit(poison.poison_train)(KEY, attack, attack.trigger.init(KEY, spec), split)
    assert levels(poisoned.visible.input) == expected
    rows = np.asarray(poisoned.is_poisoned)
    assert (split.label[rows] != 0).all()
    assert (poisoned.visible.label[rows] == 0).all()


def test_a_stream_deals_out_the_same(spec):
    attack, split = combined("low+middle+high", poison_rate=0.4), black(50)
    state = attack.trigger.init(KEY, spec)
    whole = quick_jit(poison.poison_train)(KEY, attack, state, split)
    stream = poison.poison_stream(KEY, attack, state, split._replace(input=np.asarray(split.input)))
    for rows in (np.arange(10), np.arange(37, 50)):
        image = stream.visible.input.change(split.input[rows], jnp.asarray(rows))
        np.testing.assert_array_equal(image, whole.visible.input[rows])


def test_at_test_time_the_triggers_take_turns_among_the_rows_that_count(spec):
    attack, split = combined("low+high"), black(50)
    test = quick_jit(poison.poison_test)(KEY, attack, attack.trigger.init(KEY, spec), split)
    assert levels(test.visible.input[test.visible.valid]) == {0.2: 20, 0.6: 20}


def test_parts_keep_their_own_trigger_at_test_time():
    attack = combined("low+middle")
    assert attack.test_trigger.parts == (Level(0.2), Level(0.0))
    assert combined("low+high").test_trigger is None


def test_apply_alone_draws_a_part(spec):
    attack = combined("low+high")
    state = attack.trigger.init(KEY, spec)
    apply = jax.vmap(attack.trigger.apply, (0, None, None))
    drawn = levels(apply(jax.random.split(KEY, 100), state, jnp.zeros((4, 4, 1))))
    assert set(drawn) == {0.2, 0.6}
    assert 30 < drawn[0.2] < 70


def test_states_have_keys_of_their_own(spec):
    attack = combined("badnets+blended")
    state = attack.trigger.init(KEY, spec)
    np.testing.assert_array_equal(
        state[1], jax.random.uniform(jax.random.fold_in(KEY, 1), spec.shape)
    )


def test_clean_label_parts_poison_the_target_class_alone(spec):
    attack, split = combined("clean+clean_too", poison_rate=0.1), black(100)
    assert attack.clean_label
    poisoned = poison.poison_train(KEY, attack, attack.trigger.init(KEY, spec), split)
    assert levels(poisoned.visible.input) == {0.8: 10}
    np.testing.assert_array_equal(poisoned.visible.label, split.label)
    assert (split.label[np.asarray(poisoned.is_poisoned)] == 0).all()


def test_a_part_that_is_fitted_is_fitted_and_no_other(spec, model):
    attack = combined("low+fitted+high")
    assert isinstance(attack.trigger, FittedMixture)
    assert not attack.by_formula
    assert combined("low+high").by_formula
    assert [stage.name for stage in attacker.stages(attack, supervised())] == [
        "surrogate",
        "trigger",
        "victim",
    ]
    assert (attack.trigger.epochs, attack.trigger.batch_size) == (2, None)
    split = black(8)._replace(valid=jnp.arange(8) < 6)
    state, info = attack.trigger.fit(KEY, model, {}, attack.trigger.init(KEY, spec), split)
    np.testing.assert_allclose(state, (0.2, 0.75, 0.6))
    assert info.gradient_evaluations == 3


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("low+lwo", "parts must be one of .*; got 'lwo'.*did you mean 'low'"),
        ("low+combined", "parts must be one of .*; got 'combined'"),
        ("low", "parts must be two different attacks or more"),
        ("low+low", "parts must be two different attacks or more"),
        ("low+", "parts must be one of"),
        ("low+clean", "parts must all be clean-label attacks, or none of them; got 'low.clean'"),
        ("low+controlling", "parts must not control the training, as controlling does"),
        ("fitted+fitted_too", "at most whose trigger is fitted first"),
    ],
)
def test_refuses(parts, words):
    with pytest.raises(InputError, match=words):
        combined(parts)
