"""Which filter puts out each channel that a batch norm takes in, read from the traced network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, cast

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Var
from jaxtyping import Int

from bdjax import structure
from bdjax.structure import Path
from bdjax.types import Leaf, Model, Variables

NONE = -1  # in place of a filter's number
_Numbers: TypeAlias = Int[np.ndarray, " c"]
# What may put a channel elsewhere, or mix several
_MOVING = ("concatenate", "dot_general", "gather", "rev", "sort", "transpose")
_LOOPS = ("scan", "while")


class Preceding(NamedTuple):
    """The filters before batch norms.

    Attributes:
      kernels: paths, in execution order; their filters are numbered from 0, one kernel after another.
      channels: of each batch norm, by its scale's path, the number of the filter that puts out each channel, or `NONE`.
    """

    kernels: list[Path]
    channels: dict[Path, _Numbers]


def preceding_filters(model: Model, variables: Variables) -> Preceding:
    """Return which filter puts out each channel that a batch norm takes in.

    What comes between them keeps channels in their places: a bias, a rectifier, a pooling, a cast. Channels of several
    layers may be joined, as in a DenseNet; of a sum, as in a residual network, it is the filter that comes last in
    execution order. A channel that was normalized in between has none, nor has one of the image.
    """
    program, path_of = structure.traced(model, variables)
    found = structure.kernels(variables["params"])
    running = {path[:-1] for path in structure.flat(variables["batch_stats"]) if path[-1] == "var"}
    walk = _Walk({path: kernel.shape[-1] for path, kernel in found.items()})
    for var, path in path_of.items():
        if path in found or (path[-1] == "scale" and path[:-1] in running):
            walk.weights[var] = path
    image = program.invars[-1]
    walk.maps[image] = np.full(_width(image), NONE)
    walk.through(program)
    return Preceding(list(walk.numbers), walk.taken)


class _Walk:
    """What is known of the values of a program while it is read.

    Attributes:
      filters: how many each kernel has.
      numbers: of the filters of each kernel that was met.
      weights: what was made of one kernel or scale alone, and of which.
      maps: what was made of the image, and the filter of each channel.
      taken: the filters of the channels that each scale was multiplied with first.
    """

    def __init__(self, filters: dict[Path, int]):
        self.filters = filters
        self.numbers: dict[Path, _Numbers] = {}
        self.weights: dict[Var, Path] = {}
        self.maps: dict[Var, _Numbers] = {}
        self.taken: dict[Path, _Numbers] = {}

    def through(self, program: Jaxpr) -> None:
        """Read a program, and those that it calls."""
        for eqn in program.eqns:
            called = _called(eqn)
            if called is None:
                self._read(eqn)
                continue
            self._hand(eqn.invars, called.invars)
            self.through(called)
            self._hand(called.outvars, eqn.outvars)

    def _hand(self, given: Sequence[object], to: Sequence[Var]) -> None:
        """Say of some variables what is known of others; a program's own serve each of its calls."""
        pairs = list(zip(given, to, strict=True))
        weights = [self.weights.get(cast(Var, old)) for old, _ in pairs if isinstance(old, Var)]
        maps = [self.maps.get(cast(Var, old)) for old, _ in pairs if isinstance(old, Var)]
        named = [new for old, new in pairs if isinstance(old, Var)]
        for new in to:
            self._forget(new)
        for new, weight, map in zip(named, weights, maps, strict=True):
            if weight is not None:
                self.weights[new] = weight
            if map is not None:
                self.maps[new] = map

    def _forget(self, var: Var) -> None:
        self.weights.pop(var, None)
        self.maps.pop(var, None)

    def _read(self, eqn: JaxprEqn) -> None:
        read = [atom for atom in eqn.invars if isinstance(atom, Var)]
        weights = [self.weights[var] for var in read if var in self.weights]
        # Of a kernel and a scale, the kernel
        weights.sort(key=lambda path: path not in self.filters)
        maps = [var for var in read if var in self.maps]
        for out in eqn.outvars:
            self._forget(out)
            if maps and weights:
                self.maps[out] = self._met(weights[0], maps, _width(out))
            elif maps:
                self.maps[out] = self._kept(eqn, maps, out)
            elif weights:
                self.weights[out] = weights[0]

    def _met(self, weight: Path, maps: Sequence[Var], width: int) -> _Numbers:
        """Return the filters after maps met a kernel or a scale."""
        if weight in self.filters:
            own = self._numbered(weight)
            return own if own.size == width else np.full(width, NONE)
        self.taken.setdefault(weight, self._last(maps, width))
        return np.full(width, NONE)

    def _numbered(self, kernel: Path) -> _Numbers:
        """Return the numbers of a kernel's filters, which follow those of the kernels met before."""
        start = sum(numbers.size for numbers in self.numbers.values())
        own = np.arange(start, start + self.filters[kernel])
        return self.numbers.setdefault(kernel, own)

    def _kept(self, eqn: JaxprEqn, maps: Sequence[Var], out: Var) -> _Numbers:
        """Return the filters of what was made of maps alone."""
        name, last = eqn.primitive.name, len(_shape(out)) - 1
        if name == "concatenate" and eqn.params["dimension"] == last:
            joined = [atom for atom in eqn.invars if isinstance(atom, Var)]
            parts = [self.maps.get(var, np.full(_width(var), NONE)) for var in joined]
            return np.concatenate(parts)
        reduced = len(_shape(maps[0])) - 1 in eqn.params.get("axes", ())
        spread = name == "broadcast_in_dim" and math.prod(_shape(out)) > math.prod(_shape(maps[0]))
        if name in _MOVING or reduced or spread:
            return np.full(_width(out), NONE)
        return self._last(maps, _width(out))

    def _last(self, maps: Sequence[Var], width: int) -> _Numbers:
        """Return of each channel the filter that comes last in execution order."""
        most = max(math.prod(_shape(var)) for var in maps)
        # The others are one number for all positions, as of a gate
        whole = [self.maps[var] for var in maps if math.prod(_shape(var)) == most]
        numbers = [each for each in whole if each.size == width]
        return np.max([np.full(width, NONE), *numbers], axis=0)


def _called(eqn: JaxprEqn) -> Jaxpr | None:
    """Return the program that an equation runs once on its own inputs."""
    if eqn.primitive.name in _LOOPS:
        return None
    for name in ("jaxpr", "call_jaxpr"):
        value = eqn.params.get(name)
        program = getattr(value, "jaxpr", value)
        if isinstance(program, Jaxpr) and len(program.invars) == len(eqn.invars):
            return program
    return None


def _shape(var: Var) -> tuple[int, ...]:
    return cast(Leaf, var.aval).shape


def _width(var: Var) -> int:
    return _shape(var)[-1] if _shape(var) else 1
