"""Sharpness-aware minimization (SAM) and its adaptive form (ASAM) as an optax gradient transformation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from bdjax.checks import non_negative
from bdjax.optim._checks import check_each
from bdjax.optim._masks import Mask, check_mask, refuse_masked, zero_where_masked
from bdjax.types import HParam

_TINY = 1e-12  # outside any differentiated path, so a zero gradient gives a zero perturbation and no NaN


def perturbation(
    grads: optax.Updates, params: optax.Params, rho: HParam, *, adaptive: bool = False
) -> optax.Params:
    """Return the first-order worst perturbation ε of the parameters.

    ε = ρ T² g / ‖T g‖₂ with T = I (SAM) or T = diag(|θ|) (ASAM), so ‖T⁻¹ε‖₂ = ρ over the non-zero parameters. The norm
    is one global norm over all tensors, batch-norm scales and biases included; ε is 0 where g = 0 or, for ASAM, θ = 0.

    Args:
      grads: the gradient g, a tree like ``params``.
      params: θ.
      rho: radius ρ ≥ 0; may be traced.
      adaptive: whether T = diag(|θ|).

    Raises:
      InputError: a ρ below 0, or none at all.

    References:
      Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021, eq. 2;
      Kwon et al., ASAM, ICML 2021, eq. 9 (without their offset η); FT-SAM, ICCV 2023, eq. 4.
    """
    check_each(non_negative, rho=rho)
    scaled = jax.tree.map(lambda g, w: jnp.abs(w) * g, grads, params) if adaptive else grads
    norm = optax.tree.norm(
        jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), scaled)
    )
    factor = rho / (norm + _TINY)
    if adaptive:
        return jax.tree.map(lambda g, w: (factor * w * w * g).astype(w.dtype), grads, params)
    return jax.tree.map(lambda g, w: (factor * g).astype(w.dtype), grads, params)


class SamState(NamedTuple):
    """Steps taken."""

    step: Int[Array, ""]

    @property
    def gradient_evaluations(self) -> Int[Array, ""]:
        """One a step, beside the gradient that the step is given."""
        return self.step


def sam(
    rho: HParam | optax.Schedule, *, adaptive: bool = False, mask: Mask = None
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient at θ by the gradient at θ + ε, ε being SAM's or ASAM's `perturbation`.

    Put it first in a chain: weight decay and momentum then act at the unperturbed θ with the perturbed gradient, as
    the papers do. ``update`` takes the keyword ``grad_fn(params) -> grads``, the gradient of the *same* batch's loss;
    what else that pass computes (batch statistics above all) should be dropped, so that running statistics come from
    the first pass only. With ρ = 0 the result is ``grad_fn(params)``. One extra gradient evaluation a step.
    (`optax.contrib.sam` has no adaptive form, and wraps two optimizers where this stands in a chain.)

    Args:
      rho: radius ρ ≥ 0; may be traced, so a sweep over ρ compiles once. Or a schedule: a function of the steps taken.
      adaptive: ASAM instead of SAM. ASAM's ρ is of another scale: FT-SAM uses 2 where SAM uses 0.5.
      mask: which parameters are perturbed, as a tree of booleans like the parameters or a prefix of it, or a function
        from them to one; all by default. ‖T⁻¹ε‖₂ = ρ then holds over these. The others stay where they are in the
        second pass and get its gradient as well. `optax.masked` and `optax.partition` around this would hide from it
        the parameters that ``grad_fn`` needs, and are refused: put it before them. Under `optax.inject_hyperparams` a
        function is taken for a schedule unless it is among the ``static_args``.

    Raises:
      InputError: a ρ below 0, a mask that does not fit, or hidden parameters; the last two when parameters are seen.

    Example, in a loop that knows nothing of bdjax:

      >>> import jax, jax.numpy as jnp, optax
      >>> from bdjax import optim
      >>> loss = lambda w: 0.5 * (w[0] ** 2 + 3.0 * w[1] ** 2)
      >>> tx = optax.chain(optim.sam(rho=0.5), optax.sgd(0.1))
      >>> w = jnp.array([1.0, 2.0])
      >>> state = tx.init(w)
      >>> updates, state = tx.update(jax.grad(loss)(w), state, w, grad_fn=jax.grad(loss))
      >>> optax.apply_updates(w, updates).round(4).tolist()
      [0.8917999863624573, 1.2519999742507935]

    References:
      Zhu et al., Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization, ICCV 2023, eq. 4–6.
      Departure: the released code subtracts ε after the second pass, which leaves rounding in θ; here θ never moves.
    """

    if not callable(rho):
        check_each(non_negative, rho=rho)

    def init(params: optax.Params) -> SamState:
        refuse_masked("optim.sam", params)
        check_mask(mask, params)
        return SamState(jnp.int32(0))

    def update(
        updates: optax.Updates,
        state: SamState,
        params: optax.Params | None = None,
        *,
        grad_fn: Callable[[Any], Any] | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, SamState]:
        del extra
        if params is None or grad_fn is None:
            raise ValueError(
                "optim.sam needs params and grad_fn: call update(grads, state, params, grad_fn=…)."
            )
        refuse_masked("optim.sam", params)
        radius = rho(state.step) if callable(rho) else rho
        masked = zero_where_masked(mask, updates, params)
        epsilon = perturbation(masked, params, radius, adaptive=adaptive)
        return grad_fn(optax.apply_updates(params, epsilon)), SamState(state.step + 1)

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))
