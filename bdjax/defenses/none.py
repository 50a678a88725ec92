"""No defense: the attacked model as it is, the row that every other is compared with."""

from __future__ import annotations

from bdjax.optim.sgd import Sgd
from bdjax.train.supervised import Supervised


def none() -> Supervised:
    """Create the defense that takes no step; variables come back bit-identical."""
    return Supervised(Sgd(learning_rate=0.0), epochs=0, batch_size=1)
