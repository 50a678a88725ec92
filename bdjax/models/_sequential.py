"""Layers one after the other, named by their positions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from bdjax.models._interception import keywords

# A `functools.partial` that makes a module once it has a ``name``; or a function of the array, without parameters.
Layer: TypeAlias = "functools.partial[nn.Module] | Callable[[Array], Array]"


class Sequential(nn.Module):
    """Layers in order, each with its position as its name, as PyTorch's Sequential has it: "0", "1", ….

    A function without parameters (`flax.linen.relu`) takes a position and has no name. A layer is given ``train`` and
    ``valid`` as far as it takes them::

        Sequential((partial(conv, 8, 3), partial(BatchNorm), nn.relu), name="features")(x, train=train, valid=valid)
    """

    layers: tuple[Layer, ...]

    @nn.compact
    def __call__(
        self, x: Float[Array, "n *d"], *, train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n *e"]:
        for position, layer in enumerate(self.layers):
            if not isinstance(layer, functools.partial):
                x = layer(x)
                continue
            module: Any = layer(name=str(position))
            x = module(x, **keywords(module, train=train, valid=valid))
        return x
