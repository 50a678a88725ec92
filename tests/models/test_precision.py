"""What bfloat16 does to a whole experiment: a victim and its purification, on digits."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bdjax import attacks, data, defenses, evaluate, models, poison
from bdjax.data import splits
from bdjax.train import loop
from bdjax.train.supervised import supervised


def rates(seed: int, dtype: str) -> np.ndarray:
    """Return ACC and ASR of a BadNets victim and after FT-SAM: [[before], [after]]."""
    poison_key, init_key, train_key, holdout_key, defense_key = jax.random.split(
        jax.random.key(seed), 5
    )
    digits = data.load("digits")
    attack = attacks.create("badnets", target_label=0, poison_rate=0.1)
    trigger = attack.trigger.init(poison_key, digits.spec)
    train = poison.poison_train(poison_key, attack, trigger, digits.train)
    triggered = poison.poison_test(poison_key, attack, trigger, digits.test)
    model = models.create("small_cnn", digits.spec, width=8, dtype=dtype)
    learner = supervised(epochs=8, batch_size=64, learning_rate=0.05)
    victim = loop.run(train_key, learner, model, model.init(init_key), train.visible).variables
    rows = splits.holdout(holdout_key, digits.train, per_class=20, num_classes=10)
    defense = defenses.create("ft_sam", rho=4.0, epochs=30, batch_size=100, learning_rate=0.05)
    purified = defenses.run(defense_key, defense, model, victim, splits.take(digits.train, rows))
    scores = [
        evaluate.evaluate(model, variables, digits.test, triggered)
        for variables in (victim, purified)
    ]
    return np.array([[score.clean_accuracy, score.attack_success_rate] for score in scores])


@pytest.mark.slow
def test_bfloat16_finds_the_accuracy_and_attack_success_rate_of_float32():
    """Measured over 15 seeds: at most 0.007 and 0.005 apart before the defense, 0.018 and 0.010 after it.

    That is with a ρ that removes the backdoor. With half of it one of three Blended victims was 0.07 apart in ASR:
    between its two modes rounding decides as a seed does.
    """
    ours, expected = rates(0, "bfloat16"), rates(0, "float32")
    assert expected[0, 1] > 0.95 > 0.1 > expected[1, 1], (
        "the experiment is to plant a backdoor and to remove it"
    )
    np.testing.assert_array_less(abs(ours - expected), [[0.02, 0.02], [0.04, 0.05]])
    assert (ours != expected).any()
