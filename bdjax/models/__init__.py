"""Networks: one file per architecture, found by its name."""

from __future__ import annotations

from typing import Any

from bdjax import registry
from bdjax.types import Model, Spec


def names() -> list[str]:
    """Return the names of all architectures."""
    return registry.names(__name__)


def create(name: str, spec: Spec, **options: Any) -> Model:
    """Create a network for the images of ``spec``; ``options`` are the arguments of the function of that name.

    Raises:
      InputError: unknown name or option, or a value out of range.
    """
    return registry.create(__name__, name, spec, **options)
