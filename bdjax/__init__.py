"""Plant backdoors in image classifiers, remove them, and measure both, at accelerator speed."""

# pyright: reportUnsupportedDunderAll=false
from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.1.0"

# pyright: reportUnsupportedDunderAll=false
# What other people's code works with; each is imported when it is first asked for.
__all__ = [
    "attacks",
    "curvature",
    "data",
    "defenses",
    "evaluate",
    "models",
    "optim",
    "parametrizations",
    "poison",
    "report",
    "saved",
    "stealth",
    "structure",
    "sweeps",
    "tasks",
    "types",
]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
