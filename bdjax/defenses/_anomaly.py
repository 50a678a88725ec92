"""Which of a network's classes has a trigger that is much smaller than those of the others."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bdjax.checks import InputError
from bdjax.types import HParam

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


class Suspects(NamedTuple):
    """What `suspects` finds: the index of each class, NaN where nothing can be told, and which stand out."""

    index: Float[Array, " k"]
    stands_out: Bool[Array, " k"]


def suspects(
    norm: Float[Array, " k"], bound: HParam = BOUND, lower_median: bool = False
) -> Suspects:
    """Return the index and the suspects of `anomaly`; a pure function, to be compiled and mapped.

    Args:
      norm: finite sizes, 0 or more.
      bound: as for `anomaly`.
      lower_median: the median of an even number is the lower of the middle two, as PyTorch's is, instead of their mean.

    Example:

      >>> import jax.numpy as jnp
      >>> suspects(jnp.array([10.0, 12.0, 11.0, 13.0, 2.0])).stands_out.tolist()
      [False, False, False, False, True]
    """
    middle = _lower if lower_median else jnp.median
    median = middle(norm)
    away = jnp.abs(norm - median)
    deviation = _NORMAL * middle(away)
    clear = (norm.shape[0] >= FEWEST) & (deviation > _EQUAL * median)
    index = jnp.where(clear, away / jnp.where(clear, deviation, 1), jnp.nan)
    return Suspects(index, (norm < median) & (index > bound))


def _lower(values: Float[Array, " k"]) -> Float[Array, ""]:
    return jnp.sort(values)[(values.shape[0] - 1) // 2]
