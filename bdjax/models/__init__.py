"""Networks: one file per architecture, found by its name."""

from __future__ import annotations

import os
from typing import Any

from bdjax import checks, registry
from bdjax.types import Model, Spec, Variables


def names() -> list[str]:
    """Return the names of all architectures."""
    return registry.names(__name__)


def create(name: str, spec: Spec, **options: Any) -> Model:
    """Create a network for the images of ``spec``; ``options`` are the arguments of the function of that name.

    Raises:
      InputError: unknown name or option, a value out of range, or a file whose function returns no network.
    """
    model = registry.create(__name__, name, spec, **options)
    checks.is_a(Model, "a bdjax.types.Model", **{f"what {name} returns": model})
    return model


def load(path: str | os.PathLike[str], model: Model, part: str | None = None) -> Variables:
    """Load a network's variables from a file of PyTorch's or a safetensors file; nothing in it is executed.

    Arrays are matched by name and shape: torchvision's names, and those of kuangliu, timm and BackdoorBench.

    Args:
      path: of the file.
      model: the network that it is of.
      part: the entry with the weights, in a file of several sets; None is the usual one, such as ``state_dict``.

    Raises:
      InputError: no such file, one that is damaged or holds more than data, or weights that are not those of the
        network; the message says which.
    """
    from bdjax.models.foreign import keys, reading

    return keys.variables(reading.read(path, part), model)
