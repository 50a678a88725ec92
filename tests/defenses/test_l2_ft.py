"""Fine-tuning with an L2 penalty is fine-tuning with twice that weight decay (O22)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
from quick import quick_jit

from bdjax import defenses
from bdjax.types import Split

KEY = jax.random.key(0)
OPTIONS = {"learning_rate": 0.1, "momentum": 0.9, "augment": "none", "batch_size": 6}
GAMMA = 0.05


def test_it_is_fine_tuning_with_a_decay_of_twice_gamma():
    """The same learner, and therefore the same bits."""
    penalized = defenses.create("l2_ft", gamma=GAMMA, weight_decay=0.0, **OPTIONS).learner
    assert penalized == defenses.create("ft", weight_decay=2 * GAMMA, **OPTIONS).learner
    with_both = defenses.create("l2_ft", gamma=0.125, weight_decay=0.5, **OPTIONS).learner
    assert with_both == defenses.create("ft", weight_decay=0.75, **OPTIONS).learner
    assert defenses.create("l2_ft", gamma=0.0).learner == defenses.create("ft").learner


def test_a_step_is_that_of_the_penalized_loss():
    """L + γ ‖θ‖² over all parameters, scales and biases included."""
    model = networks.backwards()
    variables = networks.random_variables(model)
    rng = np.random.default_rng(0)
    batch = Split(
        jnp.asarray(rng.random((6, 6, 6, 2)), jnp.float32), jnp.arange(6) % 3, jnp.ones(6, bool)
    )
    learner = defenses.create("l2_ft", gamma=GAMMA, weight_decay=0.0, **OPTIONS).learner

    @quick_jit
    def both(variables):
        def loss_fn(params):
            logits, _ = model.apply({**variables, "params": params}, batch.input, train=True)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.label).mean()
            return loss + GAMMA * optax.tree.norm(params, squared=True)

        grads = jax.grad(loss_fn)(variables["params"])
        state, info = learner.update(KEY, model, learner.init(KEY, model, variables, batch), batch)
        return jax.tree.map(lambda w, g: w - 0.1 * g, variables["params"], grads), state.tuned, info

    expected, got, info = both(variables)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), got, expected)
    assert info.gradient_evaluations == 1
