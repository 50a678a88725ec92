"""Layers with PyTorch's semantics, which the published results follow, and the wrapper around a Linen module.

A layer computes in the type of its input, so `LinenModel` alone decides it: it hands the module normalized images in
the type that was asked for. In bfloat16 the operands of convolutions and matrix products are bfloat16, kernels
included, and so is every activation, residual sums too; parameters, their gradients, statistics, pooled features and
logits are float32. Sums over images and pixels are made in float32: in bfloat16 a sum of equal terms stops growing at
the 256th.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from bdjax.checks import InputError, integer, one_of
from bdjax.models._convolution import conv_general_dilated
from bdjax.structure import FactoredKernel, Path
from bdjax.types import BatchStats, ImageSpec, Variables

DTYPES = ("float32", "bfloat16")


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last, as in PyTorch.

    In training, x is normalized with the batch mean and the biased batch variance, and the running values move by
    running ← 0.9 · running + 0.1 · batch, where the running variance takes the *unbiased* variance n/(n−1)·var.
    Statistics and output are computed in float32, and the output has the type of x. Rows that are not ``valid`` change
    nothing.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[Array, "n *d c"], *, train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n *d c"]:
        channels = x.shape[-1]
        # bfloat16 is for memory only, as in cuDNN. One cast serves the moments and the output: what comes back through
        # the two almost cancels, and is to be added before it is rounded.
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if train:
            mean, var, count = _moments(wide, valid)
            if not self.is_initializing():
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                unbiased = var * count / jnp.maximum(count - 1, 1)
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return (wide * factor + (bias - mean * factor)).astype(x.dtype)


def _moments(x: Array, valid: Array | None) -> tuple[Array, Array, Array]:
    """Return mean and biased variance per channel over the valid rows, and how many values they are made of."""
    axes = tuple(range(x.ndim - 1))
    values_per_row = math.prod(x.shape[1:-1])
    if valid is None:
        mean = x.mean(axes)
        var = jnp.square(x - mean).mean(axes)
        return mean, var, jnp.asarray(x.shape[0] * values_per_row, mean.dtype)
    weight = valid.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
    count = jnp.maximum(weight.sum() * values_per_row, 1)
    mean = (x * weight).sum(axes) / count
    var = (jnp.square(x - mean) * weight).sum(axes) / count
    return mean, var, count


def _uniform_fan_in(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """U(−b, b), b = 1/√fan_in: PyTorch's default for convolutions and dense layers."""
    bound = 1 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _in_the_type_of_the_input(x: Array, *parameters: Array | None, dtype: Any) -> tuple[Array | None, ...]:
    """Cast a layer's parameters to the type of its input; Flax's own rule is the wider of the two."""
    del dtype
    return x, *(None if leaf is None else leaf.astype(x.dtype) for leaf in parameters)


def conv(features: int, size: int, *, stride: int = 1, name: str) -> nn.Conv:
    """Return a convolution without bias. Padding is explicit: XLA's SAME pads (0, 1) at stride 2, PyTorch (1, 1)."""
    pad = size // 2
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        kernel_init=_uniform_fan_in,
        promote_dtype=cast(Any, _in_the_type_of_the_input),
        conv_general_dilated=conv_general_dilated,
        name=name,
    )


class Dense(nn.Module):
    """A dense layer with PyTorch's default initialization of weights and bias."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
        kernel = self.param("kernel", _uniform_fan_in, (x.shape[-1], self.features))
        bound = 1 / math.sqrt(x.shape[-1])
        bias = self.param(
            "bias", lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound), (self.features,)
        )
        # Nothing here or in a convolution asks for a float32 result (`preferred_element_type`): all backends accumulate
        # in float32 and round once, and a float32 cotangent would make the products of the way back float32.
        return (x @ kernel.astype(x.dtype) + bias).astype(x.dtype)


def pooled(x: Float[Array, "n h w c"]) -> Float[Array, "n c"]:
    """Return the mean over the positions, in float32: what the classifier takes in, which then computes in float32."""
    return x.mean((1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


@dataclasses.dataclass(frozen=True)
class LinenModel:
    """A Linen module with its image specification as a `bdjax.types.Model`.

    The module takes normalized images and the keywords ``train`` and ``valid``. Two equal models share one
    compilation. ``dtype`` is the type in which the layers compute, ``"float32"`` or ``"bfloat16"``; whatever it is,
    variables, logits and features are float32.
    """

    module: nn.Module
    spec: ImageSpec
    dtype: str = "float32"

    def init(self, key: Key[Array, ""]) -> Variables:
        """Return fresh ``{"params", "batch_stats"}``; the latter is empty without batch norm."""
        image = jnp.zeros((1, *self.spec.shape))
        return _init(self.module, key, self._normalize(image))

    def apply(
        self,
        variables: Variables,
        image: Float[Array, "n h w c"],
        *,
        train: bool = False,
        valid: Bool[Array, " n"] | None = None,
    ) -> tuple[Float[Array, "n k"], BatchStats]:
        """Return the logits of images in [0, 1], and the batch statistics after the pass."""
        x = self._normalize(image)
        with nn.intercept_methods(_factored):
            if not train:
                return _wide(self.module.apply(variables, x, train=False)), variables["batch_stats"]
            logits, changed = self.module.apply(variables, x, train=True, valid=valid, mutable=["batch_stats"])
        return _wide(logits), changed.get("batch_stats", {})

    def features(self, variables: Variables, image: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        """Return what the last dense layer takes in, in evaluation mode."""
        seen: list[Array] = []

        def keep_input(next_call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            if isinstance(context.module, Dense):
                seen.append(args[0])
            return next_call(*args, **kwargs)

        with nn.intercept_methods(keep_input):
            self.apply(variables, image)
        return _wide(seen[-1])

    def probe(
        self, variables: Variables, image: Float[Array, "n h w c"], layer: Path, shift: Any = 0.0
    ) -> tuple[Float[Array, "n k"], Float[Array, "n *d"]]:
        """Return the logits with ``shift`` added to what one layer puts out, and that output, in evaluation mode."""
        seen: list[Array] = []

        def shifted(next_call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            out = next_call(*args, **kwargs)
            if context.method_name != "__call__" or context.module.path != layer[:-1]:
                return out
            seen.append(out + jnp.asarray(shift, out.dtype))
            return seen[-1]

        with nn.intercept_methods(shifted):
            logits, _ = self.apply(variables, image)
        if not seen:
            raise InputError(f"layer must be the path of a kernel of the network; got {'/'.join(layer)}.")
        return logits, _wide(seen[-1])

    def _normalize(self, image: Array) -> Array:
        """Normalize in the images' own type, and round the result only."""
        mean, std = (jnp.asarray(values, image.dtype) for values in (self.spec.mean, self.spec.std))
        narrow = jnp.bfloat16 if self.dtype == "bfloat16" else image.dtype
        return ((image - mean) / std).astype(narrow)


def _wide(x: Any) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _factored(next_call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    """Compute a layer whose kernel is given as V diag(s) Uᵀ: V as the kernel, then the scale, then U for each pixel."""
    layer = context.module
    if context.method_name != "__call__" or not isinstance(layer, nn.Conv | Dense):
        return next_call(*args, **kwargs)
    kernel = layer.get_variable("params", "kernel")
    if not isinstance(kernel, FactoredKernel):
        return next_call(*args, **kwargs)
    (x,) = args
    # A group's filters see their own inputs only: U cannot come after V.
    grouped = isinstance(layer, nn.Conv) and layer.feature_group_count > 1
    first = kernel.multiplied() if grouped else kernel.v
    if isinstance(layer, Dense):
        x = x @ first.astype(x.dtype)
    else:
        plain = layer.clone(parent=None, name=None, features=first.shape[-1], use_bias=False)
        x = cast(Array, plain.apply({"params": {"kernel": first}}, x))
    if not grouped:  # the scale is not rounded, so that its gradient, a sum over images and pixels, is float32
        x = (x * kernel.scale).astype(x.dtype) @ kernel.u.T.astype(x.dtype)
    bias = layer.get_variable("params", "bias")
    return x if bias is None else (x + bias).astype(x.dtype)


def _init(module: nn.Module, key: Key[Array, ""], x: Array) -> Variables:
    if any(isinstance(value, jax.core.Tracer) for value in (key, x)):  # the caller compiles
        return {"batch_stats": {}, **module.init(key, x, train=True)}
    return _compiled_init()(module, key, x)


@functools.cache
def _compiled_init() -> Callable[[nn.Module, Key[Array, ""], Array], Variables]:
    def init(module: nn.Module, key: Key[Array, ""], x: Array) -> Variables:
        return {"batch_stats": {}, **module.init(key, x, train=True)}

    # LLVM's full effort on the draw of every parameter takes six times as long, and gives the same bits.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(init, static_argnums=0, compiler_options=options)


def check_options(width: int, dtype: str) -> None:
    """Refuse a width below one and an unknown compute type."""
    integer(1, width=width)
    one_of(DTYPES, dtype=dtype)
