"""CLP: prune the channels of the largest Lipschitz bound, without any image (Zheng et al., ECCV 2022)."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key

from bdjax import pytree, structure
from bdjax.checks import InputError, non_negative
from bdjax.defenses._operation import Operation
from bdjax.defenses._preceding import NONE, preceding_filters
from bdjax.defenses._stages import NOTHING
from bdjax.types import HParam, Info, Model, Variables

STRENGTHS = {"u": (5.0, 4.0, 3.0, 2.0, 1.0)}  # what ``auto`` tries
# Smaller running variances count as this: one that is 0 would hide all others of its layer
_LEAST_VARIANCE = 1e-12


@pytree.dataclass
class LipschitzPruning(Operation):
    """Zero the channels whose Lipschitz bound lies far above those of their layer."""

    sees: ClassVar[str] = NOTHING
    u: HParam = 3.0

    def update(
        self,
        key: Key[Array, ""],
        model: Model,
        state: Variables,
        batch: None,
    ) -> tuple[Variables, Info]:
        """Prune. The loss and the accuracy that are reported are 0: there is no image to measure them on."""
        del key, batch
        factors: dict[structure.Path, Array] = {}
        for path, bounds in lipschitz_bounds(model, state).items():
            kept = ~outlying(bounds, self.u)
            factors[path] = factors[(*path[:-1], "bias")] = kept.astype(jnp.float32)
        params = structure.scaled(state["params"], factors)
        nothing = jnp.zeros(())
        return {**state, "params": params}, Info(nothing, nothing, jnp.int32(0))


def lipschitz_bounds(
    model: Model, variables: Variables
) -> dict[structure.Path, Float[Array, " c"]]:
    """Return a bound of each channel's Lipschitz constant, by the path of what is to be zeroed.

    These are the scales of the batch norms; in a network without any, the kernels of `bdjax.structure.filters`. A
    channel that a batch norm takes in from no filter has NaN.

    Raises:
      InputError: the network's batch norms have no scale, or take in nothing of a kernel; or it has no batch norm and
        no layer before its classifier.
    """
    if not structure.keeps_variances(variables):
        return _of_filters(model, variables)
    params, statistics = (structure.flat(variables[part]) for part in ("params", "batch_stats"))
    before = preceding_filters(model, variables)
    if not any((numbers != NONE).any() for numbers in before.channels.values()):
        wanted = "have scales (use_scale=True) and take in what a kernel puts out"
        raise InputError(f"the network's batch norms must {wanted}.")
    norms = jnp.concatenate([spectral_norms(params[path]) for path in before.kernels])
    bounds: dict[structure.Path, Array] = {}
    for path, numbers in before.channels.items():
        norm = jnp.where(numbers == NONE, jnp.nan, norms[numbers])
        variance = jnp.maximum(statistics[(*path[:-1], "var")], _LEAST_VARIANCE)
        bounds[path] = norm * jnp.abs(params[path]) / jnp.sqrt(variance)
    return bounds


def _of_filters(model: Model, variables: Variables) -> dict[structure.Path, Float[Array, " c"]]:
    found = structure.filters(model, variables)
    if not found:
        wanted = "a layer before its classifier, else there is no filter to prune"
        raise InputError(f"the network must have {wanted}.")
    return {path: spectral_norms(kernel) for path, kernel in found.items()}


def spectral_norms(kernel: Float[Array, "*window i o"]) -> Float[Array, " o"]:
    """Return the largest singular value of each filter of a kernel, read as a matrix [window, in]."""
    matrix = jnp.moveaxis(kernel.reshape(-1, *kernel.shape[-2:]), -1, 0)
    if matrix.shape[1] > matrix.shape[2]:
        matrix = matrix.swapaxes(1, 2)
    # Else the squares of what weight decay left of a filter would be 0
    size = jnp.abs(matrix).max((1, 2), keepdims=True)
    matrix = matrix / jnp.where(size > 0, size, 1)
    gram = jnp.einsum("oab,ocb->oac", matrix, matrix, precision="highest")
    return size[:, 0, 0] * jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram)[:, -1], 0))


def outlying(bounds: Float[Array, " c"], u: ArrayLike) -> Bool[Array, " c"]:
    """Return which bounds exceed their mean by more than u standard deviations (of a sample); NaN is no bound."""
    deviation = jnp.nanstd(bounds, ddof=1)
    return bounds > jnp.nanmean(bounds) + u * deviation


def clp(u: float = 3.0) -> LipschitzPruning:
    """Create CLP: zero scale and shift of the channels with L_k > mean + u · std of their layer; it needs no image.

    L_k = σ_max(W_k) |γ_k| / √v_k for the scale γ and the running variance v of a batch norm, W_k the filter that puts
    out the channel that it takes in, as a matrix [window, in], and std that of a sample. No layer of n channels loses
    one if u ≥ (n − 1)/√n, which is 2.85 for ten and 3.02 for eleven: a narrow network is left as it is.

    Which filter comes before a batch norm is read from the program. Of a residual sum, as in PreAct-ResNet18, it is
    that of the last convolution before it, so that the rest of the sum is ignored. Channels that reach a batch norm
    from no filter but through another one, as in a DenseNet, are left alone and not counted.

    Departures. BackdoorBench takes the last convolution in the order in which the layers are registered, which in
    PreAct-ResNet18 is the shortcut's for the first batch norm of the second blocks. The paper says nothing of networks
    without batch norm: there L_k = σ_max(W_k), and the filter is zeroed with its bias.

    When it works: not on digits, of one victim (BadNets at 10 %, the small network of 32 to 128 channels). There u = 3
    left 99.8 % of the ASR, and u = 1, for 2.6 points of accuracy, 97.5 %. A clean network lost 0.7 points at u = 3 and
    4 at u = 1. At the paper's size it has not been run.

    Args:
      u: threshold u ≥ 0 in standard deviations; the smaller, the more is pruned. BackdoorBench has 5 for Tiny ImageNet.

    Raises:
      InputError: a value out of range.

    References:
      Zheng et al., Data-free Backdoor Removal based on Channel Lipschitzness, ECCV 2022, eq. 6–9.
    """
    non_negative(u=u)
    return LipschitzPruning(u)
