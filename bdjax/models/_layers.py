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

import flax.errors
import flax.linen as nn
import jax
import jax.core
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key, Num

from bdjax import structure
from bdjax.checks import InputError, integer, one_of
from bdjax.models._conv import conv as conv
from bdjax.models._dense import Dense as Dense
from bdjax.models._interception import (
    factored,
    keywords,
    listed_products,
    recorded,
    recorded_input,
    shifted_output,
    with_tuples,
    without_dropout,
)
from bdjax.models._materialized import materialized
from bdjax.structure import FactoredKernel, Path
from bdjax.types import BatchStats, Leaf, Params, Spec, Tree, Variables

DTYPES = ("float32", "bfloat16")


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last, as in PyTorch.

    In training, x is normalized with the batch mean and the biased batch variance, and the running values move by
    running ← 0.9 · running + 0.1 · batch, where the running variance takes the *unbiased* variance n/(n−1)·var.
    Statistics and output are computed in float32, and the output has the type of x. Rows that are not ``valid`` change
    nothing; what comes out for them in training is the bias, shifted.
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
            near = jax.lax.stop_gradient(_near_the_mean(wide, valid))
            wide = materialized(_zeroed(wide - near, valid))
            mean, var = _moments(wide, valid)
            count = _count(wide, valid)
            if not self.is_initializing():
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * (near + mean)
                unbiased = var * count / jnp.maximum(count - 1, 1)
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return (wide * factor + (bias - mean * factor)).astype(x.dtype)


def _near_the_mean(x: Array, valid: Array | None) -> Array:
    """Return a number per channel that is never far from the batch's mean: the mean over the middle line of pixels.

    Whatever the values, of h lines the mean of one is within √h standard deviations of the mean of all, as the square
    of its deviation, shared out over h lines, is a part of the variance. So at most h rounding errors reach a variance
    of which it is the shift. The running mean needs no read, but in the first steps it may be thousands of deviations
    away. One valid image would do as well, but where the batch lies on several devices, it has to be sent around.
    """
    line = x[:, x.shape[1] // 2] if x.ndim > 2 else x
    return _mean(_zeroed(line, valid), valid)


def _moments(x: Array, valid: Array | None) -> tuple[Array, Array]:
    """Return mean and biased variance per channel over the valid rows.

    Both come of sums over x as it is, which one sweep makes, where the mean of (x − mean)² has to wait for the mean.
    That is accurate where the mean is few deviations from zero. Automatic differentiation makes of it what one would
    write by hand, at every order: a sweep for Σ ∂y and Σ ∂y·x, and one that computes the gradient value by value.
    """
    mean = _mean(x, valid)
    var = _mean(jnp.square(x), valid) - jnp.square(mean)
    below = jax.lax.stop_gradient(jnp.minimum(var, 0))  # by rounding, of which no derivative knows
    return mean, var - below


def _mean(x: Array, valid: Array | None) -> Array:
    """Return the mean per channel over the valid rows; the others are zero."""
    return x.sum(tuple(range(x.ndim - 1))) / _count(x, valid)


def _count(x: Array, valid: Array | None) -> Array:
    rows = x.shape[0] if valid is None else jnp.maximum(valid.sum(), 1)
    return jnp.asarray(rows * math.prod(x.shape[1:-1]), x.dtype)


def _zeroed(x: Array, valid: Array | None) -> Array:
    """Set rows that are not valid to zero: a product with zero would keep an infinity of theirs, as not a number."""
    return x if valid is None else jnp.where(valid.reshape(-1, *(1,) * (x.ndim - 1)), x, 0)


def pooled(x: Float[Array, "n *d c"]) -> Float[Array, "n c"]:
    """Return the mean over the positions, in float32: what the classifier takes in, which then computes in float32."""
    return x.mean(tuple(range(1, x.ndim - 1)), dtype=jnp.promote_types(x.dtype, jnp.float32))


@dataclasses.dataclass(frozen=True)
class LinenModel:
    """A Linen module with its image specification as a `bdjax.types.Model`.

    The module takes normalized images and returns one logit for each class. It is given the keywords ``train`` and
    ``valid`` (which rows of a training batch count) as far as its ``__call__`` has them; with batch norm it needs both.
    What it draws in training it draws from Flax's stream "dropout", as `flax.linen.Dropout` does.
    Its layers may be of any class: what matters is that their weights are named ``kernel``, as Flax's own are.

    Two equal models share one compilation. ``dtype`` is the type in which the layers compute, ``"float32"`` or
    ``"bfloat16"``; whatever it is, variables, logits and features are float32.
    """

    module: nn.Module
    spec: Spec
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuse a module that is not hashable, but for `nn.Sequential`, whose list of layers becomes a tuple."""
        object.__setattr__(self, "module", with_tuples(self.module))
        try:
            hash(self.module)
        except TypeError as error:
            name = type(self.module).__name__
            right = "hashable, with tuples in place of lists"
            raise InputError(f"module must be {right}; {name} is not.") from error

    def init(self, key: Key[Array, ""]) -> Variables:
        """Return fresh ``{"params", "batch_stats"}``; the latter is empty without batch norm.

        Raises:
          InputError: a network that cannot be trained here: without parameters, with other state than running
            statistics, or with those and without the keywords ``train`` and ``valid``.
        """
        input = jnp.zeros((1, *self.spec.shape))
        variables = _init(self.module, key, self._normalize(input))
        if others := sorted(set(variables) - {"params", "batch_stats"}):
            kept = f"the collections params and batch_stats alone; it has {', '.join(others)}"
            raise InputError(f"the network must keep its variables in {kept}.")
        if not variables.get("params"):
            raise InputError("the network must have parameters; its module makes none.")
        missing = sorted({"train", "valid"} - set(keywords(self.module, train=0, valid=0)))
        if variables["batch_stats"] and missing:
            what = f"{' and '.join(missing)}, as it keeps running statistics"
            raise InputError(f"the network's module must take the keyword {what}.")
        return variables

    def apply(
        self,
        variables: Variables,
        input: Num[Array, "n ..."],
        *,
        train: bool = False,
        valid: Bool[Array, " n"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "n k"], BatchStats]:
        """Return the logits of inputs (images in [0, 1], say), and the batch statistics after the pass.

        Dropout and stochastic depth draw from ``key`` in training, by Flax's stream "dropout"; without a key they are
        left out.

        Raises:
          InputError: the network's output is not one logit for each class, or it draws other random numbers in
            training.
        """
        logits, changed = self._pass(
            variables, input, ["batch_stats"] if train else [], train=train, valid=valid, key=key
        )
        return logits, changed.get("batch_stats", {}) if train else variables["batch_stats"]

    def features(self, variables: Variables, input: Num[Array, "n ..."]) -> Float[Array, "n d"]:
        """Return what the classifier, the last layer, takes in, in evaluation mode.

        Where it takes in maps, it is their mean over the positions.

        Raises:
          InputError: the last kernel is not that of a layer that takes the features in.
        """
        path = structure.classifier(self, variables)
        with recorded_input(path[:-1]) as collection:
            _, changed = self._pass(variables, input, [collection])
        seen = recorded(changed.get(collection), path[:-1])
        width = structure.flat(variables["params"])[path].shape[-2]
        if seen is None or seen.ndim < 2 or seen.shape[-1] != width:
            what = "is wrapped in another" if seen is None else f"takes in {seen.shape[1:]}"
            last = "/".join(path[:-1]) or type(self.module).__name__
            wanted = f"end in a layer of {width} features"
            raise InputError(f"the network must {wanted}; its last one, {last}, {what}.")
        return _wide(seen).mean(tuple(range(1, seen.ndim - 1)))

    def probe(
        self, variables: Variables, input: Num[Array, "n ..."], layer: Path, shift: ArrayLike = 0.0
    ) -> tuple[Float[Array, "n k"], Float[Array, "n *d"]]:
        """Return the logits with ``shift`` added to what one layer puts out, and that output, in evaluation mode.

        Raises:
          InputError: no such layer, or one that cannot be told from others, being inside `nn.jit` or a wrapper.
        """
        with shifted_output(layer[:-1], jnp.asarray(shift)) as collection:
            logits, changed = self._pass(variables, input, [collection])
        if (seen := recorded(changed.get(collection), layer[:-1])) is None:
            of_layer = "of a layer that is neither in nn.jit nor wrapped in another"
            what = f"the path of a kernel of the network, {of_layer}"
            raise InputError(f"layer must be {what}; got {'/'.join(layer)}.")
        return logits, _wide(seen)

    def _pass(
        self,
        variables: Variables,
        input: Array,
        mutable: list[str],
        *,
        train: bool = False,
        valid: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Array, dict[str, Tree]]:
        """Return the logits and the collections that a pass may change."""
        options = keywords(self.module, train=train)
        if train:
            options = keywords(self.module, train=train, valid=valid)
        rngs = {"dropout": key} if train and key is not None else {}
        variables = {**variables, "params": _divisible(self, variables["params"])}
        try:
            with nn.intercept_methods(factored), nn.intercept_methods(without_dropout):
                logits, changed = self.module.apply(
                    variables, self._normalize(input), rngs=rngs, mutable=mutable, **options
                )
        except flax.errors.InvalidRngError as error:
            where = "from the stream dropout alone, for which apply takes a key"
            raise InputError(f"the network must draw random numbers {where}.") from error
        wanted, got = (input.shape[0], self.spec.num_classes), getattr(logits, "shape", None)
        if got != wanted:
            what = f"one logit for each class, of shape {wanted} here"
            raise InputError(f"the network must return {what}; got {got or type(logits).__name__}.")
        return _wide(logits), dict(cast(Any, changed))

    def _normalize(self, input: Array) -> Array:
        """Normalize in the inputs' own type, and round the result only."""
        narrow = jnp.bfloat16 if self.dtype == "bfloat16" else input.dtype
        return self.spec.modality.normalize(input).astype(narrow)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _multiplied(leaf: Leaf) -> Leaf:
    return leaf.multiplied() if isinstance(leaf, FactoredKernel) else leaf


def _divisible(model: LinenModel, params: Params) -> Params:
    """Return the parameters with each `FactoredKernel` multiplied out but for the layers that take the parts."""
    leaves = structure.flat(params)
    if not any(isinstance(leaf, FactoredKernel) for leaf in leaves.values()):
        return params
    kept = _products(model)
    for path, leaf in leaves.items():
        if path not in kept:
            leaves[path] = _multiplied(leaf)
    return structure.nested(leaves)


@functools.lru_cache(maxsize=64)
def _products(model: LinenModel) -> frozenset[Path]:
    """Return the paths of the kernels of which a layer makes a product and nothing else."""
    found: set[Path] = set()
    variables = jax.eval_shape(model.init, jax.random.key(0))
    with listed_products(found):
        jax.eval_shape(
            model.apply, variables, jax.ShapeDtypeStruct((1, *model.spec.shape), jnp.float32)
        )
    return frozenset(found)


def _init(module: nn.Module, key: Key[Array, ""], x: Array) -> Variables:
    if any(isinstance(value, jax.core.Tracer) for value in (key, x)):  # the caller compiles
        return _fresh(module, key, x)
    return _compiled_init()(module, key, x)


def _fresh(module: nn.Module, key: Key[Array, ""], x: Array) -> Variables:
    with nn.intercept_methods(without_dropout):
        return {"batch_stats": {}, **module.init(key, x, **keywords(module, train=True))}


@functools.cache
def _compiled_init() -> Callable[[nn.Module, Key[Array, ""], Array], Variables]:
    # LLVM's full effort on the draw of every parameter takes six times as long, and gives the same bits.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(_fresh, static_argnums=0, compiler_options=options)


def check_options(width: int, dtype: str) -> None:
    """Refuse a width below one and an unknown compute type."""
    integer(1, width=width)
    one_of(DTYPES, dtype=dtype)


def check_images(name: str, spec: Spec) -> None:
    """Refuse other inputs than images, for a network that takes no others."""
    if (unit := spec.modality.unit) != "image":
        holds = f"a network for {unit}s, which {spec.name} holds; {name!r} takes images"
        raise InputError(f"name must be {holds}.")
