"""What a network is made of, found by shape, path and use; no table of layer names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.extend.core import Jaxpr, JaxprEqn, Var
from jaxtyping import Array, Float

from bdjax import pytree
from bdjax.checks import InputError
from bdjax.types import BatchStats, Leaf, Model, Params, Tree, Variables

Path: TypeAlias = tuple[str, ...]


@pytree.dataclass
class FactoredKernel:
    """A kernel W = V diag(s) Uᵀ that may stand in a network's parameters in place of the plain array.

    ``v`` is [*window, in, r] (a kernel with r output filters), ``scale`` [r], ``u`` [out, r]. A layer computes with V,
    the scale and U in turn, so that the gradient with respect to ``scale`` of each example in a batch costs no more
    than that of their sum.
    """

    v: Leaf
    scale: Leaf
    u: Leaf

    def multiplied(self) -> Float[Array, "*window out"]:
        """Return W."""
        # It is what is exported
        return jnp.matmul(self.v * self.scale, self.u.T, precision="highest")


def flat(tree: Tree) -> dict[Path, Leaf]:
    """Return the leaves of nested dictionaries by path."""
    return cast(dict[Path, Leaf], traverse_util.flatten_dict(tree))


def nested(leaves: Mapping[Path, Leaf]) -> Tree:
    """Return the nested dictionaries that have these leaves."""
    return traverse_util.unflatten_dict(dict(leaves))


def kernels(params: Params) -> dict[Path, Leaf]:
    """Return the kernels of convolutions ([h, w, in, out]) and dense layers ([in, out]) by path.

    The last axis counts the output filters.
    """
    found: dict[Path, Leaf] = {}
    for path, leaf in flat(params).items():
        if path[-1] == "kernel" and jnp.ndim(leaf) >= 2:
            found[path] = leaf
    return found


def convolutions(params: Params) -> dict[Path, Leaf]:
    """Return the convolutions' kernels by path."""
    return {path: leaf for path, leaf in kernels(params).items() if jnp.ndim(leaf) > 2}


def filters(model: Model, variables: Variables) -> dict[Path, Leaf]:
    """Return the kernels whose output filters are the network's neurons, by path: never those of its classifier.

    They are its convolutions. Where it has none but its first layer, as a transformer on patches of an image, they are
    the kernels of all its layers.
    """
    found = kernels(variables["params"])
    used = [path for path in execution_order(model, variables) if path in found]
    hidden = {path: leaf for path, leaf in found.items() if path in used[:-1]}
    deeper = set(convolutions(variables["params"])) & set(used[1:-1])
    if not deeper:
        return hidden
    return {path: leaf for path, leaf in hidden.items() if jnp.ndim(leaf) > 2}


def norm_scales(params: Params) -> dict[Path, Leaf]:
    """Return the scales γ of all normalizations, of whatever kind, by path: one number for each channel."""
    leaves = flat(params)
    return {path: leaf for path, leaf in leaves.items() if _is_scale(path, leaf)}


def _is_scale(path: Path, leaf: Leaf) -> bool:
    return path[-1] == "scale" and jnp.ndim(leaf) == 1


def batch_norms(model: Model, variables: Variables) -> list[Path]:
    """Return the paths of the scales γ of all batch norms, in execution order.

    A batch norm is whatever keeps a running variance and has a scale.
    """
    running = _running_variances(variables)
    scales = [path for path in execution_order(model, variables) if path[-1] == "scale"]
    return [path for path in scales if path[:-1] in running]


def keeps_variances(variables: Variables) -> bool:
    """Return whether there is a batch norm at all, with or without a scale."""
    return bool(_running_variances(variables))


def _running_variances(variables: Variables) -> set[Path]:
    return {path[:-1] for path in flat(variables["batch_stats"]) if path[-1] == "var"}


def classifier(model: Model, variables: Variables) -> Path:
    """Return the path of the last layer's kernel.

    Raises:
      InputError: the network has no kernel, or uses none.
    """
    order, found = execution_order(model, variables), kernels(variables["params"])
    used = [path for path in order if path in found]
    if not used:
        names = ", ".join(sorted({path[-1] for path in order})) or "nothing"
        wanted = "a layer whose weights are named kernel"
        raise InputError(f"the network must have {wanted}; it reads {names}.")
    return used[-1]


def execution_order(model: Model, variables: Variables) -> list[Path]:
    """Return the paths of all parameters in the order in which the forward pass first reads them.

    It is read from the traced program, as the order in the tree is alphabetical.
    """
    return list(dict.fromkeys(_reads(*traced(model, variables))))


def fused(model: Model, variables: Variables) -> dict[Path, tuple[int, ...]]:
    """Return the kernels that are several side by side, each with the numbers of their filters.

    They are those of dense layers whose output is split along its last axis: the projections of attention, say, to
    queries, keys and values.
    """
    program, path_of = traced(model, variables)
    dense = {path for path, leaf in kernels(variables["params"]).items() if jnp.ndim(leaf) == 2}
    given = {var: path for var, path in path_of.items() if path in dense}
    return _splits(program, _Origins(given, {}))


def traced(model: Model, variables: Variables) -> tuple[Jaxpr, dict[Var, Path]]:
    """Return the forward pass as a program, and the paths of those of its inputs that are parameters."""

    def shape(leaf: Leaf) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))

    shapes = jax.tree.map(shape, variables)
    params = flat(shapes["params"])
    # Two images, as a flat map of one has the shape of a bias
    image = jax.ShapeDtypeStruct((2, *model.spec.shape), jnp.float32)

    def forward(leaves: list[Array], batch_stats: BatchStats, image: Array) -> Array:
        whole = nested(dict(zip(params, leaves, strict=True)))
        return model.apply({"params": whole, "batch_stats": batch_stats}, image)[0]

    traced = jax.make_jaxpr(forward)(list(params.values()), shapes["batch_stats"], image).jaxpr
    return traced, dict(zip(traced.invars, params, strict=False))  # which are the first inputs


def _reads(program: Jaxpr, path_of: Mapping[Var, Path]) -> Iterator[Path]:
    """Yield the paths of a traced program's variables as it reads them, also in the programs that it calls."""
    for eqn in program.eqns:
        found: dict[int, Path] = {}
        for number, atom in enumerate(eqn.invars):
            if isinstance(atom, Var) and atom in path_of:
                found[number] = path_of[atom]
        if found and "jaxpr" in eqn.params:  # of `nn.jit` or `nn.remat`, say
            called = getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])
            inner = {called.invars[number]: path for number, path in found.items()}
            yield from _reads(called, inner)
        yield from found.values()


class _Origins(NamedTuple):
    """Of which kernels the variables of a program hold the values, and of which the product with an input."""

    kernels: dict[Var, Path]
    products: dict[Var, Path]

    def inside(self, eqn: JaxprEqn, called: Jaxpr) -> _Origins:
        """Return the same of the inputs of a program that is called."""
        pairs = zip(called.invars, eqn.invars, strict=True)
        pairs = [(inner, outer) for inner, outer in pairs if isinstance(outer, Var)]
        kernels = {inner: self.kernels[outer] for inner, outer in pairs if outer in self.kernels}
        products = {inner: self.products[outer] for inner, outer in pairs if outer in self.products}
        return _Origins(kernels, products)


# What leaves each number of a product in its place: a cast, or a bias or scale for each filter
_IN_PLACE = ("add", "convert_element_type", "mul")


def _splits(program: Jaxpr, origins: _Origins) -> dict[Path, tuple[int, ...]]:
    """Return the kernels whose products a program splits along the last axis, with the sizes."""
    found: dict[Path, tuple[int, ...]] = {}
    for eqn in program.eqns:
        called = getattr(eqn.params.get("jaxpr"), "jaxpr", eqn.params.get("jaxpr"))
        if isinstance(called, Jaxpr):  # of `nn.jit` or `nn.remat`, say
            inner = origins.inside(eqn, called)
            found |= _splits(called, inner)
            for outside, value in zip(eqn.outvars, called.outvars, strict=True):
                if isinstance(value, Var) and value in inner.products:
                    origins.products[outside] = inner.products[value]
            continue
        read = [atom for atom in eqn.invars if isinstance(atom, Var)]
        product = next((origins.products[atom] for atom in read if atom in origins.products), None)
        kernel = origins.kernels.get(read[-1]) if read else None
        name, out = eqn.primitive.name, next(iter(eqn.outvars), None)
        if out is None:  # of a callback
            continue
        if kernel and name == "dot_general" and eqn.params["dimension_numbers"][0][1] == (0,):
            origins.products[out] = kernel
        elif kernel and name == "convert_element_type":
            origins.kernels[out] = kernel
        elif product and name in _IN_PLACE and _alone(read, origins):
            origins.products[out] = product
        elif product and name == "split" and eqn.params["axis"] == len(_shape(out)) - 1:
            found[product] = tuple(int(size) for size in eqn.params["sizes"])
    return found


def _alone(read: Sequence[Var], origins: _Origins) -> bool:
    """Whether a product meets only one number for each filter: a sum with other maps is no kernel's alone."""
    others = [_shape(var) for var in read if var not in origins.products]
    return len(read) - len(others) == 1 and all(max(shape[:-1], default=1) == 1 for shape in others)


def _shape(var: Var) -> tuple[int, ...]:
    return cast(Leaf, var.aval).shape


def scaled(params: Params, factors: Mapping[Path, Float[Array, " k"]]) -> Params:
    """Return the parameters with the named leaves multiplied along their last axis."""
    leaves = flat(params)
    for path, leaf in leaves.items():
        leaves[path] = leaf * factors.get(path, 1)
    return nested(leaves)
