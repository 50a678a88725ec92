"""No defense: the attacked model as it is, the row that every other is compared with."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Array, Key

from bdjax import pytree
from bdjax.defenses._operation import Operation
from bdjax.defenses._stages import NOTHING
from bdjax.types import Info, Model, Variables


@pytree.dataclass
class Untouched(Operation):
    """Leaves the network as it is, and asks for nothing."""

    sees: ClassVar[str] = NOTHING

    @property
    def epochs(self) -> int:
        return 0

    def update(
        self,
        key: Key[Array, ""],
        model: Model,
        state: Variables,
        batch: None,
    ) -> tuple[Variables, Info]:
        """Never be called, as there are no epochs."""
        raise NotImplementedError


def none() -> Untouched:
    """Create the defense that takes no step; variables come back bit-identical."""
    return Untouched()
