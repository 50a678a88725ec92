"""An array that the CPU's compiler computes once, rather than again in each place that reads it.

XLA's CPU compiler sums and multiplies in libraries, which read arrays from memory. What lies there anyway it still
computes again for every other reader, from operands that it keeps in memory for that; and inside a transposing copy,
where each access misses the cache. An optimization barrier is gone when it fuses, but an array whose layout is asked
for stays an array of its own. Other compilers fuse better by themselves.
"""

from __future__ import annotations

from typing import Any

from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Shaped


def materialized(x: Shaped[Array, "*d"]) -> Shaped[Array, "*d"]:
    """Return the same array; in a program for one CPU, none of what computes it is fused with what reads it."""
    return _primitive.bind(x)


_primitive = Primitive("bdjax_materialized")
_primitive.def_impl(lambda x: x)
_primitive.def_abstract_eval(lambda x: x)


def _in_own_layout(x: Array) -> Array:
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _lower(context: mlir.LoweringRuleContext, x: Any) -> Any:
    """Ask for a layout only on one device: with jax 0.10 the partitioner collects the whole array for it."""
    if getattr(context.module_context.axis_context, "num_devices", None) != 1:
        return [x]
    return mlir.lower_fun(_in_own_layout, multiple_results=False)(context, x)


mlir.register_lowering(_primitive, lambda context, x: [x])
mlir.register_lowering(_primitive, _lower, platform="cpu")
ad.deflinear2(_primitive, lambda cotangent, x: [materialized(cotangent)])
batching.defvectorized(_primitive)
