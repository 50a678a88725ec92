"""Which steps are written out is timed only where it may pay, and on few steps."""

from __future__ import annotations

import jax
import pytest

from bdjax import defenses
from bdjax.train import unrolling


@pytest.fixture
def timed(monkeypatch, model, variables, split):
    """Choose as on an accelerator where a step takes so long, by how many are written out."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def choose(seconds: dict[int, float], *, compiling: float, epochs: int = 100):
        def time(learner, model, state, few, feeding):
            assert few.label.shape == (40,)  # eight steps of five
            return compiling * feeding.unroll, 8 * seconds[feeding.unroll]

        monkeypatch.setattr(unrolling, "_time", time)
        learner = defenses.create("ft", epochs=epochs, batch_size=5).learner
        return unrolling.choose(learner, model, variables, split, "step")

    return choose


def test_a_long_job_takes_what_was_fastest(timed):
    steps = {1: 1.0, 2: 0.75, 4: 0.5, 8: 0.625}
    assert timed(steps, compiling=1.0) == (
        4,
        {str(number): second for number, second in steps.items()},
    )


def test_none_is_tried_that_would_not_pay(timed):
    assert timed({1: 0.01}, compiling=0.0) == (1, {"1": 0.01})  # ten seconds in all
    assert timed({1: 1.0}, compiling=1000.0) == (1, {"1": 1.0})
    assert timed({1: 1.0, 2: 0.5}, compiling=60.0) == (2, {"1": 1.0, "2": 0.5})


def test_without_epochs_nothing_is_measured(timed):
    assert timed({}, compiling=0.0, epochs=0) == (1, {})


def test_a_cpu_is_not_measured(model, variables, split):
    assert unrolling.choose(defenses.create("ft").learner, model, variables, split) == (1, {})
