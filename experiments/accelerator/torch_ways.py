"""How PyTorch computes, as a value; nothing here needs PyTorch."""

from __future__ import annotations

import dataclasses

NCHW, CHANNELS_LAST = "NCHW", "channels_last"
LAYOUTS = (NCHW, CHANNELS_LAST)


@dataclasses.dataclass(frozen=True)
class Way:
    """How PyTorch computes.

    Attributes:
      layout: of `LAYOUTS`.
      compiled: by `torch.compile`, in its default mode; else eager.
      dtype: ``float32``, or ``bfloat16`` by autocast.
      tf32: whether float32 products round their operands to TF32.
      device: ``cpu`` or ``cuda``.
    """

    layout: str = CHANNELS_LAST
    compiled: bool = False
    dtype: str = "float32"
    tf32: bool = False
    device: str = "cpu"

    @property
    def mode(self) -> str:
        """The name of how it is run."""
        return "torch.compile" if self.compiled else "eager"
