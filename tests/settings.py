"""What the chain of a learner is made from, for tests that look at what comes before SGD."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from bdjax.data.modalities.images import image_spec
from bdjax.train.transformations import Setting

SPEC = image_spec("tiny", (4, 4, 1), 3, (0.5,), (0.25,))


def bare(rows: int = 10, rate=lambda step: 1.0) -> Setting:
    """A setting whose SGD hands on the gradient that it is given; nothing else is known."""
    return Setting(
        spec=SPEC,
        rows=jnp.int32(rows),
        steps_per_epoch=jnp.int32(1),
        sgd=optax.with_extra_args_support(optax.identity()),
        rate=rate,
        example_loss_fn=lambda tuned, example: jnp.zeros(()),
    )
