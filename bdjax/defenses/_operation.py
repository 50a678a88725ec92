"""What is done to a network at once, given all that a stage sees."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Key

from bdjax.types import Model, Variables


class Operation:
    """A learner whose only step is an operation on the network, which is its state.

    A subclass is a `bdjax.pytree.dataclass` with the method ``update``.
    """

    @property
    def epochs(self) -> int:
        return 1

    @property
    def batch_size(self) -> int | None:
        return None

    @property
    def drop_last(self) -> bool:
        return False

    def init(
        self,
        key: Key[Array, ""],
        model: Model,
        variables: Variables,
        split: Any,
    ) -> Variables:
        """Return the network as it is."""
        del key, model, split
        return variables

    def finalize(self, model: Model, state: Variables) -> Variables:
        """Return the network."""
        del model
        return state
