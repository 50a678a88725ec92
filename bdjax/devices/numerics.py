"""What decides, beside the config's numbers, which bits come out: how products round, and whether kernels may vary."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Literal, TypeAlias

import jax

from bdjax.devices import compilation, flags

MatmulPrecision: TypeAlias = Literal["float32", "tensorfloat32", "bfloat16"]
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def in_force(matmul_precision: str | None = None, deterministic: bool = False) -> Iterator[None]:
    """Compute in the block, in this thread, as a run asks for.

    Args:
      matmul_precision: of the operands of float32 products and convolutions on accelerators, at the least and in JAX's
        words: on a GPU ``tensorfloat32`` and ``bfloat16`` are both TF32, where it has that; on a TPU ``float32`` takes
        six passes in bfloat16, ``tensorfloat32`` three and ``bfloat16`` one. None leaves it to
        ``JAX_DEFAULT_MATMUL_PRECISION``, without which it is the coarsest. What asks for a precision of its own, as the
        Hessian does, has that.
      deterministic: let each process compute the same bits on the same kind of device: on a GPU by XLA's option, at the
        cost of tuned kernels; elsewhere it is so without one. Of programs, that is: a single operation between them,
        such as the product that turns fast SFT's shifts into kernels at the end, is compiled as JAX does it.

    Raises:
      InputError: the XLA here has no such option.
    """
    with contextlib.ExitStack() as stack:
        if matmul_precision is not None:
            if jax.default_backend() == "cpu":
                _tell_that_it_is_ignored(matmul_precision)
            stack.enter_context(jax.default_matmul_precision(matmul_precision))
        if deterministic:
            stack.enter_context(
                compilation.also(flags.DETERMINISTIC.get(jax.default_backend(), {}))
            )
        yield


@functools.cache  # of a sweep's groups, or a run's rows, once
def _tell_that_it_is_ignored(matmul_precision: str) -> None:
    _log.warning(
        "matmul_precision %s changes nothing on a CPU, whose float32 products are exact.",
        matmul_precision,
    )
