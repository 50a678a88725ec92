"""Finished runs that never were, for analyses: the network with a planted backdoor neuron, which the defense prunes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import planted

from bdjax.runs.subject import Subject
from bdjax.types import PoisonedSplit, Split

EPOCHS = 4


def backdoored(seen: list[int] | None = None, **changed: Any) -> Subject:
    """Return a run whose defense takes the neuron out in the first epoch. Epochs that are replayed go to ``seen``."""
    victim, defended = planted.variables(), planted.variables()
    kernel = defended["params"]["conv1"]["kernel"]
    defended["params"]["conv1"]["kernel"] = kernel.at[..., 0].set(0)
    subject = _subject(
        [victim, *[defended] * EPOCHS],
        planted.holdout(30, seed=1),
        planted.holdout(12, seed=2),
        seen,
    )
    return subject._replace(**changed)


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
    """Return a run of one epoch of defense, which prunes the loud neuron."""
    return _subject(networks(), planted.holdout(rows, seed), planted.holdout(rows, seed + 1))


def _subject(
    steps: Sequence[dict[str, Any]], test: Split, holdout: Split, seen: list[int] | None = None
) -> Subject:
    """Return the run that has these variables after so many epochs, on dim test images with a white corner."""
    image, aimed = (
        np.asarray(planted.Corner()(None, jnp.asarray(test.input))),
        test.label != planted.TARGET,
    )
    visible = Split(image, np.full_like(test.label, planted.TARGET), aimed)

    def replay(on_variables: Any) -> None:
        for epoch, variables in enumerate(steps):
            if seen is not None:
                seen.append(epoch)
            on_variables(epoch, lambda variables=variables: variables)

    return Subject(
        config={},
        model=planted.MODEL,
        victim=steps[0],
        defended=steps[-1],
        test=test,
        triggered=PoisonedSplit(visible, test.label, aimed),
        holdout=holdout,
        epochs=len(steps) - 1,
        key=jax.random.key(0),
        replay=replay,
    )
