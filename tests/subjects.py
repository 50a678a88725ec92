"""A finished run that never was: the network with a planted backdoor neuron, before and after it was taken out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import planted

from bdjax.analysis._subject import Subject
from bdjax.types import PoisonedSplit, Split

EPOCHS = 4


def backdoored(seen: list[int] | None = None, **changed) -> Subject:
    """Return the run; its defense takes the neuron out in the first epoch. Epochs that are replayed go to ``seen``."""
    victim = planted.variables()
    defended = jax.tree.map(lambda leaf: leaf, victim)
    defended["params"]["conv1"]["kernel"] = victim["params"]["conv1"]["kernel"].at[..., 0].set(0)
    test = planted.holdout(30, seed=1)
    image = np.asarray(planted.Corner()(None, jnp.asarray(test.image)))
    wanted = np.full_like(test.label, planted.TARGET)
    visible = Split(image, wanted, test.label != planted.TARGET)

    def replay(on_variables) -> None:
        for epoch in range(EPOCHS + 1):
            if seen is not None:
                seen.append(epoch)
            on_variables(epoch, lambda epoch=epoch: defended if epoch else victim)

    subject = Subject(
        name="planted",
        config={},
        model=planted.MODEL,
        victim=victim,
        defended=defended,
        test=test,
        triggered=PoisonedSplit(visible, test.label, np.ones_like(test.valid)),
        holdout=planted.holdout(12, seed=2),
        defense=None,
        epochs=EPOCHS,
        key=jax.random.key(0),
        replay=replay,
    )
    return subject._replace(**changed)
