"""Which of a network's classes has a trigger that is much smaller than those of the others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bdjax.checks import InputError

BOUND = 2.0  # Neural Cleanse's
FEWEST = 5  # classes; of four, one that stands out moves the median of the deviations itself
_NORMAL = 1.4826  # makes the median absolute deviation of normal numbers their standard deviation
_EQUAL = 1e-6  # a deviation that is no larger a share of the median is rounding


class Anomaly(NamedTuple):
    """How far each of k norms lies from the median, and the suspects.

    ``index`` is |norm − median| / ``deviation``, and NaN where nothing can be told; ``deviation`` is 1.4826 times the
    median of |norm − median|; ``suspects`` are the classes with a norm below the median and an index above the bound,
    the smallest norm first. ``reason`` says why nothing can be told, and is empty where something can.
    """

    index: Float[np.ndarray, " k"]
    median: float
    deviation: float
    suspects: tuple[int, ...]
    reason: str


def anomaly(norm: Float[np.ndarray, " k"], bound: float = BOUND) -> Anomaly:
    """Compare the sizes of the classes' triggers, as Neural Cleanse does.

    The index is a convention and no probability: where the norms lie near one another a small difference makes a large
    index, and among many classes of a clean network some exceed 2. So it is to be read beside the norms.

    Departure from the released code: the median of an even number is the mean of the middle two.

    Args:
      norm: size of the smallest trigger found for each class, 0 or more.
      bound: index above which a small norm is suspect.

    Raises:
      InputError: no norms, or one that is negative or not finite.

    Example:

      >>> import numpy as np
      >>> anomaly(np.array([10.0, 12.0, 11.0, 13.0, 2.0])).suspects
      (4,)

    References:
      Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks, 2019, sec. IV-C.
    """
    norm = np.asarray(norm, np.float64)
    if norm.ndim != 1 or not norm.size or not np.all(np.isfinite(norm) & (norm >= 0)):
        wanted = "one finite number, 0 or more, for each class"
        raise InputError(f"norm must be {wanted}, got {norm.tolist()!r:.100}.")
    median = float(np.median(norm))
    away = np.abs(norm - median)
    deviation = _NORMAL * float(np.median(away))
    if reason := _unclear(norm, median, deviation):
        return Anomaly(np.full(norm.shape, np.nan), median, deviation, (), reason)
    index = away / deviation
    suspects = np.flatnonzero((norm < median) & (index > bound))
    suspects = suspects[np.argsort(norm[suspects], kind="stable")]
    return Anomaly(index, median, deviation, tuple(suspects.tolist()), "")


def _unclear(norm: Float[np.ndarray, " k"], median: float, deviation: float) -> str:
    """Return why the norms cannot be compared, or nothing."""
    if len(norm) < FEWEST:
        return f"of {len(norm)} classes none can stand out; it takes {FEWEST}"
    if deviation <= _EQUAL * median:
        return "half of the classes or more have triggers of the same size"
    return ""
