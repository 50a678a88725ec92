"""What of a learner may be to blame where a loss is not finite."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

# In the order in which they are named; each makes a step, or what is added to the gradient, as large as it is itself.
_STRENGTHS = {
    "learning_rate": "the learning rate",
    "rho": "rho",
    "rho_min": "rho_min",
    "weight_decay": "the weight decay",
    "eta_f": "eta_f",
    "eta_r": "eta_r",
    "eta_c": "eta_c",
}


def to_lower(learner: Any) -> str:
    """Name what of a learner is to be lowered, with its values; of several points stacked, from the least to the most.

    >>> from bdjax import defenses
    >>> to_lower(defenses.create("ft_sam", rho=1e10))
    'the learning rate (0.01), rho (1e+10) or the weight decay (0.0001)'
    >>> to_lower(None)
    'the learning rate'
    """
    found: dict[str, list[str]] = {}
    for path, leaf in jax.tree.leaves_with_path(learner):
        name = getattr(path[-1], "name", None) if path else None
        if name in _STRENGTHS and np.size(leaf) and np.max(leaf) > 0:
            values = found.setdefault(name, [])
            values += [value for value in [_range(leaf)] if value not in values]
    if not found:
        return _STRENGTHS["learning_rate"]
    named = []
    for name, words in _STRENGTHS.items():
        if name in found:
            named.append(f"{words} ({', '.join(found[name])})")
    *others, last = named
    return f"{', '.join(others)} or {last}" if others else last


def _range(leaf: Any) -> str:
    least, most = (f"{float(edge):.6g}" for edge in (np.min(leaf), np.max(leaf)))
    return least if least == most else f"{least} to {most}"
