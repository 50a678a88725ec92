"""Networks: one file per architecture, found by its name."""

from __future__ import annotations

from typing import Any

from bdjax import checks, registry
from bdjax.types import Model, Spec


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
