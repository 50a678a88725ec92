"""What is seen of the calls inside a Linen network, and changed in them, whatever the classes of its layers are."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import flax.linen as nn
from jaxtyping import Array

from bdjax import structure
from bdjax.models._dense import Dense
from bdjax.structure import FactoredKernel, Path
from bdjax.types import Tree

# What is recorded goes through a collection of variables, which Flax hands out of `nn.remat` and the like. Each pass
# has one of its own: where the collections are the same, `nn.jit` runs a program that it has, interceptors and all.
_COLLECTIONS = map("seen{}".format, itertools.count())
_Context: TypeAlias = nn.module.InterceptorContext
_Call: TypeAlias = Callable[..., Any]
_Arguments: TypeAlias = tuple[Any, ...]
_Keywords: TypeAlias = dict[str, Any]
_Output: TypeAlias = Any  # whatever a method of a layer returns
# Which compute a kernel of their own from that of the layer inside
_WRAPPERS = (nn.WeightNorm, nn.SpectralNorm)


def with_tuples(module: nn.Module) -> nn.Module:
    """Return an `nn.Sequential`, which keeps a list as it was given, with a tuple of layers; others as they are."""
    if not isinstance(module, nn.Sequential):
        return module

    def inside(layer: Callable[..., Any]) -> Callable[..., Any]:
        return with_tuples(layer) if isinstance(layer, nn.Module) else layer

    return module.clone(layers=tuple(map(inside, module.layers)))


def keywords(module: nn.Module, **values: object) -> _Keywords:
    """Return those of the keywords that a module takes; `nn.Sequential` hands its own to its first layer."""
    if isinstance(module, nn.Sequential):
        first = module.layers[0] if module.layers else None
        return keywords(first, **values) if isinstance(first, nn.Module) else {}
    parameters = inspect.signature(cast(Any, module).__call__).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return values
    return {name: value for name, value in values.items() if name in parameters}


@contextmanager
def recorded_input(layer: Path) -> Iterator[str]:
    """Record what the layer of this path takes in, the last time that it is called.

    Gives the name of the collection that it is in.
    """
    collection = next(_COLLECTIONS)

    def record(next_call: _Call, args: _Arguments, kwargs: _Keywords, context: _Context) -> _Output:
        if _is_call_of(context, layer):
            _keep(context.module, collection, args[0])
        return next_call(*args, **kwargs)

    with nn.intercept_methods(record):
        yield collection


@contextmanager
def shifted_output(layer: Path, shift: Array) -> Iterator[str]:
    """Add ``shift`` to what the layer of this path puts out, and record the sum.

    Gives the name of the collection that it is in.
    """
    collection = next(_COLLECTIONS)

    def shifted(
        next_call: _Call, args: _Arguments, kwargs: _Keywords, context: _Context
    ) -> _Output:
        out = next_call(*args, **kwargs)
        if not _is_call_of(context, layer):
            return out
        out = out + shift.astype(out.dtype)
        _keep(context.module, collection, out)
        return out

    with nn.intercept_methods(shifted):
        yield collection


def recorded(seen: Tree, layer: Path) -> Array | None:
    """Return what was recorded in a collection.

    None if the layer was not called, or shares its program with others.
    """
    found = structure.flat(seen or {})
    if [path[:-1] for path in found] != [layer]:
        return None
    return next(iter(found.values()))


def _is_call_of(context: nn.module.InterceptorContext, layer: Path) -> bool:
    return context.method_name == "__call__" and context.module.path == layer


def _keep(module: nn.Module, collection: str, value: Array) -> None:
    module.sow(collection, "seen", value, reduce_fn=lambda old, new: new, init_fn=lambda: value)


@contextmanager
def listed_products(found: set[Path]) -> Iterator[None]:
    """List the paths of the kernels that `factored` can compute with: those of layers that multiply and do no more.

    Of any other layer nobody knows what it makes of its kernel: standardizes it first, say.
    """
    wrapped: list[nn.Module] = []

    def listed(next_call: _Call, args: _Arguments, kwargs: _Keywords, context: _Context) -> _Output:
        layer = context.module
        if _multiplies(layer) and not wrapped:
            found.add((*layer.path, "kernel"))
        if not isinstance(layer, _WRAPPERS):
            return next_call(*args, **kwargs)
        wrapped.append(layer)
        try:
            return next_call(*args, **kwargs)
        finally:
            wrapped.pop()

    with nn.intercept_methods(listed):
        yield


def factored(next_call: _Call, args: _Arguments, kwargs: _Keywords, context: _Context) -> _Output:
    """Compute a layer whose kernel is given as V diag(s) Uᵀ: V as the kernel, the scale, U for each pixel."""
    layer = context.module
    if context.method_name != "__call__" or not _multiplies(layer):
        return next_call(*args, **kwargs)
    kernel = layer.get_variable("params", "kernel")
    if not isinstance(kernel, FactoredKernel):
        return next_call(*args, **kwargs)
    # A group's filters see their own inputs only: U cannot come after V.
    grouped = getattr(layer, "feature_group_count", 1) > 1
    first = kernel.multiplied() if grouped else kernel.v
    x = _product(layer, first, *args)
    # The scale is not rounded, so that its gradient, a sum over images and pixels, is float32
    if not grouped:
        x = (x * kernel.scale).astype(x.dtype) @ kernel.u.T.astype(x.dtype)
    bias = layer.get_variable("params", "bias")
    return x if bias is None else (x + bias).astype(x.dtype)


def without_dropout(
    next_call: _Call, args: _Arguments, kwargs: _Keywords, context: _Context
) -> _Output:
    """Leave dropout out where no key was given to draw from."""
    layer = context.module
    if not isinstance(layer, nn.Dropout) or context.method_name != "__call__":
        return next_call(*args, **kwargs)
    drawn = layer.has_rng(layer.rng_collection) or kwargs.get("rng") is not None
    return next_call(*args, **kwargs) if drawn else args[0]


def _multiplies(layer: nn.Module) -> bool:
    """Whether a layer is x ↦ kernel · x + bias, and of exactly a known class: a subclass may do more."""
    if type(layer) is nn.Conv:
        return layer.mask is None
    return type(layer) in (nn.Dense, Dense)


def _product(layer: nn.Module, kernel: Array, x: Array) -> Array:
    """Return a layer's product of another kernel with its input, without its bias."""
    if not isinstance(layer, nn.Conv | nn.Dense):
        return x @ kernel.astype(x.dtype)
    plain = layer.clone(parent=None, name=None, features=kernel.shape[-1], use_bias=False)
    return cast(Array, plain.apply({"params": {"kernel": kernel}}, x))
