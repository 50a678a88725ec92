"""Between a state dict and a network's variables: by name and by shape, never by position.

A network's own layout says which names it wants; what is missing, left over or of another shape refuses the file.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import structure
from bdjax.checks import InputError
from bdjax.files.printable import printable
from bdjax.models import _names
from bdjax.models.foreign import aliases
from bdjax.models.foreign.reading import StateDict
from bdjax.structure import Path
from bdjax.types import Model, Tree, Variables

Arrays: TypeAlias = Mapping[str, np.ndarray]
Shape: TypeAlias = tuple[int, ...]

# What no network here computes with: PyTorch's counters, those of a program that counts operations, and the heads that
# GoogLeNet and Inception have for training alone.
_LEFT_OUT = re.compile(
    r"(.*\.)?(num_batches_tracked|total_ops|total_params)|(aux1|aux2|AuxLogits)\..*"
)
_COUNTER = "num_batches_tracked"
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_ORDER = (
    "kernel",
    "scale",
    "bias",
)  # of a module's own arrays; then others, then the running statistics
_RUNNING = ("mean", "var")
_LAST = ("downsample", "shortcut")  # which PyTorch's blocks define last and use first
_SHOWN = 3  # names in a message


class Variable(NamedTuple):
    """Where a network keeps an array of a state dict: its shape in PyTorch's layout, and its own."""

    collection: str
    path: Path
    shape: Shape
    own_shape: Shape


@dataclasses.dataclass(frozen=True)
class Matching:
    """How the arrays of a file fit a network.

    Attributes:
      names: the file's name of each array, by the network's.
      missing, extra: the network's names that the file lacks, and the file's that the network does not know.
      misshapen: the network's name, the file's shape and the one that would be right.
      left_out: the file's names of arrays with which no network here computes, such as those of auxiliary heads.
    """

    names: Mapping[str, str]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: tuple[tuple[str, Shape, Shape], ...]
    left_out: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every array has its place."""
        return not (self.missing or self.extra or self.misshapen)

    def __str__(self) -> str:
        """Say what does not fit, the first few of each kind."""
        count = len(self.names)
        said: list[str] = []
        if self.missing:
            said.append(f"it lacks {len(self.missing)} of {count} arrays ({_few(self.missing)})")
        if self.extra:
            said.append(f"it has {len(self.extra)} that the network has not ({_few(self.extra)})")
        if self.misshapen:
            name, found, wanted = self.misshapen[0]
            other = f"{len(self.misshapen)} have another shape"
            said.append(f"{other} ({name} is {found}, {wanted} would fit)")
        return "; ".join(said)


def _few(names: Iterable[str]) -> str:
    names = [printable(name, 60) for name in names]
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


@functools.lru_cache(maxsize=64)
def layout(model: Model) -> Mapping[str, Variable]:
    """Return where a network keeps each array of its state dict, in PyTorch's order."""
    found: list[tuple[str, Path]] = []

    def init(key: jax.Array) -> Variables:
        variables = model.init(key)
        for collection in ("params", "batch_stats"):
            # In the order of the calls, which jax.tree does not keep
            found.extend((collection, path) for path in structure.flat(variables[collection]))
        return variables

    shapes = jax.eval_shape(init, jax.random.key(0))
    leaves = {name: structure.flat(shapes[name]) for name in ("params", "batch_stats")}
    places: dict[str, Variable] = {}
    for collection, path in _in_pytorchs_order(found):
        own = leaves[collection][path].shape
        name = aliases.published(_names.key_of(path))
        places[name] = Variable(collection, path, _torch_shape(path, own), own)
    return places


def _in_pytorchs_order(found: Iterable[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Sort as PyTorch lists them: a module's own parameters, its statistics, then its parts as they are defined."""
    places: dict[Path, int] = {}  # of each module among its siblings
    entries = list(found)
    for _, path in entries:
        for end in range(1, len(path)):
            last = 10**6 if path[end - 1] in _LAST else 0
            places.setdefault(path[:end], last + len(places))

    def place(entry: tuple[str, Path]) -> list[tuple[int, int]]:
        path = entry[1]
        modules = [(1, places[path[:end]]) for end in range(1, len(path))]
        return [*modules, (0, _rank(path[-1]))]

    return sorted(entries, key=place)


def _rank(leaf: str) -> int:
    if leaf in _ORDER:
        return _ORDER.index(leaf)
    return len(_ORDER) + 1 + _RUNNING.index(leaf) if leaf in _RUNNING else len(_ORDER)


def _torch_shape(path: Path, shape: Shape) -> Shape:
    laid = _names.to_torch(np.broadcast_to(np.float32(0), shape), path).shape
    # torchvision's ConvNeXt scales maps of [c, h, w]
    return (*laid, 1, 1) if path[-1] == "layer_scale" and len(laid) == 1 else laid


def matching(arrays: Arrays, model: Model) -> Matching:
    """Compare the names and shapes of a state dict with those of a network; axes of length 1 may differ."""
    wanted = layout(model)
    given = [name for name in arrays if name in wanted or not _LEFT_OUT.fullmatch(name)]
    names = aliases.matched(given, wanted)
    missing = [name for name in wanted if name not in names]
    extra = [old for name, old in names.items() if name not in wanted]
    misshapen: list[tuple[str, Shape, Shape]] = []
    for name, place in wanted.items():
        shape = arrays[names[name]].shape if name in names else place.shape
        if _long_axes(shape) != _long_axes(place.shape):
            misshapen.append((name, shape, place.shape))
    used = {name: names.get(name, "") for name in wanted}
    kept = set(given)
    left_out = tuple(name for name in arrays if name not in kept)
    return Matching(used, tuple(missing), tuple(extra), tuple(misshapen), left_out)


def _long_axes(shape: Shape) -> Shape:
    return tuple(length for length in shape if length != 1)


def variables(state: StateDict | Arrays, model: Model) -> Variables:
    """Return a network's variables from a state dict, in float32.

    Args:
      state: what `read` returned, or arrays by name in PyTorch's layout.
      model: the network.

    Raises:
      InputError: an array that is missing, left over, of another shape, not of floating point, or with a value that is
        not finite.
    """
    arrays = state.arrays if isinstance(state, StateDict) else state
    where = str(state.path) if isinstance(state, StateDict) else "state"
    found = matching(arrays, model)
    if not found.complete:
        raise InputError(f"{where} does not fit the network: {found}.")
    leaves: dict[Path, Tree] = {}
    for name, place in layout(model).items():
        array = _checked(where, found.names[name], arrays[found.names[name]], place)
        leaves[(place.collection, *place.path)] = jnp.asarray(array)
    return {"params": {}, "batch_stats": {}, **structure.nested(leaves)}


def _checked(where: str, name: str, array: np.ndarray, place: Variable) -> np.ndarray:
    """Return an array in the network's layout, in float32."""
    shown = printable(name, 60)
    if array.dtype.name not in _FLOATS:
        right = "weights must be floating point, not quantized"
        raise InputError(f"{where}: {shown} holds {array.dtype.name} numbers; {right}.")
    with np.errstate(over="ignore", invalid="ignore"):
        wide = array.astype(np.float32, copy=False)
    if not np.isfinite(wide).all():
        raise InputError(f"{where}: {shown} holds NaN or infinity, so the network is broken.")
    if place.path[-1] == "var" and (wide < 0).any():
        raise InputError(f"{where}: {shown} is a variance and below 0, so the network is broken.")
    laid = _names.from_torch(wide.reshape(place.shape), place.path)
    return np.ascontiguousarray(laid).reshape(place.own_shape)


def state_dict(
    model: Model, variables: Variables, names: str = "torchvision"
) -> dict[str, np.ndarray]:
    """Return a network's variables as PyTorch's state dict, in its order, names and layout.

    Args:
      model: the network.
      variables: of it.
      names: ``torchvision`` (for ``preact_resnet18`` BackdoorBench's, which has it), or ``kuangliu`` for residual
        networks: ``shortcut`` and ``linear`` in place of ``downsample`` and ``fc``.

    Raises:
      InputError: variables of another network, or unknown names.
    """
    leaves = structure.flat({name: variables[name] for name in ("params", "batch_stats")})
    made: dict[str, np.ndarray] = {}
    for name, place in layout(model).items():
        leaf = leaves.pop((place.collection, *place.path), None)
        if leaf is None or np.shape(leaf) != place.own_shape:
            wrong = f"{name} is of shape {np.shape(leaf)}" if leaf is not None else f"{name} lacks"
            raise InputError(f"variables must be those of the network; {wrong}.")
        laid = _names.to_torch(np.asarray(leaf), place.path)
        key = aliases.exported(name, names)
        made[key] = np.array(laid, np.float32, order="C").reshape(place.shape)
        if place.path[-1] == "var":
            made[f"{key.rpartition('.')[0]}.{_COUNTER}"] = np.zeros((), np.int64)
    if leaves:
        left = "/".join(next(iter(leaves)))
        raise InputError(f"variables must be those of the network, which has no {left}.")
    return made


def as_in_file(state: StateDict, model: Model, variables: Variables) -> dict[str, np.ndarray]:
    """Return a network's variables as a state dict with the names and shapes of a file that it came from.

    What is of no network stays as it was in the file: counters, a normalization. The program that wrote the file can
    read the result.

    Raises:
      InputError: the network is not that of the file.
    """
    found = matching(state.arrays, model)
    if not found.complete:
        raise InputError(f"{state.path} does not fit the network: {found}.")
    arrays = state_dict(model, variables)
    own = {old: arrays[name] for name, old in found.names.items()}
    made: dict[str, np.ndarray] = {}
    for name, array in state.arrays.items():
        made[state.prefix + name] = own.get(name, np.array(array)).reshape(array.shape)
    return {**made, **state.aside}
