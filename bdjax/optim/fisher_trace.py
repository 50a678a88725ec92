"""The Fisher-trace penalty as an optax gradient transformation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from bdjax.checks import integer, non_negative
from bdjax.optim._checks import check_each
from bdjax.optim._masks import Mask, check_mask, refuse_masked, zero_where_masked
from bdjax.types import HParam

COST = 3  # in gradient evaluations, of the trace's gradient: it is a gradient of gradients


class FisherTraceState(NamedTuple):
    """Steps taken, and what the penalties in them have cost."""

    step: Int[Array, ""]
    gradient_evaluations: Int[Array, ""]


def fisher_trace(
    eta: HParam, every: int | Int[Array, ""] = 10, *, mask: Mask = None
) -> optax.GradientTransformationExtraArgs:
    """Add η ∇Tr F(θ) to the gradient on every ``every``-th step; the others cost nothing.

    ``update`` takes the keyword ``trace_grad_fn(params) → grads``, the gradient of the trace or of an estimate of it
    (`bdjax.curvature.fisher.trace_gradient`) on the same batch. It is called under a `jax.lax.cond`,
    which `jax.vmap` over the state turns into a selection that computes it always: map over points
    with `jax.lax.map` instead. The penalty is not scaled up for the steps that go without.

    Order: after `sam`, which discards what was added to the gradient before it; before weight decay and momentum.

    Args:
      eta: weight η ≥ 0; may be traced.
      every: steps from one penalty to the next; the first falls on step ``every``.
      mask: to which parameters the penalty's gradient is added, as of `bdjax.optim.sam`; all by default.

    Raises:
      InputError: a value out of range, a mask that does not fit, or parameters hidden by `optax.masked`.

    Example, the penalty θ⁴ on a loss θ² on every second step:

      >>> import jax, jax.numpy as jnp, optax
      >>> from bdjax import optim
      >>> tx = optax.chain(optim.fisher_trace(eta=0.5, every=2), optax.sgd(0.1))
      >>> w = jnp.array(1.0)
      >>> state = tx.init(w)
      >>> for _ in range(2):
      ...     updates, state = tx.update(2 * w, state, w, trace_grad_fn=jax.grad(lambda w: w**4))
      ...     print(f"{updates:.1f}")
      -0.2
      -0.4

    References:
      SFT paper (Karim et al.), eq. 5 and sec. 4.1: once every 10 steps, η_F = 0.001.
    """

    check_each(non_negative, eta=eta)
    check_each(functools.partial(integer, 1), every=every)

    def init(params: optax.Params) -> FisherTraceState:
        refuse_masked("optim.fisher_trace", params)
        check_mask(mask, params)
        return FisherTraceState(jnp.int32(0), jnp.int32(0))

    def update(
        updates: optax.Updates,
        state: FisherTraceState,
        params: optax.Params | None = None,
        *,
        trace_grad_fn: Callable[[Any], Any] | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, FisherTraceState]:
        del extra
        if params is None or trace_grad_fn is None:
            raise ValueError(
                "optim.fisher_trace needs params and trace_grad_fn: "
                "call update(grads, state, params, trace_grad_fn=…)."
            )
        refuse_masked("optim.fisher_trace", params)
        step = state.step + 1
        is_due = step % every == 0

        def penalized() -> optax.Updates:
            trace_grads = zero_where_masked(mask, trace_grad_fn(params), params)
            return jax.tree.map(lambda u, t: (u + eta * t).astype(u.dtype), updates, trace_grads)

        spent = state.gradient_evaluations + COST * is_due
        return jax.lax.cond(is_due, penalized, lambda: updates), FisherTraceState(step, spent)

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))
