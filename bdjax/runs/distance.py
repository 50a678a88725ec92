"""How far a defense has moved a network's weights, layer by layer."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from bdjax import structure
from bdjax.files.atomic import Plain
from bdjax.types import Variables


def between(before: Variables, after: Variables) -> Plain:
    """Return ‖after − before‖₂ / ‖before‖₂ of all parameters and of those of each layer, in their order there.

    Running statistics are no parameters. A layer whose parameters were all 0 has the distance itself.
    """
    old, new = (structure.flat(variables["params"]) for variables in (before, after))
    squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    counts: dict[str, int] = defaultdict(int)
    for path, leaf in old.items():
        start, end = (np.asarray(array, np.float64) for array in (leaf, new[path]))
        name = ".".join(path[:-1] or path)  # of a weight that is in no layer, its own
        layer = squares[name]
        layer[0] += float(((end - start) ** 2).sum())
        layer[1] += float((start**2).sum())
        counts[name] += start.size
    layers = [
        {"name": name, "relative": _ratio(*found), "count": counts[name]}
        for name, found in squares.items()
    ]
    moved, whole = (sum(found[place] for found in squares.values()) for place in (0, 1))
    return {"whole": _ratio(moved, whole), "layers": layers}


def _ratio(moved: float, whole: float) -> float:
    return float(np.sqrt(moved / whole) if whole else np.sqrt(moved))
