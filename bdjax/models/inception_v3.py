"""Inception-v3 with torchvision's names (Szegedy et al., Rethinking the Inception Architecture, 2016)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bdjax.models._conv import Size
from bdjax.models._dropout import Dropout
from bdjax.models._form import check_side
from bdjax.models._inception import Unit, share
from bdjax.models._layers import Dense, LinenModel, check_images, check_options, pooled
from bdjax.models._pooling import avg_pool, max_pool
from bdjax.types import Model, Spec

_WIDTH = 32
_SMALLEST = 75  # pixels a side, of which one is left at the end

_normal = nn.initializers.normal
_unit = partial(Unit, kernel_init=_normal(0.1))


def inception_v3(spec: Spec, width: int = 32, aux: bool = False, dtype: str = "float32") -> Model:
    """Create torchvision's Inception-v3: eleven blocks with batch norm (ε = 0.001), pooling, dropout, dense.

    At 10 classes it has 21,806,058 parameters, or 24,371,444 with the auxiliary head. It is made for images of 299×299.

    Departure. In training torchvision also returns the auxiliary head's logits, whose loss users add at a weight of
    0.4. Here the head is never computed: its variables are kept for files that have them, and only weight decay moves
    them.

    Args:
      spec: the images' specification; 75 pixels a side or more.
      width: channels of the first convolution; all others follow, rounded down.
      aux: whether the variables hold the auxiliary head.
      dtype: in which the layers compute, ``"float32"`` or ``"bfloat16"``; variables, features and logits are float32.

    Raises:
      InputError: ``width`` below 1, an unknown ``dtype``, or a specification of other inputs or of smaller images.
    """
    check_options(width, dtype)
    check_images("inception_v3", spec)
    check_side("inception_v3", spec, _SMALLEST)
    return LinenModel(_InceptionV3(spec.num_classes, width, aux), spec, dtype)


@dataclasses.dataclass(frozen=True)
class _Step:
    """A unit in a branch: channels as published; with a stride it has no padding."""

    name: str
    channels: int
    size: Size
    stride: int = 1


# One after the other: units, units side by side, and pooling
_Branch: TypeAlias = "tuple[_Step | tuple[_Step, ...] | Callable[[Array], Array], ...]"


def _average(x: Array) -> Array:
    return avg_pool(x, 3, 1, 1)


def _halved(x: Array) -> Array:
    return max_pool(x, 3, 2)


def _chain(name: str, *steps: tuple[int, Size]) -> _Branch:
    """Return units that are numbered from 1, by their channels and sizes."""
    return tuple(_Step(f"{name}_{n}", *step) for n, step in enumerate(steps, 1))


def _last(name: str, channels: int, size: Size, stride: int = 1) -> _Branch:
    return (_Step(name, channels, size, stride),)


def _of_35(after_pool: int) -> tuple[_Branch, ...]:
    """Return the branches of a block on maps of 35×35 pixels (of images of 299×299)."""
    return (
        _last("branch1x1", 64, 1),
        _chain("branch5x5", (48, 1), (64, 5)),
        _chain("branch3x3dbl", (64, 1), (96, 3), (96, 3)),
        (_average, *_last("branch_pool", after_pool, 1)),
    )


def _to_17() -> tuple[_Branch, ...]:
    twice = _chain("branch3x3dbl", (64, 1), (96, 3))
    return (
        _last("branch3x3", 384, 3, 2),
        (*twice, *_last("branch3x3dbl_3", 96, 3, 2)),
        (_halved,),
    )


def _of_17(inner: int) -> tuple[_Branch, ...]:
    row, column = (1, 7), (7, 1)
    twice = ((inner, 1), (inner, column), (inner, row), (inner, column), (192, row))
    return (
        _last("branch1x1", 192, 1),
        _chain("branch7x7", (inner, 1), (inner, row), (192, column)),
        _chain("branch7x7dbl", *twice),
        (_average, *_last("branch_pool", 192, 1)),
    )


def _to_8() -> tuple[_Branch, ...]:
    line = _chain("branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)))
    return (
        (*_chain("branch3x3", (192, 1)), *_last("branch3x3_2", 320, 3, 2)),
        (*line, *_last("branch7x7x3_4", 192, 3, 2)),
        (_halved,),
    )


def _of_8() -> tuple[_Branch, ...]:
    def cross(name: str) -> tuple[_Step, ...]:
        return (_Step(f"{name}a", 384, (1, 3)), _Step(f"{name}b", 384, (3, 1)))

    return (
        _last("branch1x1", 320, 1),
        (*_chain("branch3x3", (384, 1)), cross("branch3x3_2")),
        (*_chain("branch3x3dbl", (448, 1), (384, 3)), cross("branch3x3dbl_3")),
        (_average, *_last("branch_pool", 192, 1)),
    )


_BLOCKS = {
    "Mixed_5b": _of_35(32),
    "Mixed_5c": _of_35(64),
    "Mixed_5d": _of_35(64),
    "Mixed_6a": _to_17(),
    "Mixed_6b": _of_17(128),
    "Mixed_6c": _of_17(160),
    "Mixed_6d": _of_17(160),
    "Mixed_6e": _of_17(192),
    "Mixed_7a": _to_8(),
    "Mixed_7b": _of_8(),
    "Mixed_7c": _of_8(),
}
_HEADS = {"Mixed_6e": "AuxLogits"}  # after which block


class _InceptionV3(nn.Module):
    num_classes: int
    width: int
    aux: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n k"]:
        x = self._stem(x, train=train, valid=valid)
        for name, branches in _BLOCKS.items():
            x = _Block(branches, self.width, name=name)(x, train=train, valid=valid)
            head = _HEADS.get(name)
            if head and self.aux and self.is_initializing():
                _Head(self.num_classes, self.width, name=head)(x)
        x = Dropout(0.5)(pooled(x), train=train)
        return Dense(self.num_classes, _normal(0.1), name="fc")(x)

    def _stem(self, x: Array, *, train: bool, valid: Array | None) -> Array:
        def unit(
            x: Array, name: str, channels: int, size: int, stride: int = 1, pad: int = 0
        ) -> Array:
            features = share(channels, self.width, _WIDTH)
            return _unit(features, size, stride, pad, name=name)(x, train=train, valid=valid)

        x = unit(x, "Conv2d_1a_3x3", 32, 3, stride=2)
        x = unit(x, "Conv2d_2a_3x3", 32, 3)
        x = _halved(unit(x, "Conv2d_2b_3x3", 64, 3, pad=1))
        x = unit(x, "Conv2d_3b_1x1", 80, 1)
        return _halved(unit(x, "Conv2d_4a_3x3", 192, 3))


class _Block(nn.Module):
    """Branches on the same maps, side by side."""

    branches: tuple[_Branch, ...]
    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool, valid: Bool[Array, " n"] | None
    ) -> Float[Array, "n p q d"]:
        outs: list[Array] = []
        for branch in self.branches:
            out = x
            for step in branch:
                if callable(step):
                    out = step(out)
                    continue
                steps = (step,) if isinstance(step, _Step) else step
                units = [self._unit(each) for each in steps]
                out = jnp.concatenate([unit(out, train=train, valid=valid) for unit in units], -1)
            outs.append(out)
        return jnp.concatenate(outs, -1)

    def _unit(self, step: _Step) -> Unit:
        features = share(step.channels, self.width, _WIDTH)
        padding = None if step.stride == 1 else 0
        return _unit(features, step.size, step.stride, padding, name=step.name)


class _Head(nn.Module):
    """The auxiliary head, which has variables and no use."""

    num_classes: int
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> None:
        narrow, wide = share(128, self.width, _WIDTH), share(768, self.width, _WIDTH)
        maps = jnp.zeros((1, 5, 5, x.shape[-1]), x.dtype)  # as large as what it pools to
        out = _unit(narrow, 1, name="conv0")(maps, train=False)
        last = Unit(wide, 5, padding=0, kernel_init=_normal(0.01), name="conv1")
        Dense(self.num_classes, _normal(0.001), name="fc")(pooled(last(out, train=False)))
