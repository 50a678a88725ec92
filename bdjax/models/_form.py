"""The two forms that a published network has: for ImageNet, and for small images."""

from __future__ import annotations

from bdjax.checks import InputError, one_of
from bdjax.types import Spec

FORMS = ("auto", "imagenet", "cifar")
_SMALL = 64  # pixels a side


def form(spec: Spec, **option: str) -> str:
    """Return which form an option asks for: "auto" is "cifar" up to 64 pixels a side, and "imagenet" beyond.

    Raises:
      InputError: another value than the three, with the option's name.
    """
    one_of(FORMS, **option)
    (asked,) = option.values()
    if asked != "auto":
        return asked
    return "cifar" if max(spec.shape[:2]) <= _SMALL else "imagenet"


def check_side(name: str, spec: Spec, least: int) -> None:
    """Refuse images with fewer pixels a side than a network halves away."""
    height, width = spec.shape[:2]
    if min(height, width) < least:
        got = f"{spec.name} has {height}×{width}"
        raise InputError(
            f"name must be a network for such images: {name!r} takes {least}×{least} "
            f"pixels or more; {got}."
        )
