"""A finished run that never was, for analyses: the network with a planted neuron, which the defense prunes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import planted

from bdjax.analysis._subject import Subject
from bdjax.types import PoisonedSplit, Split


def networks() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the planted network, its neuron twenty times as loud and heard a twentieth, and the same without it."""
    victim, defended = planted.variables(), planted.variables()
    for variables, loudness in ((victim, 20), (defended, 0)):
        convolution, linear = (variables["params"][name] for name in ("conv1", "linear"))
        convolution["kernel"] = convolution["kernel"].at[..., 0].multiply(loudness)
        convolution["bias"] = convolution["bias"].at[0].multiply(loudness)
        linear["kernel"] = linear["kernel"].at[0].divide(20)
    return victim, defended


def planted_subject(rows: int = 30, seed: int = 1) -> Subject:
    """Return the run: one epoch of defense, which prunes the neuron, and dim test images with a white corner."""
    test, label = planted.holdout(rows, seed), np.full(rows, planted.TARGET, np.int32)
    image = np.asarray(planted.Corner()(None, jnp.asarray(test.image)))
    aimed = test.label != planted.TARGET
    steps = networks()

    def replay(on_variables: Any) -> None:
        for epoch, variables in enumerate(steps):
            on_variables(epoch, lambda variables=variables: variables)

    return Subject(
        name="planted",
        config={},
        model=planted.MODEL,
        victim=steps[0],
        defended=steps[1],
        test=test,
        triggered=PoisonedSplit(Split(image, label, aimed), test.label, aimed),
        holdout=planted.holdout(rows, seed + 1),
        defense=None,
        epochs=1,
        key=jax.random.key(0),
        replay=replay,
    )
