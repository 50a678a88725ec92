"""No defense: the attacked model as it is, the row that every other is compared with."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Array, Key

from bdjax import pytree
from bdjax.defenses._stages import NOTHING
from bdjax.types import Info, Model, Variables


@pytree.dataclass
class Untouched:
    """Leaves the network as it is, and asks for nothing."""

    sees: ClassVar[str] = NOTHING
    epochs: int = pytree.static(default=0)
    batch_size: None = pytree.static(default=None)
    drop_last: bool = pytree.static(default=False)

    def init(self, key: Key[Array, ""], model: Model, variables: Variables, split: None) -> Variables:
        """Return the network."""
        del key, model, split
        return variables

    def update(self, key: Key[Array, ""], model: Model, state: Variables, batch: None) -> tuple[Variables, Info]:
        """Never be asked for a step."""
        raise NotImplementedError

    def finalize(self, model: Model, state: Variables) -> Variables:
        """Return the network."""
        del model
        return state


def none() -> Untouched:
    """Create the defense that takes no step; variables come back bit-identical."""
    return Untouched()
